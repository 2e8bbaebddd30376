"""Where an id can be: segments of the Postgres log, each of whose indexes knows its own ids only."""

from __future__ import annotations

import random
from typing import NamedTuple
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.log import postgres_segments
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import SealedEvent

SIZE = 5
PARTITION = 3
ANY_ROW = SealedEvent("t", "a", 1, 1, PARTITION, 1, 1, 0, UUID(int=0), "x", 0, None, None, None, None, None, bytes(32), b"")


class _Written(NamedTuple):
    id: UUID
    offset: int


def _id(chance: random.Random, time_ms: int) -> UUID:
    """A UUIDv7 of that time."""
    return UUID(int=time_ms << 80 | 7 << 76 | chance.getrandbits(76))


def _missed(seed: int, writers: int) -> list[tuple[_Written, int]]:
    """Ids that a writer would neither look for nor be refused, over a log that several write to; empty where all is well."""
    chance = random.Random(seed)
    views = [Segments(SIZE) for _ in range(writers)]
    log: list[_Written] = []
    missed = []
    clock_us = 1_800_000_000_000_000
    for _ in range(120):
        clock_us += chance.choice((1_000, 500_000, 3_000_000, 20_000_000))
        view = views[chance.randrange(writers)]
        end, count = len(log), chance.choice((1, 1, 2, 4))
        since_ms = view.look_before_ms(PARTITION, end, count)
        for event in log:  # each could be one that is appended again now
            number = event.id.int
            looked_for = number >> 76 & 0xF != 7 or number >> 80 < since_ms
            refused = view.of(event.offset) == view.of(end + 1) == view.of(end + count)
            if not refused and not (looked_for and view.first_for(PARTITION, event.id) <= view.of(event.offset)):
                missed.append((event, end))
        ahead_ms = int(limits.ID_CLOCK_MARGIN_S * 1000)
        for offset in range(end + 1, end + count + 1):
            # As the log takes them: from long ago to the margin ahead of its clock, which a writer may see a second late.
            time_ms = clock_us // 1000 + chance.choice((-3_600_000, -5_000, 0, ahead_ms))
            log.append(_Written(_id(chance, time_ms) if chance.random() < 0.9 else UUID(int=chance.getrandbits(128), version=4), offset))
        rows = [msgspec.structs.replace(ANY_ROW, offset=each.offset, id=each.id, time_us=clock_us) for each in log[end:]]
        view.note(rows, clock_us + 1_000_000 * (chance.random() < 0.3))
    return missed


def test_whoever_wrote_an_id_it_is_looked_for_or_refused() -> None:
    for seed in range(40):
        assert _missed(seed, writers=1 + seed % 3) == []


def test_the_time_after_which_an_id_is_sure_is_needed() -> None:
    before = postgres_segments.SURE_AFTER_MS
    postgres_segments.SURE_AFTER_MS = 0
    try:
        assert any(_missed(seed, writers=2) for seed in range(10))
    finally:
        postgres_segments.SURE_AFTER_MS = before


def test_a_segment_that_another_process_began_is_young_for_no_longer_than_an_own_one() -> None:
    chance, view, clock_us = random.Random(0), Segments(SIZE), 1_800_000_000_000_000
    assert view.look_before_ms(PARTITION, SIZE + 1, 1) == postgres_segments.LOOK_FOR_ALL
    view.note([msgspec.structs.replace(ANY_ROW, offset=SIZE + 2)], clock_us)
    later = _id(chance, clock_us // 1000 + postgres_segments.SURE_AFTER_MS)
    assert view.look_before_ms(PARTITION, SIZE + 2, 1) == later.int >> 80
    assert (view.first_for(PARTITION, later), view.first_for(PARTITION, _id(chance, clock_us // 1000))) == (1, 0)


def test_a_writer_that_is_alone_looks_for_no_new_id_however_fast_segments_fill() -> None:
    chance, view, clock_us = random.Random(0), Segments(SIZE), 1_800_000_000_000_000
    for end in range(0, 40 * SIZE, 2):
        ids = [_id(chance, clock_us // 1000 + end) for _ in range(2)]
        assert view.look_before_ms(PARTITION, end, 2) <= ids[0].int >> 80, end
        rows = [msgspec.structs.replace(ANY_ROW, offset=end + number, id=id) for number, id in enumerate(ids, 1)]
        view.note(rows, clock_us + 1_000 * end)
        assert view.first_for(PARTITION, _id(chance, clock_us // 1000 + end + 1)) == view.of(end + 2)
    # Somebody else has written in between: for a while ids are looked for as ever.
    view.note([msgspec.structs.replace(ANY_ROW, offset=41 * SIZE + 1, id=ids[0])], clock_us + 1_000 * end)
    assert view.look_before_ms(PARTITION, 41 * SIZE + 1, 1) == clock_us // 1000 + end + postgres_segments.SURE_AFTER_MS
