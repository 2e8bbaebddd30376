"""Segments of the Postgres log: which there are, which an offset lies in, and that the next is there before it is needed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from psycopg_pool import AsyncConnectionPool

from perdure import limits
from perdure.engine.log.contract import SealedEvent

__all__ = ["Segments"]

LOOK_FOR_ALL = 1 << 60
SURE_AFTER_MS = int(limits.ID_CLOCK_MARGIN_S * 1000) + 2_000
"""No id was ever appended further ahead of the clock than the margin (and the appender's patience), so one that is newer than a segment's
beginning by more than both was not in the log before it."""

_NAME = re.compile(r"events_(\d+)_(\d+)")
_EXISTING = """SELECT relname FROM pg_class
               WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname ~ '^events_[0-9]+_[0-9]+$'"""


class Segments:
    """What this process knows of the segments. size: offsets in one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._newest: dict[int, int] = {}
        self._started_us: dict[tuple[int, int], int] = {}
        self._making: set[asyncio.Task[None]] = set()

    def of(self, offset: int) -> int:
        """The segment of an offset."""
        return (offset - 1) // self.size

    def newest(self, partition: int) -> int:
        """The newest segment of the partition that this process knows."""
        return self._newest.get(partition, -1)

    async def load(self, pool: AsyncConnectionPool) -> None:
        """Learn which segments there are."""
        async with pool.connection() as connection:
            cursor = await connection.execute(_EXISTING)
            for (name,) in await cursor.fetchall():
                match = _NAME.fullmatch(name)
                if match is not None:
                    partition, segment = int(match[1]), int(match[2])
                    self._newest[partition] = max(segment, self.newest(partition))

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

    def note(self, rows: Iterable[SealedEvent]) -> None:
        """Remember when segments began."""
        for row in rows:
            if (row.offset - 1) % self.size == 0:
                self._started_us[row.partition, self.of(row.offset)] = row.time_us

    def look_before_ms(self, partition: int, offset: int, count: int) -> int:
        """As `LogStore.look_before_ms`."""
        segment = self.of(offset + 1)
        if self.of(offset + count) != segment:
            return LOOK_FOR_ALL  # the index of the next segment does not know what stands in this one
        if segment == 0:
            return 0
        started_us = self._started_us.get((partition, segment))
        # A segment that another process began, or that is about to begin: every id is looked up.
        return started_us // 1000 + SURE_AFTER_MS if started_us is not None else LOOK_FOR_ALL
