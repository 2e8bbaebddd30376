"""perdure demo migration: two nodes, an agent that is talked to all the time, moved from one to the other and back; how long it was away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import perdure
from perdure import config
from perdure.cli.demo_recovery import START_TIMEOUT_S, run_node
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.errors import MissingDependency
from perdure.migration.records import Migration

__all__ = ["play"]

NAME: Final = AgentName("demo", "talker")
NODES: Final = ("north", "south")
PAUSE_S: Final = 0.004
"""Between the beginnings of two commands."""
AROUND_S: Final = 0.5
"""Before and after a move, for what is usual."""


class _Talk:
    """Somebody who talks to the agent at a steady pace, whether it answers or not: when each command was accepted, and as which version."""

    def __init__(self) -> None:
        self.accepted: list[float] = []
        self.versions: dict[UUID, int] = {}
        self._sent = 0

    async def go_on(self, caller: Any, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                group.create_task(self._say(caller))
                await asyncio.sleep(PAUSE_S)

    async def _say(self, caller: Any) -> None:
        from perdure.recovery.commands import Command

        self._sent += 1
        command = Command({"say": f"word {self._sent}"})
        done = await caller.command(NAME, None, command)
        self.accepted.append(time.monotonic())
        self.versions[command.id] = done.version

    def gap_ms(self, since: float, until: float) -> float:
        """The longest time between two accepted commands."""
        times = [at for at in self.accepted if since <= at <= until]
        return round(max((after - before for before, after in pairwise(times)), default=0.0) * 1000, 1)


async def play(place: Path, moves: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Play it in a folder; the facts."""
    try:
        from perdure.recovery.caller import Caller
    except ImportError as problem:
        raise MissingDependency(f"{problem.name} is not installed", hint="pip install 'perdure[server]'") from problem

    flags = {"log": f"sqlite:///{place}/state", "keys": f"file://{place}/keys/root.key", "bus": "memory://", "cache": "memory://"}
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(perdure.open(settings=config.load(flags)))
        nodes = [await stack.enter_async_context(run_node(name, flags)) for name in NODES]
        for node in nodes:
            say(f"node {node.name} serves on {node.address} (process {node.process.pid})")
        caller = await stack.enter_async_context(Caller([nodes[0].address], timeout_s=START_TIMEOUT_S))
        talk, stop = _Talk(), asyncio.Event()
        talking = asyncio.create_task(talk.go_on(caller, stop))
        try:
            told = [await _move(engine, talk, NODES[(number + 1) % 2], say) for number in range(moves)]
        finally:
            stop.set()
            await talking
        return {"moves": told, **await _count(engine, talk)}


async def _move(engine: Engine, talk: _Talk, target: str, say: Callable[[str], None]) -> dict[str, Any]:
    await asyncio.sleep(AROUND_S)
    began_at = time.monotonic()
    done: Migration = await engine.migrations.execute_migration(await engine.migrations.plan_migration(NAME, target))
    ended_at = time.monotonic()
    await asyncio.sleep(AROUND_S)
    gap_ms = talk.gap_ms(began_at, ended_at + AROUND_S / 2)
    usual_ms = talk.gap_ms(began_at - AROUND_S, began_at)
    say(f"{done.source} > {done.target}: {done.phase}; {gap_ms} ms without an answer, seen from outside ({usual_ms} ms is usual here)")
    say(
        f"  digest before {done.digest_source[:16]}…, after {done.digest_target[:16]}…, at version {done.version}, epoch {done.final_epoch}"
    )
    return {
        "migration": done.id,
        "from": done.source,
        "to": done.target,
        "phase": done.phase,
        "gap_ms": gap_ms,
        "usual_gap_ms": usual_ms,
        "digest_before": done.digest_source,
        "digest_after": done.digest_target,
        "integrity": done.integrity,
    }


async def _count(engine: Engine, talk: _Talk) -> dict[str, Any]:
    """The log against what the talker was told."""
    found: dict[UUID, list[int]] = {}
    async for event in engine.agent(NAME.agent, tenant=NAME.tenant).events():
        found.setdefault(event.id, []).append(event.version)
    lost = sum(found.get(id) != [version] for id, version in talk.versions.items())
    said = [message["content"] for message in (await engine.agent(NAME.agent, tenant=NAME.tenant).state()).document["messages"]]
    doubled = len(said) - len(set(said))
    report = await engine.verify()
    return {
        "acknowledged": len(talk.versions),
        "lost": lost,
        "doubled": doubled,
        "verified": report.ok,
        "ok": report.ok and not lost and not doubled,
    }
