"""The append of the Postgres log.

A writer that has the log to itself needs one round trip: `append_events` locks, inserts and commits, and the unique index on the offset
refuses when somebody else has written since. Where others write too, the lock is taken first, the little tail that they wrote is read under
it, and the rows follow in a second round trip of the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, errors

from perdure import limits
from perdure.engine.log.contract import Position, Proposal, Propose, SealedEvent, StaleWriter, TailEvent
from perdure.engine.log.postgres_arrays import bigints, integers
from perdure.engine.log.postgres_rows import packed_rows
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.steps import reach

__all__ = ["Appender"]

PATIENCE_US = 1_000_000
"""How far events' time may be behind the server's clock when they are inserted."""
ALONE_AFTER = 16
"""Appends without others' events in between after which the writer takes itself to be alone again."""
_APPEND = "SELECT append_events(%b, %b" + ", %b" * 21 + ")"
_LOCK = "SELECT pg_advisory_xact_lock(%b, p.partition) FROM unnest(%b::int4[]) p(partition)"
_CLOCK = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class Appender:
    """The writing connection of one store."""

    def __init__(self, connection: AsyncConnection[Any], lock_space: int, segments: Segments) -> None:
        self._connection = connection
        self._lock_space = lock_space
        self._segments = segments
        self._clock_ahead_us = 0
        self._quiet = ALONE_AFTER
        self._last_segment: dict[int, int] = {}

    def _now_us(self) -> int:
        return time.time_ns() // 1000 + self._clock_ahead_us

    async def synchronise(self) -> None:
        """Learn how far the server's clock is ahead of this machine's."""
        row = await (await self._connection.execute(_CLOCK, binary=True)).fetchone()
        assert row is not None
        self._clock_ahead_us = row[0] - time.time_ns() // 1000

    async def append(self, known: Mapping[int, Position], propose: Propose, ready: Any) -> list[SealedEvent]:
        """As `LogStore.append`; ready: awaited with rows before they are inserted. The rows that were committed."""
        proposal: Proposal | None = None
        if self._quiet >= ALONE_AFTER:
            proposal = propose(self._now_us(), (), {})
            if not proposal.lookups and not proposal.ownership:
                await ready(proposal.rows)
                if not proposal.rows or await self._try(known, proposal.rows):
                    return proposal.rows
                proposal = None  # refused: somebody else has written, or this writer's clock was wrong
        return await self._append_locked(known, propose, ready, proposal)

    async def _try(self, known: Mapping[int, Position], rows: list[SealedEvent]) -> bool:
        try:
            clock_us = await self._insert(sorted(known), rows)
        except errors.UniqueViolation:
            return False
        if clock_us is None:
            await self.synchronise()
            return False
        return True

    async def _insert(self, partitions: Sequence[int], rows: list[SealedEvent]) -> int | None:
        now_us = max(row.time_us for row in rows)
        hints = self._hints(rows)
        values = (
            self._lock_space,
            integers(partitions),
            now_us,
            PATIENCE_US,
            *packed_rows(rows),
            bigints([agent for agent, _, _ in hints]),
            integers([segment for _, segment, _ in hints]),
            bigints([version for _, _, version in hints]),
        )
        reach("append.before")
        row = await (await self._connection.execute(_APPEND, values, binary=True)).fetchone()
        reach("append.after")
        assert row is not None
        if row[0] is not None:
            self._note(rows, row[0])
        clock_us: int | None = row[0]
        return clock_us

    def _hints(self, rows: Sequence[SealedEvent]) -> list[tuple[int, int, int]]:
        # Segment 0 needs no hint: readers always look there for an agent that was made while it was the newest.
        hints: dict[tuple[int, int], int] = {}
        for row in rows:
            segment = self._segments.of(row.offset)
            if segment and self._last_segment.get(row.agent_key) != segment:
                hints.setdefault((row.agent_key, segment), row.version)
        return [(agent, segment, version) for (agent, segment), version in hints.items()]

    def _note(self, rows: Sequence[SealedEvent], clock_us: int) -> None:
        self._clock_ahead_us = clock_us - time.time_ns() // 1000
        for row in rows:
            segment = self._segments.of(row.offset)
            if segment:
                self._last_segment[row.agent_key] = segment
        if len(self._last_segment) > limits.WRITER_HEADS_MAX:
            self._last_segment.clear()
        self._segments.note(rows)

    async def _append_locked(
        self, known: Mapping[int, Position], propose: Propose, ready: Any, proposal: Proposal | None
    ) -> list[SealedEvent]:
        partitions = sorted(known)
        connection = self._connection
        async with connection.transaction():
            await connection.execute(_LOCK, (self._lock_space, integers(partitions)), binary=True)
            tail = await self._tail(known)
            self._quiet = 0 if tail else self._quiet + 1
            found: dict[tuple[int, UUID], int] = {}
            if proposal is None or tail:
                proposal = propose(self._now_us(), tail, found)
            while new := await self._look_up(proposal, found):
                found.update(new)
                proposal = propose(self._now_us(), (), found)
            if proposal.rows:
                await ready(proposal.rows)
                inserted = await self._insert_locked(partitions, proposal)
                if not inserted:
                    found.update(await self._look_up(proposal, found, everything=True))
                    proposal = propose(self._now_us(), (), found)
                    if proposal.rows and not await self._insert_locked(partitions, proposal):
                        raise StaleWriter
        return proposal.rows

    async def _insert_locked(self, partitions: Sequence[int], proposal: Proposal) -> bool:
        connection = self._connection
        try:
            async with connection.transaction():
                if await self._insert(partitions, proposal.rows) is None:
                    await self.synchronise()
                    raise StaleWriter
                for agent, owner, epoch in proposal.ownership:
                    await connection.execute("UPDATE agents SET owner = %s, epoch = %s WHERE agent_key = %s", (owner, epoch, agent))
        except errors.UniqueViolation:
            return False
        return True

    async def _tail(self, known: Mapping[int, Position]) -> list[TailEvent]:
        # Literal offsets, so that segments are pruned when the statement is planned.
        parts = [
            f'(SELECT partition, "offset", time_us, agent_key, version, epoch, type, chain FROM events_{partition} '  # noqa: S608 - integers
            f'WHERE "offset" > {position.offset} ORDER BY "offset" LIMIT {limits.TAIL_EVENTS_MAX + 1})'
            for partition, position in sorted(known.items())
        ]
        cursor = await self._connection.execute(" UNION ALL ".join(parts).encode(), binary=True, prepare=False)
        tail = [TailEvent(*row) for row in await cursor.fetchall()]
        if len(tail) > limits.TAIL_EVENTS_MAX:
            raise StaleWriter
        tail.sort()
        return tail

    async def _look_up(
        self, proposal: Proposal, found: Mapping[tuple[int, UUID], int], *, everything: bool = False
    ) -> dict[tuple[int, UUID], int]:
        wanted: dict[int, set[tuple[int, UUID]]] = {}
        rows = [(row.partition, row.agent_key, row.id) for row in proposal.rows] if everything else []
        for partition, agent, id in [*proposal.lookups, *rows]:
            if (agent, id) not in found:
                wanted.setdefault(partition, set()).add((agent, id))
        there: dict[tuple[int, UUID], int] = {}
        for partition, pairs in wanted.items():
            statement = f"""SELECT agent_key, id, version FROM events_{partition} WHERE id = ANY(%b)
                            UNION ALL SELECT agent_key, id, version FROM removed_events WHERE agent_key = ANY(%b) AND id = ANY(%b)"""  # noqa: S608
            ids = [id for _, id in pairs]
            values = (ids, [agent for agent, _ in pairs], ids)
            cursor = await self._connection.execute(statement.encode(), values, binary=True, prepare=False)
            there.update({(agent, id): version for agent, id, version in await cursor.fetchall() if (agent, id) in pairs})
        return there
