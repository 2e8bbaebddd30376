"""A projection of one's own is rebuilt while it goes on: one cut-over, nothing missing in what is read, whatever dies on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from perdure.client.projections import CurrentProjections
from perdure.engine import steps
from perdure.engine.event import RecordedEvent
from perdure.engine.upcasters import UpcasterRegistry
from perdure.errors import Conflict, NotFound, ProjectionNotFound
from perdure.projections.builds import Build
from perdure.projections.custom import Handler
from tests.fix_projections import World

NAME = "counts"


class Tables:
    """Counts of events by agent, in numbered builds; an event counts once, by its place in the log."""

    def __init__(self) -> None:
        self.builds: dict[int, dict[tuple[int, int], str]] = {0: {}}
        self.active = 0
        self.failing = False

    async def handler(self, events: Sequence[RecordedEvent]) -> None:
        await self._fill(self.active, events)

    async def begin(self, number: int) -> Handler:
        self.builds.setdefault(number, {})

        async def fill(events: Sequence[RecordedEvent]) -> None:
            if self.failing:
                raise ZeroDivisionError("by nothing")
            await self._fill(number, events)

        return fill

    async def cut_over(self, number: int) -> None:
        self.active = max(self.active, number)

    async def discard(self, number: int) -> None:
        assert number != self.active
        self.builds.pop(number, None)

    async def _fill(self, number: int, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            self.builds[number][event.partition, event.offset] = event.agent

    def count(self) -> int:
        """How many events what is read knows."""
        return len(self.builds[self.active])


def projections(world: World, tables: Tables) -> CurrentProjections:
    """As a process of its own has them."""
    made = CurrentProjections(world.store, world.new_vault(), UpcasterRegistry())
    made.register(NAME, tables.handler)
    return made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.projections.custom_rebuild.BATCH_EVENTS_MAX", 3)
    monkeypatch.setattr("perdure.projections.custom_rebuild.CATCHING_UP_EVENTS", 5)


@pytest.fixture
def dies() -> Iterator[Callable[[str], None]]:
    """Let the rebuild break off where a step is reached, as a process that is killed there."""

    def at(step: str) -> None:
        def hook(reached: str) -> None:
            if reached == step:
                raise KilledError(step)

        steps.install(hook)

    yield at
    steps.install(None)


class KilledError(BaseException):
    """Stands for the end of a process."""


async def lapse(world: World) -> None:
    for lease in await world.store.list_leases("projection"):
        await world.store.release_lease(lease)


async def test_a_projection_goes_on_while_it_is_rebuilt(world: World, small: None) -> None:
    tables, stop, seen = Tables(), asyncio.Event(), 0
    live = projections(world, tables)
    for agent in "abc":
        await world.talk(agent, 10)
    await live.drain(NAME)
    tables.builds[0].popitem()  # something that the projection got wrong

    async def write_and_read() -> None:
        nonlocal seen
        while not stop.is_set():
            await world.add("a")
            assert tables.count() >= seen, "what is read went back"
            seen = tables.count()
            await asyncio.sleep(0)

    progress: list[Build] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(live.run(stop))
        group.create_task(write_and_read())
        done = await projections(world, tables).rebuild(NAME, tables, progress.append)
        stop.set()
    assert (done.phase, tables.active, progress[0].events > 0) == ("done", done.number, True)
    assert (await live.status(NAME)).paused is False
    await live.drain(NAME)
    assert tables.count() == sum(each.offset for each in (await world.store.positions()).values())
    assert [each.name for each in await world.store.list_documents(f"projection-build/{NAME}")] == ["build", "build-number"]
    with pytest.raises(ProjectionNotFound):
        await live.rebuild("nobody", tables)


@pytest.mark.parametrize("step", ["page_built", "decided", "cut_over"])
async def test_a_rebuild_that_dies_is_gone_on_with(world: World, small: None, dies: Any, step: str) -> None:
    tables = Tables()
    live = projections(world, tables)
    await world.talk("a", 10)
    await live.drain(NAME)
    dies(f"projection.{step}")
    with pytest.raises(KilledError):
        await projections(world, tables).rebuild(NAME, tables)
    assert tables.count() == 10
    steps.install(None)
    await lapse(world)
    left = await live.rebuild_status(NAME)
    await world.talk("b", 4)
    done = await projections(world, tables).rebuild(NAME, tables)
    assert (done.number, done.phase, tables.active) == (left.number, "done", left.number)
    await live.drain(NAME)
    assert tables.count() == 14


async def test_what_fails_or_is_aborted_is_never_read(world: World, small: None, dies: Any) -> None:
    tables = Tables()
    live = projections(world, tables)
    await world.talk("a", 10)
    await live.drain(NAME)
    tables.failing = True
    with pytest.raises(ZeroDivisionError):
        await live.rebuild(NAME, tables)
    assert (tables.active, (await live.status(NAME)).paused) == (0, False)
    tables.failing = False
    number = (await live.abort_rebuild(NAME)).number
    with pytest.raises(NotFound):
        await live.abort_rebuild(NAME)
    done = await live.rebuild(NAME, tables)
    assert number not in tables.builds
    assert (tables.active, tables.count()) == (done.number, 10)
    # Aborted while it runs: it notices at its next page.
    aborting = asyncio.Event()

    def abort(_: Build) -> None:
        aborting.set()

    class Slow(Tables):
        async def _fill(self, number: int, events: Sequence[RecordedEvent]) -> None:
            if aborting.is_set() and not task.done() and number != self.active:
                await projections(world, tables).abort_rebuild(NAME)
                aborting.clear()
            await super()._fill(number, events)

    slow = Slow()
    task = asyncio.create_task(live.rebuild(NAME, slow, abort))
    with pytest.raises(Conflict, match="aborted"):
        await task
    assert (slow.active, list(slow.builds)) == (0, [0])
    assert (await live.status(NAME)).paused is False
