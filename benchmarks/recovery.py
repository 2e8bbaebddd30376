"""Recovery: how long the agents of a killed host are away, each as its own caller sees it."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import Any

from benchmarks.measuring import median, percentile
from benchmarks.nodes import end_processes, start_command, start_node
from benchmarks.report import machine, note, shape
from benchmarks.servers import engine_on_postgres
from benchmarks.settings import Settings
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.recovery.caller import Caller
from perdure.recovery.commands import Command

__all__ = ["KEYS", "measure"]

KEYS = (
    *("figures.takeover_p50_s", "figures.takeover_p99_s", "figures.hot_takeover_p50_s", "figures.hot_takeover_p99_s"),
    *("figures.recovery_after_detection_s", "figures.agents"),
)
HANDLER = "perdure.recovery.handlers:talk"
TIMEOUT_S = 120.0
HOT_PART = 20
"""One agent in so many is written to often before the host is killed."""
HOT_COMMANDS = 10


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of a take-over."""
    agents = max(4, int((200 if settings.quick else 1_000) * settings.scale))
    async with engine_on_postgres(settings.root) as place:
        note(f"recovery: {agents} agents on a host that is killed")
        found, details = await _killed(place.engine, place.flags, agents)
        about = machine(place.postgres_url)
    return shape(found, KEYS, details, about)


async def _killed(engine: Engine, flags: dict[str, str], agents: int) -> tuple[dict[str, float], dict[str, Any]]:
    processes: list[asyncio.subprocess.Process] = []
    try:
        processes.append(await start_command(flags, "recover", "watch"))
        first, one = await start_node(flags, "first", HANDLER)
        processes.append(first)
        names = [AgentName("benchmark", f"agent-{number}") for number in range(agents)]
        async with Caller([one], timeout_s=TIMEOUT_S) as caller:
            for start in range(0, agents, 100):
                await asyncio.gather(*(caller.command(name, {"say": "before"}) for name in names[start : start + 100]))
        second, other = await start_node(flags, "second", HANDLER)
        processes.append(second)
        hot = set(random.Random(agents).sample(names, agents // HOT_PART or 1))
        async with Caller([one], timeout_s=TIMEOUT_S) as caller:
            for _ in range(HOT_COMMANDS):
                await asyncio.gather(*(caller.command(name, {"say": "often"}) for name in hot))
        async with Caller([one, other], timeout_s=TIMEOUT_S) as caller:
            first.send_signal(signal.SIGKILL)
            killed_at = time.perf_counter()

            async def again(name: AgentName) -> float:
                await caller.command(name, None, Command({"say": "after"}))
                return time.perf_counter() - killed_at

            away = await asyncio.gather(*(again(name) for name in names))
        entries = {entry.type: entry for entry in await engine.recovery.journal()}
        while "recovery_completed" not in entries:
            await engine.log.store.signal().wait(0.1)
            entries = {entry.type: entry for entry in await engine.recovery.journal()}
    finally:
        await end_processes(processes)
    hot_away = [seconds for name, seconds in zip(names, away, strict=True) if name in hot]
    found = {
        "figures.hot_takeover_p50_s": median(hot_away),
        "figures.hot_takeover_p99_s": percentile(hot_away, 0.99),
        "figures.takeover_p50_s": median(away),
        "figures.takeover_p99_s": percentile(away, 0.99),
        "figures.recovery_after_detection_s": max(float(entries["recovery_completed"].data["duration_s"]), 0.001),
        "figures.agents": float(agents),
    }
    return found, {"takeover_max_s": round(max(away), 3), "lease_s": 2.5}
