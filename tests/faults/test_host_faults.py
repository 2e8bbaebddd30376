"""Hosts and supervisors as processes that are killed and stopped: one owner, every acknowledged command once, nothing lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

import perdure
from perdure import config
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.recovery.caller import Caller
from perdure.recovery.commands import Command

LEASE_S = 2.0
TIMEOUT_S = 90.0
AGENTS = 8
HANDLER = "perdure.recovery.handlers:talk"
UNAVAILABLE = 6


class World:
    """One log on Postgres, its nodes' processes, and somebody who talks to its agents."""

    def __init__(self, engine: Engine, flags: dict[str, str], agents: int) -> None:
        self.engine = engine
        self.names = [AgentName("t", f"agent {number}") for number in range(agents)]
        self.acknowledged: dict[AgentName, dict[UUID, int]] = {name: {} for name in self.names}
        self.addresses: list[str] = []
        self._options = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self, *words: str, kill_point: str = "") -> asyncio.subprocess.Process:
        """A command in a process of its own."""
        command = [sys.executable, "-m", "tests.faults.host_process", *words, "--json", *self._options]
        environment = {**os.environ, "PERDURE_KILL_POINT": kill_point}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env=environment)
        self._processes.append(process)
        return process

    async def node(self, name: str, kill_point: str = "") -> asyncio.subprocess.Process:
        """A node that serves."""
        words = ("host", "--node", name, "--handler", HANDLER, "--lease-s", str(LEASE_S))
        process = await self.start(*words, kill_point=kill_point)
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            self.addresses.append(msgspec.json.decode(await process.stdout.readline())["address"])
        return process

    async def talk(self, stop: asyncio.Event) -> None:
        """Talk to every agent until told to stop; what was acknowledged is noted."""
        async with Caller(self.addresses, timeout_s=TIMEOUT_S) as caller:
            await asyncio.gather(*(self._talk_to(caller, name, stop) for name in self.names))

    async def _talk_to(self, caller: Caller, name: AgentName, stop: asyncio.Event) -> None:
        while not stop.is_set():
            command = Command({"say": f"word {len(self.acknowledged[name])}"})
            done = await caller.command(name, None, command)
            self.acknowledged[name][command.id] = done.version

    def count(self) -> int:
        return sum(len(told) for told in self.acknowledged.values())

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not holds():
                await asyncio.sleep(0.02)

    async def all_answer_again(self) -> None:
        before = {name: len(told) for name, told in self.acknowledged.items()}
        await self.until(lambda: all(len(self.acknowledged[name]) > count + 1 for name, count in before.items()))

    async def check(self) -> None:
        """The oracle: every acknowledged command once, at its version; epochs never go back; the state is what was said, in order."""
        for name, told in self.acknowledged.items():
            events = [event async for event in self.engine.agent(name.agent, tenant=name.tenant).events()]
            places: dict[UUID, list[int]] = {}
            for event in events:
                places.setdefault(event.id, []).append(event.version)
            assert {id: places.get(id) for id in told} == {id: [version] for id, version in told.items()}
            assert [event.epoch for event in events] == sorted(event.epoch for event in events)
            document = (await self.engine.agent(name.agent, tenant=name.tenant).state()).document
            said = [message["content"] for message in document["messages"]]
            assert document["count"] == len(said)
            assert len(set(said)) == len(said)
        assert (await self.engine.verify()).ok

    async def end(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.communicate()


Worlds = Callable[[], AbstractAsyncContextManager[World]]


@pytest.fixture
async def world(fresh_database: str, tmp_path: Path) -> Worlds:
    flags = {"log": fresh_database, "keys": f"file://{tmp_path}/root.key", "bus": "memory://", "cache": "memory://"}
    flags["store"] = f"file://{tmp_path}/snapshots"

    @asynccontextmanager
    async def make() -> AsyncIterator[World]:
        async with perdure.open(settings=config.load(flags), partitions=4) as engine:
            made = World(engine, flags, AGENTS)
            try:
                yield made
            finally:
                await made.end()

    return make


@asynccontextmanager
async def under_load(world: World) -> AsyncIterator[None]:
    stop = asyncio.Event()
    talking = asyncio.create_task(world.talk(stop))
    try:
        await world.until(lambda: talking.done() or all(world.acknowledged.values()))
        yield
    finally:
        stop.set()
        await talking


@pytest.mark.parametrize("kill_point", ["host.decided:40", "host.appended:40", "host.taken"])
async def test_a_host_killed_at_a_step_loses_and_doubles_nothing(world: Worlds, kill_point: str) -> None:
    async with world() as here:
        watching = await here.start("recover", "watch")
        first, _ = await here.node("first", kill_point), await here.node("second")
        stop = asyncio.Event()
        talking = asyncio.create_task(here.talk(stop))
        async with asyncio.timeout(TIMEOUT_S):
            assert await first.wait() == -signal.SIGKILL, "the kill point was not reached"
        await here.all_answer_again()
        stop.set()
        await talking
        assert watching.returncode is None
        await here.check()
        assert await here.engine.log.store.count_owned("first") == 0


async def test_a_host_that_stood_still_is_replaced_and_its_late_work_changes_nothing(world: Worlds) -> None:
    async with world() as here:
        await here.start("recover", "watch")
        first, _ = await here.node("first"), await here.node("second")
        async with under_load(here):
            first.send_signal(signal.SIGSTOP)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    while await here.engine.log.store.count_owned("first"):
                        await here.engine.log.store.signal().wait(0.05)
            finally:
                first.send_signal(signal.SIGCONT)
            # It finds its lease gone, serves nobody any more, and says so by its exit code.
            async with asyncio.timeout(TIMEOUT_S):
                assert await first.wait() == UNAVAILABLE
            await here.all_answer_again()
        await here.check()


@pytest.mark.parametrize("kill_point", ["supervisor.began", "supervisor.assigned"])
async def test_a_supervisor_killed_in_the_middle_is_followed_by_the_next(world: Worlds, kill_point: str) -> None:
    async with world() as here:
        doomed = await here.start("recover", "watch", kill_point=kill_point)
        first, _ = await here.node("first"), await here.node("second")
        async with under_load(here):
            # The doomed one must lead: it was started first, and the other is started when it has seen the nodes.
            await here.until(lambda: here.count() > 40)
            first.kill()
            async with asyncio.timeout(TIMEOUT_S):
                assert await doomed.wait() == -signal.SIGKILL, "the kill point was not reached"
            await here.start("recover", "watch")
            await here.all_answer_again()
        await here.check()
        # One recovery: the next supervisor went on with what the killed one had begun, and ended it.
        async with asyncio.timeout(TIMEOUT_S):
            while "recovery_completed" not in {entry.type for entry in await here.engine.recovery.journal()}:
                await here.engine.log.store.signal().wait(0.05)
        journal = await here.engine.recovery.journal()
        assert [entry.data["node"] for entry in journal if entry.type == "recovery_started"].count("first") == 1


async def test_two_supervisors_and_a_node_that_comes_back_under_its_name(world: Worlds) -> None:
    async with world() as here:
        await here.start("recover", "watch")
        await here.start("recover", "watch")
        first, _ = await here.node("first"), await here.node("second")
        async with under_load(here):
            first.kill()
            await here.node("first")
            await here.all_answer_again()
        await here.check()
