"""Movers of agents that are killed at each of their steps: never do both engines serve, nothing acknowledged is lost, the next one finishes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import perdure
from perdure.client.engine import Engine
from perdure.engine.changes import set_value
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.log.records import AgentName
from perdure.errors import AgentMoved, AgentNotFound, NotServed
from tests.faults.transfer_process import settings

PROCESS_S = 90.0
AT_ONCE = 3
EVENTS = 280
"""Two pages of an agent."""
STEPS = ("noted", "past", "staged", "page", "page:2", "copied", "compared", "left", "rest_copied", "verified", "committed", "forwarded")
BACK = ("unstaged", "taken_back")


class Ends:
    """Two engines in two folders, and what their agents were acknowledged."""

    def __init__(self, source: Path, target: Path, here: Engine, there: Engine) -> None:
        self.folders = (source, target)
        self.here = here
        self.there = there
        self.acknowledged: dict[AgentName, list[Event]] = {}

    async def put(self, name: AgentName, engine: Engine, count: int = 1) -> None:
        known = self.acknowledged.setdefault(name, [])
        events = [Event("counted", changes=(set_value(f"/at{at}", at),)) for at in range(len(known), len(known) + count)]
        await engine.log.append_events(name, events)
        known += events

    async def fork(self, parent: AgentName, name: AgentName, engine: Engine) -> None:
        """From the parent's newest version; the fork goes alone."""
        await engine.recovery.fork(parent, name.agent)
        self.acknowledged[name] = list(self.acknowledged[parent])

    async def ask_both(self, name: AgentName) -> int:
        """How many of the engines accept an append. An agent that is not at the target is not asked for there: that would make it."""
        serving = 0
        for engine in (self.here, self.there):
            try:
                await engine.log.version(name)
                await self.put(name, engine)
            except (AgentMoved, AgentNotFound, NotServed):
                continue
            serving += 1
        return serving

    async def process(self, what: str, name: AgentName, step: str) -> None:
        """Run a process that is killed at the step; it must have been."""
        command = (sys.executable, "-m", "tests.faults.transfer_process", *map(str, self.folders), what, name.agent)
        running = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PERDURE_KILL_POINT": f"transfer.{step}"})
        try:
            assert await asyncio.wait_for(running.wait(), PROCESS_S) == -signal.SIGKILL, step
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()

    async def assert_whole(self, name: AgentName, engine: Engine) -> None:
        ids = [event.id for event in await engine.log.get_events(name, limit=1_000) if event.type == "counted"]
        assert ids == [event.id for event in self.acknowledged[name]]
        state = await engine.states.get_current_state(name)
        assert digest(state.document) == digest({f"at{number}": number for number in range(len(ids))})


async def test_whoever_moves_an_agent_may_be_killed_at_any_step(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    async with perdure.open(settings=settings(source)) as here, perdure.open(settings=settings(target)) as there:
        ends = Ends(source, target, here, there)
        names = {step: AgentName("default", f"agent-{number}") for number, step in enumerate((*STEPS, *BACK))}
        for name in names.values():
            if name != names["past"]:
                await ends.put(name, here, EVENTS)
        await ends.fork(names["noted"], names["past"], here)
        turn = asyncio.Semaphore(AT_ONCE)

        async def killed(step: str) -> None:
            async with turn:
                await ends.process("run", names[step], "left" if step in BACK else step)
                assert await ends.ask_both(names[step]) <= 1, step
                if step in BACK:
                    await ends.process("abort", names[step], step)
                    assert await ends.ask_both(names[step]) <= 1, step

        async with asyncio.TaskGroup() as group:
            for step in names:
                group.create_task(killed(step))
        begun = {record.name: record.phase for record in await here.transfers.list()}
        assert begun == dict.fromkeys(names.values(), "copying")

        report = await here.transfers.resume(there, at_once=4)
        back = {names[step] for step in BACK}
        assert (report.moved, report.failed) == (len(STEPS), len(BACK))
        for name in names.values():
            stayed = name in back
            assert (await here.transfers.show(name)).phase == ("aborted" if stayed else "moved")
            assert await ends.ask_both(name) == 1
            await ends.assert_whole(name, here if stayed else there)
        # What was taken back can be moved after all.
        again = await here.transfers.run(there, sorted(back))
        assert (again.moved, again.failed) == (len(back), 0)
        for name in back:
            assert await ends.ask_both(name) == 1
            await ends.assert_whole(name, there)
        for engine in (here, there):
            assert (await engine.verify()).log.problems == []


async def test_two_movers_of_one_agent_do_no_harm(tmp_path: Path) -> None:
    """Both go on with the same transfer, and a third takes it back, at once: one end serves at the end, with everything."""
    source, target = tmp_path / "source", tmp_path / "target"
    async with perdure.open(settings=settings(source)) as here, perdure.open(settings=settings(target)) as there:
        ends = Ends(source, target, here, there)
        names = [AgentName("default", f"agent-{number}") for number in range(3)]
        for name in names:
            await ends.put(name, here, EVENTS)
            await ends.process("run", name, "staged" if name == names[0] else "left")
        async with perdure.open(settings=settings(source)) as second, perdure.open(settings=settings(target)) as its:
            await asyncio.gather(
                here.transfers.resume(there),
                second.transfers.resume(its),
                here.transfers.abort(there, names[:2]),
                return_exceptions=True,
            )
        await here.transfers.resume(there)
        for name in names:
            phase = (await here.transfers.show(name)).phase
            assert phase in ("moved", "aborted")
            assert await ends.ask_both(name) == 1
            await ends.assert_whole(name, here if phase == "aborted" else there)
        for engine in (here, there):
            assert (await engine.verify()).log.problems == []
