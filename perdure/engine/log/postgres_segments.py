"""Segments of the Postgres log: which there are, which an offset lies in, and that the next is there before it is needed.

And where an id can be, for a segment's index knows only its own. Invariant: an id that is in the log is in a segment that `first_for` does not leave
out, whichever process wrote it; and one that need not be looked up (`look_before_ms`) is refused by the index of the segment that is written to.
Both rest on two kinds of knowledge, and the better one counts:

- moments at which a segment had begun for sure: the server's clock, read under the partition's lock by an append into it. They are known from the
  first append of this process into the segment, so other processes' segments are young for no longer than one's own;
- what this process has written: where it filled a segment alone, offset by offset (they are dense, so nobody else's event can be between), a later
  id than all of its own is not there. So a lone writer's segments are not young at all, however fast they fill.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from uuid import UUID

import msgspec
from psycopg_pool import AsyncConnectionPool

from perdure import limits
from perdure.engine.log.records import SealedEvent

__all__ = ["Segments"]

LOOK_FOR_ALL = 1 << 60
FIRST_AT_ONCE = 32
"""First segments in one transaction: each takes some ten of the server's table locks."""
SURE_AFTER_MS = int(limits.ID_CLOCK_MARGIN_S * 1000) + 2_000
"""No id was ever appended further ahead of the clock than the margin (and the appender's patience), so one that is newer than a moment at which a
segment had begun, by more than both, is in no segment before that one."""

_NAME = re.compile(r"events_(\d+)_(\d+)")
_EXISTING = """SELECT relname FROM pg_class
               WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname ~ '^events_[0-9]+_[0-9]+$'"""


class _Run(msgspec.Struct, gc=False):
    """The newest offsets of a partition that this process wrote one after the other, as far as they are in one segment. newest_ms: of their ids."""

    segment: int
    first: int
    last: int
    newest_ms: int


class Segments:
    """What this process knows of the segments. size: offsets in one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._newest: dict[int, int] = {}
        # By partition and segment: an id of this unix millisecond or later is in none before that segment.
        self._sure_ms: dict[int, dict[int, int]] = {}
        self._runs: dict[int, _Run] = {}
        self._making: set[asyncio.Task[None]] = set()

    def of(self, offset: int) -> int:
        """The segment of an offset."""
        return (offset - 1) // self.size

    def newest(self, partition: int) -> int:
        """The newest segment of the partition that this process knows."""
        return self._newest.get(partition, -1)

    def following(self, partition: int, offset: int) -> int:
        """The segment in which what follows this offset is looked for: what lies beyond the known ones is not there yet, and the newest one then has
        nothing either."""
        return max(0, min(self.of(offset + 1), self.newest(partition)))

    async def load(self, pool: AsyncConnectionPool) -> None:
        """Learn which segments there are."""
        async with pool.connection() as connection:
            cursor = await connection.execute(_EXISTING)
            for (name,) in await cursor.fetchall():
                match = _NAME.fullmatch(name)
                if match is not None:
                    partition, segment = int(match[1]), int(match[2])
                    self._newest[partition] = max(segment, self.newest(partition))

    async def begin(self, pool: AsyncConnectionPool, partitions: int) -> None:
        """Make the first segment of each partition that has none, many in one transaction: a log is made, or restored, in one breath."""
        missing = [partition for partition in range(partitions) if self.newest(partition) < 0]
        for start in range(0, len(missing), FIRST_AT_ONCE):
            chosen = missing[start : start + FIRST_AT_ONCE]
            async with pool.connection() as connection:
                # In ascending order: two who begin at once wait for each other, and none for ever.
                await connection.execute("SELECT ensure_segment(p, 0, %s) FROM unnest(%s::integer[]) p", (self.size, chosen))
            self._newest.update(dict.fromkeys(chosen, 0))

    async def ensure(self, pool: AsyncConnectionPool, partition: int, segment: int) -> None:
        """Make the partition's segments up to this one."""
        for number in range(self.newest(partition) + 1, segment + 1):
            async with pool.connection() as connection:
                await connection.execute("SELECT ensure_segment(%s, %s, %s)", (partition, number, self.size))
            self._newest[partition] = max(number, self.newest(partition))

    async def ready(self, pool: AsyncConnectionPool, rows: Iterable[SealedEvent]) -> None:
        """Make what these rows need, and the next one ahead of need."""
        for partition, offset in {row.partition: row.offset for row in rows}.items():
            if self.of(offset) > self.newest(partition):
                await self.ensure(pool, partition, self.of(offset))
            elif self.of(offset + self.size // 2) > self.newest(partition):
                ahead = asyncio.create_task(self.ensure(pool, partition, self.newest(partition) + 1), name="perdure-segment")
                self._making.add(ahead)
                ahead.add_done_callback(self._made)

    def _made(self, task: asyncio.Task[None]) -> None:
        self._making.discard(task)
        if not task.cancelled():
            task.exception()  # an append that needs the segment makes it itself, and then reports

    async def close(self) -> None:
        """Wait for what is being made."""
        await asyncio.gather(*self._making, return_exceptions=True)

    def note(self, rows: Sequence[SealedEvent], clock_us: int) -> None:
        """These rows are in; clock_us: the server's clock under the lock, before they were."""
        newest_ms = _newest_ms(rows)
        last = {row.partition: row.offset for row in rows}
        first = {row.partition: row.offset for row in reversed(rows)}
        for partition, end in last.items():
            begin, run = first[partition], self._runs.get(partition)
            if run is not None and run.last + 1 == begin and end <= (run.segment + 1) * self.size:
                run.last, run.newest_ms = end, max(run.newest_ms, newest_ms)  # by far the most
                continue
            while begin <= end:
                run = _Run(self.of(begin), begin, min(end, (self.of(begin) + 1) * self.size), newest_ms)
                self._note_run(partition, run, clock_us // 1000 + SURE_AFTER_MS)
                begin = run.last + 1

    def _note_run(self, partition: int, new: _Run, sure_ms: int) -> None:
        old = self._runs.get(partition)
        if old is not None and old.last + 1 == new.first and old.segment == new.segment:
            old.last, old.newest_ms = new.last, max(old.newest_ms, new.newest_ms)
            return
        self._sure_ms.setdefault(partition, {0: 0}).setdefault(new.segment, min(sure_ms, self._sure_after(partition, new.first - 1)))
        self._runs[partition] = new

    def _sure_after(self, partition: int, offset: int) -> int:
        """The unix millisecond from which on an id is at no offset up to this one, by what this process has written."""
        run = self._runs.get(partition)
        if offset == 0:
            return 0
        if run is None or run.last != offset or run.first != run.segment * self.size + 1:
            return LOOK_FOR_ALL
        return max(self._sure(partition, run.segment), run.newest_ms + 1)

    def _sure(self, partition: int, segment: int) -> int:
        # Where this process has not appended yet, or nobody has: every id is looked up.
        return 0 if segment == 0 else self._sure_ms.get(partition, {}).get(segment, LOOK_FOR_ALL)

    def look_before_ms(self, partition: int, offset: int, count: int) -> int:
        """As `LogStore.look_before_ms`."""
        segment = self.of(offset + 1)
        if self.of(offset + count) != segment:
            return self._sure_after(partition, offset)  # the index of the next segment does not know what stands in this one
        sure_ms = self._sure(partition, segment)
        return sure_ms if sure_ms < LOOK_FOR_ALL else self._sure_after(partition, offset)

    def first_for(self, partition: int, id: UUID) -> int:
        """The first segment of the partition that an id can be in."""
        number = id.int
        if number >> 76 & 0xF != 7:
            return 0  # it tells no time
        for segment, sure_ms in reversed(self._sure_ms.get(partition, {}).items()):  # appends go forward, so the newest is last
            if number >> 80 >= sure_ms:
                return segment
        return 0


def _newest_ms(rows: Sequence[SealedEvent]) -> int:
    """The newest UUIDv7 among the rows' ids, in unix milliseconds; other ids are no later one's equal."""
    numbers = [row.id.int for row in rows]
    newest = max(numbers)
    if newest >> 76 & 0xF != 7:
        newest = max((number for number in numbers if number >> 76 & 0xF == 7), default=0)
    return newest >> 80
