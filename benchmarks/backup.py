"""Backups beside pg_dump and pg_restore of the same database."""

from __future__ import annotations

import asyncio
import subprocess
import time
from typing import Any

from benchmarks.appending import Agents
from benchmarks.report import machine, note, shape
from benchmarks.servers import Place, engine_on_postgres, fresh_database, server_program
from benchmarks.settings import Settings
from perdure import config
from perdure.client.backups import restore_backup
from perdure.client.engine import Engine

__all__ = ["KEYS", "measure"]

KEYS = (
    *("ratios.backup_vs_pg_dump", "ratios.restore_vs_pg_restore", "ratios.bytes_vs_pg_dump"),
    *("figures.backup_mb_per_s", "figures.restore_mb_per_s", "figures.incremental_s", "figures.rpo_s"),
)
MB = 1_000_000
AGENTS = 500


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of backups."""
    events = max(1_000, int((40_000 if settings.quick else 1_000_000) * settings.scale))
    async with engine_on_postgres(settings.root) as place:
        with fresh_database(place.postgres_url) as ours, fresh_database(place.postgres_url) as theirs:
            note(f"backup: {events} events of 1 KB")
            await _fill(place.engine, events)
            every_s, under_load_s = (1.0, 4.0) if settings.quick else (30.0, 100.0)
            found = await _compared(place, ours, theirs, events, every_s, under_load_s)
        about = machine(place.postgres_url)
    return shape(found, KEYS, {"events": events}, about)


async def _fill(engine: Engine, events: int) -> None:
    agents = Agents(engine)
    await agents.make(AGENTS)
    left = events - AGENTS
    while left > 0:
        count = min(left, AGENTS)
        await asyncio.gather(*(agents.step(number) for number in range(count)))
        left -= count


async def _compared(place: Place, ours: str, theirs: str, events: int, every_s: float, under_load_s: float) -> dict[str, float]:
    engine, folder = place.engine, place.folder
    to, dump = f"file://{folder}/backups", folder / "dump"
    size_mb = events * 1024 / MB
    began = time.perf_counter()
    manifest = await engine.backups.create(to)
    backup_s = time.perf_counter() - began
    dump_s = await asyncio.to_thread(_timed, server_program("pg_dump"), "-Fc", "-f", str(dump), place.url)
    began = time.perf_counter()
    await restore_backup(to, config.load({"log": ours, "keys": f"file://{folder}/root.key"}))
    restore_s = time.perf_counter() - began
    restored_s = await asyncio.to_thread(_timed, server_program("pg_restore"), "-d", theirs, str(dump))
    agents = Agents(engine, "more")
    await agents.make(50)
    began = time.perf_counter()
    await engine.backups.create(to)
    incremental_s = time.perf_counter() - began
    return {
        "figures.rpo_s": await _worst_rpo(engine, agents, to, every_s, under_load_s),
        "ratios.backup_vs_pg_dump": dump_s / backup_s,
        "ratios.restore_vs_pg_restore": restored_s / restore_s,
        "ratios.bytes_vs_pg_dump": manifest.stored_bytes / dump.stat().st_size,
        "figures.backup_mb_per_s": size_mb / backup_s,
        "figures.restore_mb_per_s": size_mb / restore_s,
        "figures.incremental_s": incremental_s,
    }


async def _worst_rpo(engine: Engine, agents: Agents, to: str, every_s: float, under_load_s: float) -> float:
    """The farthest back that a loss of the log would have reached, asked all the time while events are written and backups are taken."""
    stop = asyncio.Event()
    taking = asyncio.create_task(engine.backups.keep_taking(to, every_s, stop, _raised))
    worst, until = 0.0, time.perf_counter() + under_load_s
    while time.perf_counter() < until:
        await asyncio.gather(*(agents.step(number) for number in range(50)))
        worst = max(worst, (await engine.backups.freshness(to)).rpo_s)
    stop.set()
    await taking
    return worst


def _raised(done: object) -> None:
    if isinstance(done, Exception):
        raise done


def _timed(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began
