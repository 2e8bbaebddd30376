"""A rebuild of the cache while it is read and written: nobody sees an older state or none, and nobody undoes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from perdure import limits
from perdure.engine.log.sqlite import SqliteStore
from perdure.errors import Conflict, Fenced, IntegrityError, NotFound
from perdure.projections.cache_check import check_cache
from perdure.projections.contract import CachedState, CellWrite, StateCache, Token
from perdure.projections.hot import HotStates
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader
from perdure.projections.rebuild import LEASE, Rebuilder
from perdure.projections.redis import RedisCache
from perdure.testing.cache_kit import whole
from tests.fix_projections import PARTITIONS, World

NAMES = [("t", agent) for agent in "abcde"]


@pytest.fixture(params=["memory", "redis"])
async def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world for each kind of cache."""
    prefix = f"test-{uuid4().hex}"
    cache: StateCache = (
        MemoryCache() if request.param == "memory" else RedisCache(request.getfixturevalue("redis_url"), prefix=prefix, ttl_s=900)
    )
    world = World(await SqliteStore.open(tmp_path / "log", partitions=PARTITIONS), cache)
    await world.bus.ensure(PARTITIONS)
    yield world
    await cache.remove(NAMES)
    await cache.close()
    await world.close()


def rebuilder(world: World) -> Rebuilder:
    return Rebuilder(world.store, world.cache, world.new_vault(), parallel=2)


async def filled(world: World) -> None:
    projector = world.projector()
    for _, agent in NAMES:
        await world.talk(agent, 3)
    await world.publish()
    await projector.drain()
    await projector.close()


async def cached(world: World) -> list[CachedState]:
    """What is cached of all agents; each must be there."""
    states = await world.cache.get(NAMES)
    assert None not in states
    return [state for state in states if state is not None]


async def lapse(world: World) -> None:
    """The lease of a process that stands still runs out."""
    for lease in await world.store.list_leases(LEASE):
        await world.store.release_lease(lease)


async def test_readers_and_writers_go_through_rebuilds_and_see_no_older_state_and_none_missing(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, over = any_world, asyncio.Event()
    monkeypatch.setattr(limits, "REBUILD_PAGE_AGENTS", 2)
    await filled(world)

    async def write_and_project() -> None:
        projector = world.projector()
        while not over.is_set():
            for _, agent in NAMES:
                await world.add(agent)
            await world.publish()
            await projector.drain()
        await projector.close()

    async def read(consistency: Any) -> int:
        reader = StateReader(world.store, world.cache, world.new_vault(), kept=HotStates(agents_max=0))
        seen, reads = dict.fromkeys(NAMES, 3), 0
        while not over.is_set():
            for name in NAMES:
                assert (await world.cache.get([name])) != [None], "a state was missing"
                state = await reader.state(*name, consistency=consistency)
                assert state.version >= seen[name], "a read went back"
                assert len(state.document["messages"]) == 3
                seen[name], reads = state.version, reads + 1
            await asyncio.sleep(0)
        return reads

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(write_and_project()), *(group.create_task(read(how)) for how in ("eventual", "strong"))]
        first = await rebuilder(world).run("t")
        second = await rebuilder(world).run()
        over.set()
    assert all(task.result() != 0 for task in tasks)
    assert (first.phase, second.phase, first.failures, second.failures) == ("done", "done", 0, 0)
    assert (second.agents_cut, second.number > first.number) == (5, True)
    assert {state.build for state in await cached(world)} == {second.number}
    assert await world.cache.built(second.number, NAMES) == [None] * 5
    report = await check_cache(world.store, world.cache, world.vault)
    assert (report.wrong, report.missing) == (0, 0)


async def test_whatever_stands_in_the_cache_the_log_is_read_after_a_rebuild(any_world: World) -> None:
    world = any_world
    await filled(world)
    states = await cached(world)
    foreign = states[1].cells
    await world.cache.remove(NAMES[:4])
    planted = [Token(1, 0, 3), Token(1, 0, 2), Token(1, 0, 99), Token(3, 7, 1)]
    await world.cache.apply([whole(name, token, foreign) for name, token in zip(NAMES, planted, strict=False)])
    await world.cache.remove([NAMES[4]])
    done = await rebuilder(world).run("t")
    assert (done.agents, done.agents_cut, done.events_done, done.failures) == (5, 5, 15, 0)
    report = await check_cache(world.store, world.cache, world.vault)
    assert (report.same, report.ok) == (5, True)


async def test_a_projector_that_knows_only_the_old_states_goes_on_with_the_new_ones(any_world: World) -> None:
    world = any_world
    zombie = world.projector()
    for _, agent in NAMES:
        await world.talk(agent, 3)
    await world.publish()
    await zombie.drain()
    done = await rebuilder(world).run("t")
    for _, agent in NAMES:
        await world.talk(agent, 2)
    await world.publish()
    await zombie.drain()
    await zombie.close()
    assert {(state.build, state.token.version) for state in await cached(world)} == {(done.number, 5)}
    report = await check_cache(world.store, world.cache, world.vault)
    assert (report.same, report.ok) == (5, True)


async def test_one_agent_is_rebuilt_by_itself_and_one_that_cannot_be_folded_keeps_what_it_has(world: World) -> None:
    await filled(world)
    number = await rebuilder(world).number()
    await rebuilder(world).one(await world.vault.record(*NAMES[0]), number)
    assert [state.build > 0 for state in await cached(world)] == [True, False, False, False, False]
    connection = world.store._write_connection
    assert connection is not None
    key = (await world.vault.record(*NAMES[1])).agent_key
    await world.store._writer.run(lambda: connection.execute("DROP TRIGGER events_are_never_changed").fetchall())
    statement = f"UPDATE events SET payload = x'00' WHERE agent_key = {key} AND version = 2"
    await world.store._writer.run(lambda: connection.execute(statement).fetchall())
    with pytest.raises(IntegrityError):
        await rebuilder(world).one(await world.vault.record(*NAMES[1]), number)
    done = await rebuilder(world).run("t")
    assert (done.phase, done.failures, len(done.problems), done.problems[0].startswith("t/b: ")) == ("done", 1, 1, True)
    assert [state.build == done.number for state in await cached(world)] == [True, False, True, True, True]


class Gate(MemoryCache):
    """A cache whose next write into a build waits for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def build(self, number: int, writes: Any) -> list[Token | None]:
        if not self.reached.is_set():
            self.reached.set()
            await self.opened.wait()
        return await super().build(number, writes)


@pytest.fixture
async def gated(world: World) -> tuple[World, Gate]:
    gate = Gate()
    world.cache = gate
    await filled(world)
    return world, gate


async def test_a_second_rebuild_waits_for_its_turn_and_one_that_stood_still_is_fenced(gated: tuple[World, Gate]) -> None:
    world, gate = gated
    first = asyncio.create_task(rebuilder(world).run("t"))
    await gate.reached.wait()
    with pytest.raises(Conflict, match="another process rebuilds"):
        await rebuilder(world).run("t")
    await lapse(world)
    done = await rebuilder(world).run("t")
    assert done.phase == "done"
    gate.opened.set()
    with pytest.raises(Fenced):
        await first
    # What the late one has built meanwhile is of a build that is over: nothing of it is ever read.
    assert {state.build for state in await cached(world)} == {done.number}
    assert (await rebuilder(world).run("t")).number > done.number


async def test_an_aborted_rebuild_leaves_nothing_and_what_was_read_is_read_on(gated: tuple[World, Gate]) -> None:
    world, gate = gated
    before = await cached(world)
    running = asyncio.create_task(rebuilder(world).run("t"))
    await gate.reached.wait()
    build, works = await rebuilder(world).status()
    assert (build.phase, build.agents, build.events, works) == ("building", 5, 15, True)
    await rebuilder(world).abort()
    gate.opened.set()
    with pytest.raises(Conflict, match="aborted"):
        await running
    assert await cached(world) == before
    assert await world.cache.built(build.number, NAMES) == [None] * 5
    with pytest.raises(NotFound):
        await rebuilder(world).abort()
    build, works = await rebuilder(world).status()
    assert (build.phase, build.cleaned, works) == ("aborted", True, False)


async def test_what_an_interrupted_rebuild_built_is_cut_over_by_the_next_and_of_other_agents_removed(
    gated: tuple[World, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REBUILD_PAGE_AGENTS", 2)
    world, gate = gated
    gate.reached.set()

    async def dies(number: int, writes: list[CellWrite]) -> list[Token | None]:
        if writes[0].agent == "c":
            raise asyncio.CancelledError
        return await MemoryCache.build(gate, number, writes)

    monkeypatch.setattr(gate, "build", dies)
    with pytest.raises(asyncio.CancelledError):
        await rebuilder(world).run("t")
    left, _ = await rebuilder(world).status()
    assert (left.phase, left.agents_done, left.after) == ("building", 2, ("t", "b"))
    assert (await gate.built(left.number, NAMES)).count(None) < 5
    monkeypatch.undo()
    # The same agents: it goes on where that one stood.
    done = await rebuilder(world).run("t")
    assert (done.number, done.agents_done, done.agents_cut) == (left.number, 5, 5)
    assert {state.build for state in await cached(world)} == {left.number}
    # Other agents: what is left is removed first.
    monkeypatch.setattr(gate, "build", dies)
    with pytest.raises(asyncio.CancelledError):
        await rebuilder(world).run("t")
    monkeypatch.undo()
    left, _ = await rebuilder(world).status()
    done = await rebuilder(world).run()
    assert (done.number > left.number, done.phase) == (True, "done")
    assert await gate.built(left.number, NAMES) == [None] * 5
