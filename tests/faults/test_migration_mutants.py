"""Builds with a fault put in: the suite that judges migrations sees each of them, and says nothing of the same build without it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

import msgspec
import pytest

from perdure.errors import PerdureError
from perdure.recovery.caller import Caller
from perdure.recovery.commands import Command, CommandResult
from perdure.recovery.connections import Connections
from perdure.recovery.wire import path_of
from perdure.testing.prober import Outcome
from tests.faults.migrating import TIMEOUT_S, World, world_on

FAST = 30.0
"""Commands a second: with the slow commits of `acknowledge_long_before` some are under way whenever the agent is moved."""
MOVES = 3
IN_HAND = 12
"""Which of the source's commands it is stopped with; the first one gives it the agent."""


@pytest.fixture
async def world(fresh_database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(fresh_database, tmp_path) as made:
        yield made


async def a_source_that_stands_still(world: World, mutant: str) -> None:
    """It is stopped with a command in its hands, and goes on when the agent has moved; only the log's epoch can refuse it."""
    await asyncio.gather(world.node("source", stop_point=f"host.decided:{IN_HAND}", mutant=mutant), world.node("target"))
    (name,) = await world.place(["agent"], "source")
    source = world.nodes["source"]
    # Asked of the source alone, and once, so that nobody else does it meanwhile.
    connections, command = Connections(TIMEOUT_S), Command(None)
    async with Caller([source.address], timeout_s=TIMEOUT_S) as caller:
        for _ in range(IN_HAND - 2):
            await caller.command(name, None)
        sent_s = time.monotonic()
        asked = connections.post(source.address, path_of(name, "commands"), msgspec.json.encode(command))
        in_hand = asyncio.create_task(asked)
        await source.process.stopped()
        moved = await world.move(name, "target", "cold")
        assert moved.phase == "committed"
        async with world.probed([name], nodes=["target"]) as prober:
            await world.all_answer()
        # Nobody else appends now: whether the source comes to it is no matter of who is faster.
        source.process.send(signal.SIGCONT)
        answer = await in_hand
        await connections.close()
    record = prober.records[name]
    number = record.begin(command.id, sent_s, sent_s)
    if answer.status == HTTPStatus.OK:
        done = msgspec.json.decode(answer.content, type=CommandResult)
        record.end(number, time.monotonic(), Outcome.ACCEPTED, done.version, done.epoch)


async def to_and_fro(world: World, mutant: str) -> None:
    """Both nodes are of the build."""
    nodes = ("source", "target")
    await asyncio.gather(*(world.node(node, mutant=mutant) for node in nodes))
    (name,) = await world.place(["agent"], "source")
    async with world.probed([name], FAST):
        for number in range(MOVES):
            # It may fail, or be refused: what was acknowledged must be right all the same.
            with contextlib.suppress(PerdureError):
                await world.move(name, nodes[(number + 1) % 2])
        await world.all_answer()


SCENES: list[tuple[str, Callable[[World, str], Awaitable[None]]]] = [
    ("no-epoch-check", a_source_that_stands_still),
    ("early-acknowledgement", to_and_fro),
    ("no-verification", to_and_fro),
]


@pytest.mark.parametrize(("mutant", "scene"), SCENES, ids=[mutant for mutant, _ in SCENES])
async def test_a_build_with_a_fault_is_seen(world: World, mutant: str, scene: Callable[[World, str], Awaitable[None]]) -> None:
    await scene(world, mutant)
    report = await world.judge()
    assert not report.holds
