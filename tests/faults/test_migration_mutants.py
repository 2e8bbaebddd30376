"""Builds with a fault put in: the suite that judges migrations sees each of them, and says nothing of the same build without it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from tests.faults.migrating import TIMEOUT_S, World, world_on

FAST = 30.0
"""Commands a second: with the slow commits of `acknowledge_long_before` some are under way whenever the agent is moved."""
MOVES = 3


@pytest.fixture
async def world(fresh_database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(fresh_database, tmp_path) as made:
        yield made


async def a_source_that_stands_still(world: World, mutant: str) -> None:
    """It is stopped with a command in its hands, and goes on when the agent has moved; only the log's epoch can refuse it."""
    stop_point = "host.decided:12"
    await asyncio.gather(world.node("source", stop_point=stop_point, mutant=mutant), world.node("target"))
    (name,) = await world.place(["agent"], "source")
    source = world.nodes["source"].process
    async with world.probed([name]), asyncio.timeout(TIMEOUT_S):
        await source.stopped()
        moved = await world.move(name, "target", "cold")
        assert moved.phase == "committed"
        # Beside a target that appends all the time the source would have to be faster, which is chance.
        target = world.nodes["target"].process
        target.send(signal.SIGSTOP)
        source.send(signal.SIGCONT)
        await source.reached("host.appended", 12)
        target.send(signal.SIGCONT)
        await world.all_answer()


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
