"""Agents that migrate while they are talked to, and processes that are killed, stopped and cut off at every step of it.

After each: what was accepted stands once and in its place, epochs never go back, each agent has one owner, which lives and serves the fold of the
log; each migration has ended once.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from perdure.errors import Unavailable
from perdure.migration.kill_points import COORDINATOR, SETTLER, SOURCE, TARGET
from perdure.migration.records import Migration
from tests.faults.migrating import TENANT, TIMEOUT_S, Node, World, world_on

COMMIT = TARGET.index("migration.target.committed")
FENCE_ONLY = ("migration.target.fenced", "migration.target.applied")


@pytest.fixture
async def world(fresh_database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(fresh_database, tmp_path) as made:
        yield made


async def in_threes(world: World, wanted: Sequence[tuple[str, str]]) -> list[Node]:
    """Nodes (name, kill point), a few at a time."""
    nodes: list[Node] = []
    for start in range(0, len(wanted), 3):
        nodes += await asyncio.gather(*(world.node(name, kill_point=point) for name, point in wanted[start : start + 3]))
    return nodes


async def assert_killed(node: Node, point: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        assert await node.process.ended() == -signal.SIGKILL, f"{point} was not reached: {node.process.hits()}"
    assert node.process.hits()[point] == 1


async def all_killed(world: World, doomed: Sequence[Node], points: Sequence[str]) -> None:
    """Each was seen to die at its point; then their leases run out."""
    for node, point in zip(doomed, points, strict=True):
        await assert_killed(node, point)
        await world.lease_runs_out(node.name)


@pytest.mark.parametrize("points", [TARGET[:COMMIT], TARGET[COMMIT:]], ids=["before the commit", "from the commit on"])
async def test_a_target_killed_at_any_step_leaves_one_owner(world: World, points: tuple[str, ...]) -> None:
    await asyncio.gather(world.node("source"), world.node("survivor"), world.start("recover", "watch"))
    doomed = await in_threes(world, [(f"doomed-{number}", point) for number, point in enumerate(points)])
    names = await world.place([f"agent {number}" for number in range(len(points))], "source")
    async with world.probed(names):
        moves = []
        for name, node, point in zip(names, doomed, points, strict=True):
            moves.append(asyncio.create_task(world.move(name, node.name, "cold" if point in FENCE_ONLY else "live")))
        await all_killed(world, doomed, points)
        told = await asyncio.gather(*moves, return_exceptions=True)
        closed = await world.all_closed(names)
        await world.all_answer()
    await world.check()
    # Who asked saw the end, or was told that it is not known (the log may be slow on a busy machine).
    for said, end in zip(told, closed, strict=True):
        assert isinstance(said, Unavailable) or (isinstance(said, Migration) and (said.id, said.phase) == (end.id, end.phase))
    # Up to the commit nothing has happened to the agent; from there on it has moved, and was recovered from its new owner.
    committed = points[0] == TARGET[COMMIT]
    assert {each.phase for each in closed} == {"committed" if committed else "aborted"}
    assert {await world.owner(name) for name in names} <= ({"source", "survivor"} if committed else {"source"})


async def test_a_source_killed_at_any_step_leaves_one_owner(world: World) -> None:
    await asyncio.gather(world.node("target"), world.start("recover", "watch"))
    doomed = await in_threes(world, [(f"doomed-{number}", point) for number, point in enumerate(SOURCE)])
    names = [(await world.place([f"agent {number}"], node.name))[0] for number, node in enumerate(doomed)]
    async with world.probed(names):
        moves = [asyncio.create_task(world.move(name, "target")) for name in names]
        await all_killed(world, doomed, SOURCE)
        await asyncio.gather(*moves, return_exceptions=True)
        await world.all_closed(names)
        await world.all_answer()
    await world.check()
    assert {await world.owner(name) for name in names} == {"target"}


async def test_a_coordinator_killed_at_any_step_is_not_needed(world: World) -> None:
    await asyncio.gather(world.node("source"), world.node("target"))
    names = await world.place([f"agent {number}" for number in range(len(COORDINATOR))], "source")
    async with world.probed(names):
        doomed = [
            await world.start("migrate", "run", name.agent, "--to", "target", "--tenant", TENANT, kill_point=point)
            for name, point in zip(names, COORDINATOR, strict=True)
        ]
        async with asyncio.timeout(TIMEOUT_S):
            for process, point in zip(doomed, COORDINATOR, strict=True):
                assert await process.ended() == -signal.SIGKILL
                assert process.hits()[point] == 1
        # The first died before it had written anything down: there is nothing to end, and the agent can be moved.
        moved = await world.all_closed(names[1:])
        await world.all_answer()
        again = await world.move(names[0], "target")
    await world.check()
    assert {each.phase for each in [again, *moved]} == {"committed"}
    assert {await world.owner(name) for name in names} == {"target"}


async def test_a_settler_killed_at_any_step_is_followed_by_the_next(world: World) -> None:
    # The target's lease does not run out: nobody settles but who is told to.
    applied = "migration.target.applied"
    _, target = await asyncio.gather(world.node("source"), world.node("target", kill_point=applied))
    names = await world.place(["settled"], "source")
    async with world.probed(names):
        plan = await world.engine.migrations.plan_migration(names[0], "target", strategy="cold")
        asked = asyncio.create_task(world.engine.migrations.execute_migration(plan))
        await assert_killed(target, applied)
        for point in SETTLER:
            settler = await world.start("migrate", "abort", plan.id, kill_point=point)
            async with asyncio.timeout(TIMEOUT_S):
                assert await settler.ended() == -signal.SIGKILL, f"{point} was not reached: {settler.hits()}"
            assert settler.hits()[point] == 1
        async with asyncio.timeout(TIMEOUT_S):
            ended = await asked
        await world.all_answer()
    await world.check()
    assert (ended.phase, await world.owner(names[0])) == ("aborted", "source")


async def test_a_source_that_stands_still_across_the_flip_changes_nothing_when_it_goes_on(world: World) -> None:
    # It stops with a command in its hands that is decided and not appended. Its lease does not run out: only the log's epoch can refuse it.
    source, _ = await asyncio.gather(world.node("source", stop_point="host.decided:12"), world.node("target"))
    names = await world.place(["stopped"], "source")
    async with world.probed(names):
        async with asyncio.timeout(TIMEOUT_S):
            await source.process.stopped()
        moved = await world.move(names[0], "target")
        source.process.send(signal.SIGCONT)
        await world.all_answer(commands=10)
    await world.check()
    assert (moved.phase, await world.owner(names[0])) == ("committed", "target")
    assert source.process.hits()["host.decided"] == 12
