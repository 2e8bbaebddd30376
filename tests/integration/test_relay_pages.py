"""A partition's next events come from the look that is common to all, or from pages of its own: none is left out, none comes twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.engine.log.records import SealedEvent
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.relay_pages import PAGE_BYTES, TAIL_EVENT_BYTES, TAIL_EVENTS, Pages
from perdure.testing.log_filling import fill


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path, partitions=1)
    yield opened
    await opened.close()


async def told(store: SqliteStore, pages: Pages) -> None:
    pages.tell((await store.positions())[0])


async def look(store: SqliteStore, pages: Pages) -> list[SealedEvent]:
    after = pages.tail_after
    events = [] if after is None else await store.read_tails({0: after}, TAIL_EVENTS)
    if events:
        pages.feed(events)
    return events


def offsets(events: list[SealedEvent]) -> list[int]:
    return [event.offset for event in events]


async def test_far_behind_it_reads_by_itself_and_near_the_end_it_is_fed(store: SqliteStore) -> None:
    await fill(store, 0, 3_000)
    pages = Pages(store, 0, 1_000)
    await told(store, pages)
    position = 0
    while position < 3_000:
        events = await pages.next(position)
        assert offsets(events) == list(range(position + 1, position + 1 + len(events)))
        position = events[-1].offset
    assert await pages.next(position) == []
    assert pages.tail_after == 3_000
    await fill(store, 0, 5)
    assert not pages.ready(position)
    await look(store, pages)
    assert pages.ready(position)
    assert offsets(await pages.next(position)) == [3_001, 3_002, 3_003, 3_004, 3_005]


async def test_a_near_partition_waits_for_the_common_look_unless_it_shall_be_alone(store: SqliteStore) -> None:
    await fill(store, 0, 5)
    pages = Pages(store, 0, 1_000)
    await told(store, pages)
    assert pages.ready(0)  # it does not know yet that it is near
    assert await pages.next(0) == []
    assert not pages.ready(0)
    assert offsets(await pages.next(0, alone=True)) == [1, 2, 3, 4, 5]


async def test_what_a_look_brings_late_is_left(store: SqliteStore) -> None:
    await fill(store, 0, 5)
    pages = Pages(store, 0, 1_000)
    await told(store, pages)
    await pages.next(0)
    late = await store.read_tails({0: 0}, TAIL_EVENTS)
    assert offsets(await pages.next(0, alone=True)) == [1, 2, 3, 4, 5]
    pages.feed(late)
    assert await pages.next(5) == []
    assert pages.tail_after == 5


async def test_a_look_with_a_hole_makes_it_read_by_itself(store: SqliteStore) -> None:
    await fill(store, 0, 5)
    pages = Pages(store, 0, 1_000)
    await pages.next(0)
    events = await store.read(0, 0, 5)
    pages.feed([*events[:2], *events[3:]])
    assert pages.ready(0)
    assert offsets(await pages.next(0)) == [1, 2, 3, 4, 5]


async def test_a_position_that_went_back_forgets_what_was_fed(store: SqliteStore) -> None:
    await fill(store, 0, 5)
    pages = Pages(store, 0, 1_000)
    await pages.next(0)
    await look(store, pages)
    assert offsets(await pages.next(0)) == [1, 2, 3, 4, 5]
    await fill(store, 0, 3)
    await look(store, pages)
    assert await pages.next(2) == []
    await look(store, pages)
    assert offsets(await pages.next(2)) == [3, 4, 5, 6, 7, 8]


async def test_large_events_are_read_page_by_page(store: SqliteStore) -> None:
    size_bytes = 2 * TAIL_EVENT_BYTES
    await fill(store, 0, 40, bytes(size_bytes))
    pages = Pages(store, 0, 1_000)
    await told(store, pages)
    position = len(await pages.next(0, alone=True))
    while position < 40:
        assert pages.tail_after is None
        events = await pages.next(position)
        assert len(events) <= PAGE_BYTES // size_bytes
        position = events[-1].offset
    await pages.forget()
