"""perdure demo recovery: two nodes, agents under load, one node killed; the other serves its agents within seconds, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

import perdure
from perdure import config
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.errors import MissingDependency, PerdureError, Unavailable

__all__ = ["START_TIMEOUT_S", "Killed", "play", "run_node"]

HANDLER: Final = "perdure.recovery.handlers:talk"
START_TIMEOUT_S: Final = 30.0
BEFORE_S: Final = 2.0
AFTER_S: Final = 2.0
RECOVER_TIMEOUT_S: Final = 60.0
LOOK_S: Final = 0.05
PAUSE_S: Final = 0.02
"""Between two commands to one agent."""


class Killed(NamedTuple):
    """A node's process."""

    name: str
    address: str
    process: asyncio.subprocess.Process


class _Talk:
    """Somebody who talks to one agent all the time: what was acknowledged, and the longest silence."""

    def __init__(self, name: AgentName) -> None:
        self.name = name
        self.acknowledged: dict[UUID, int] = {}
        self.silence_s = 0.0
        self.last_at = time.monotonic()

    async def go_on(self, caller: Any, stop: asyncio.Event) -> None:
        from perdure.recovery.commands import Command

        while not stop.is_set():
            command = Command({"say": f"word {len(self.acknowledged)} to {self.name.agent}"})
            done = await caller.command(self.name, None, command)
            now = time.monotonic()
            self.silence_s, self.last_at = max(self.silence_s, now - self.last_at), now
            self.acknowledged[command.id] = done.version
            await asyncio.sleep(PAUSE_S)


async def play(place: Path, agents: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Play it in a folder; the facts."""
    try:
        from perdure.recovery.caller import Caller
    except ImportError as problem:
        raise MissingDependency(f"{problem.name} is not installed", hint="pip install 'perdure[server]'") from problem

    flags = {"log": f"sqlite:///{place}/state", "keys": f"file://{place}/keys/root.key", "bus": "memory://", "cache": "memory://"}
    settings = config.load(flags)
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(perdure.open(settings=settings))
        nodes = [await stack.enter_async_context(run_node(name, flags)) for name in ("north", "south")]
        for node in nodes:
            say(f"node {node.name} serves on {node.address} (process {node.process.pid})")
        caller = await stack.enter_async_context(Caller([node.address for node in nodes], timeout_s=RECOVER_TIMEOUT_S))
        talks = [_Talk(AgentName("demo", f"agent-{number:03d}")) for number in range(agents)]
        stop = asyncio.Event()
        watching = asyncio.create_task(engine.recovery.watch(stop))
        talking = [asyncio.create_task(talk.go_on(caller, stop)) for talk in talks]
        try:
            facts = await _story(engine, nodes, talks, say)
        finally:
            stop.set()
            await asyncio.gather(*talking, watching)
        return {**facts, **await _count(engine, talks), "journal": await _journal(engine)}


async def _story(engine: Engine, nodes: list[Killed], talks: list[_Talk], say: Callable[[str], None]) -> dict[str, Any]:
    await asyncio.sleep(BEFORE_S)
    before = {node.name: await engine.log.store.count_owned(node.name) for node in nodes}
    for talk in talks:
        talk.silence_s = 0.0
    say(f"{len(talks)} agents talk, {before['north']} on north and {before['south']} on south; north is killed now (kill -9)")
    nodes[0].process.send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    async with asyncio.timeout(RECOVER_TIMEOUT_S):
        while await engine.log.store.count_owned("north"):
            await engine.log.store.signal().wait(LOOK_S)
        taken_s = time.monotonic() - killed_at
        while any(talk.last_at < killed_at for talk in talks):
            await engine.log.store.signal().wait(LOOK_S)
    served_s = time.monotonic() - killed_at
    say(f"south has all {before['north']} agents of north after {taken_s:.1f} s, and every one has answered again after {served_s:.1f} s")
    await asyncio.sleep(AFTER_S)
    return {
        "agents": len(talks),
        "killed_agents": before["north"],
        "taken_s": round(taken_s, 3),
        "served_s": round(served_s, 3),
        "longest_silence_s": round(max(talk.silence_s for talk in talks), 3),
    }


async def _count(engine: Engine, talks: list[_Talk]) -> dict[str, Any]:
    """The log against what the talkers were told."""
    acknowledged = lost = doubled = 0
    for talk in talks:
        found: dict[UUID, list[int]] = {}
        async for event in engine.agent(talk.name.agent, tenant=talk.name.tenant).events():
            found.setdefault(event.id, []).append(event.version)
        acknowledged += len(talk.acknowledged)
        lost += sum(found.get(id) != [version] for id, version in talk.acknowledged.items())
        said = [message["content"] for message in (await engine.agent(talk.name.agent, tenant="demo").state()).document["messages"]]
        doubled += len(said) - len(set(said))
    report = await engine.verify()
    return {
        "acknowledged": acknowledged,
        "lost": lost,
        "doubled": doubled,
        "verified": report.ok,
        "ok": report.ok and not lost and not doubled,
    }


async def _journal(engine: Engine) -> list[dict[str, Any]]:
    entries = await engine.recovery.journal()
    return [{"time": entry.time, "what": entry.type, **entry.data} for entry in reversed(entries)]


@contextlib.asynccontextmanager
async def run_node(name: str, flags: dict[str, str]) -> AsyncIterator[Killed]:
    """A node in a process of its own."""
    options = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    words = ["-m", "perdure.cli", "host", "--node", name, "--handler", HANDLER, "--json", *options]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await process.stdout.readline()
        except TimeoutError:
            raise Unavailable(f"node {name} did not start within {START_TIMEOUT_S:.0f} s") from None
        if not line:
            raise PerdureError(f"node {name} ended: {(await process.stderr.read()).decode(errors='replace').strip()[-300:]}")
        yield Killed(name, msgspec.json.decode(line)["address"], process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
        await process.communicate()
