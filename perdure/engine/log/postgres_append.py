"""The append of the Postgres log.

A writer that nobody else came before needs one round trip: `append_events` locks, inserts and commits, and the unique index on the offset
refuses when somebody else has written since. Then, and at once where others come first most of the time, the rows go with `append_after`: it reads
under the lock what others wrote, puts the rows behind it, and tells what it was. That is one round trip, too, for an offset is no part of what an
event is hashed over; only where others wrote to the same agents, or at a later time, everything is decided anew.

What neither settles (refusals, ids that are there already) is decided under a lock that is held over three round trips, while everybody else waits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self
from uuid import UUID

from psycopg import AsyncConnection, errors

from perdure import limits
from perdure.engine.log.contract import Proposal, Propose, StaleWriter
from perdure.engine.log.postgres_arrays import Packed, bigint, bigints, integer, integers
from perdure.engine.log.postgres_behind import BEHIND_MAX, Behind, BehindCalls, owners
from perdure.engine.log.postgres_call import PreparedCall, places
from perdure.engine.log.postgres_hints import SegmentHints
from perdure.engine.log.postgres_ids import look_up
from perdure.engine.log.postgres_rows import packed_row, packed_rows
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import Position, SealedEvent, TailEvent
from perdure.engine.steps import reach
from perdure.errors import IntegrityError

__all__ = ["Appender"]

PATIENCE_US = 1_000_000
"""How far events' time may be behind the server's clock when they are inserted."""
TRIES_MAX = 4
"""How often rows are sent before the lock is taken first."""
CROWDED = 0.25
"""The share of appends that others came before from which on rows go with `append_after` at once: it costs the server twice as much, and a refusal
costs a round trip."""
ALONE = 0.1
"""And the share below which they do not any more."""
WAY_MAX_US = 5_000
"""By how much a time may be ahead for the way to the lock."""
CROWDED_WEIGHT = 1 / 4
"""Of the newest append in that share."""
OFFSET_INDEX = "_offset"
"""How the index on a segment's offsets is called."""
_PARAMETERS, _PARAMETERS_OF_ONE = 23, 19
_APPEND = "SELECT append_events(" + ", ".join(["%b"] * _PARAMETERS) + ")"
_LOCK = """BEGIN; SELECT pg_advisory_xact_lock({space}, p.partition) FROM unnest(ARRAY{partitions}) p(partition);
SELECT EXISTS (SELECT FROM unnest(ARRAY{partitions}, ARRAY{offsets}::bigint[]) n(partition, known)
  JOIN floors f ON f.partition = n.partition AND f."offset" > n.known)"""
_APPEND_OWNED = f"""WITH done AS MATERIALIZED ({_APPEND} AS clock_us), given AS (
    UPDATE agents a SET owner = n.owner, epoch = n.epoch FROM done, unnest(%b, %b, %b) n(agent_key, owner, epoch)
    WHERE a.agent_key = n.agent_key AND done.clock_us IS NOT NULL)
  SELECT clock_us FROM done"""  # noqa: S608 - constants
_TAIL = (
    '(SELECT partition, "offset", time_us, agent_key, version, epoch, type, chain FROM {table} '
    'WHERE "offset" > {after} ORDER BY "offset" LIMIT {limit})'
)
_TAIL_MAX = limits.TAIL_EVENTS_MAX + 1
_CLOCK = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class Appender:
    """The writing connection of one store; made by `open`."""

    def __init__(self, connection: AsyncConnection[Any], lock_space: int, segments: Segments) -> None:
        self._connection = connection
        self._call = _prepared(connection, "append_events", _PARAMETERS)
        self._call_one = _prepared(connection, "append_event", _PARAMETERS_OF_ONE)
        self._call_behind = BehindCalls(connection, segments)
        self._lock_space = lock_space
        self._segments = segments
        self._clock_ahead_us = 0
        self._way_us = 0
        """How long the last rows that went behind others took to the lock. The next ones get the time at which they arrive there: with the one at
        which they leave they would often be older than what others write meanwhile."""
        self._crowded = 0.0
        self._behind = False
        self._hints = SegmentHints(segments)

    @classmethod
    async def open(cls, connection: AsyncConnection[Any], lock_space: int, segments: Segments) -> Self:
        """An appender on a connection that nobody else uses."""
        appender = cls(connection, lock_space, segments)
        await appender._call.prepare()
        await appender._call_one.prepare()
        await appender._call_behind.prepare()
        await appender.synchronise()
        return appender

    def _now_us(self, *, behind: bool = False) -> int:
        return time.time_ns() // 1000 + self._clock_ahead_us + (self._way_us if behind else 0)

    async def synchronise(self) -> None:
        """Learn how far the server's clock is ahead of this machine's."""
        row = await (await self._connection.execute(_CLOCK, binary=True)).fetchone()
        assert row is not None
        self._clock_ahead_us = row[0] - time.time_ns() // 1000

    async def append(self, known: Mapping[int, Position], propose: Propose, ready: Any) -> list[SealedEvent]:
        """As `LogStore.append`; ready: awaited with rows before they are inserted. The rows that were committed."""
        proposal: Proposal | None = None
        tail: Sequence[TailEvent] = ()
        self._behind = self._crowded >= (min(ALONE, CROWDED) if self._behind else CROWDED)
        for again in range(TRIES_MAX):
            behind = bool(again) or self._behind
            proposal = propose(self._now_us(behind=behind), tail, {})
            known, tail = _after(known, tail), ()
            found: dict[tuple[int, UUID], int] = {}
            if not proposal.refused:
                # Without the lock: what is found is there for good; and what others write to these agents before the rows are in refuses them.
                proposal = await self._settled(propose, proposal, found, behind=behind)
            if proposal.refused:
                proposal = None if found else proposal
                break
            await ready(proposal.rows)
            if not proposal.rows:
                return []
            _check_follows(known, proposal.rows)
            if not (behind or proposal.ownership):
                if await self._try(known, proposal):
                    self._came_first(others=False)
                    return proposal.rows
                proposal = None  # somebody else has written, or this writer's clock was wrong
                continue
            try:
                done = await self._put_behind(known, proposal)
            except errors.UniqueViolation as problem:
                if not (problem.diag.constraint_name or "").endswith(OFFSET_INDEX):
                    break  # ids that are there already
                proposal = None  # somebody was faster once more
                continue
            except errors.CheckViolation:
                proposal = None  # its segment has only just been attached
                continue
            if done.written:
                self._came_first(others=bool(done.tail))
                return proposal.rows
            proposal, tail = None, done.tail
            if done.clock_us is None:
                await self.synchronise()
            elif not tail:
                raise StaleWriter("events that the writer does not know were removed")
            if len(tail) > BEHIND_MAX:
                break
        return await self._append_locked(known, propose, ready, proposal)

    async def _put_behind(self, known: Mapping[int, Position], proposal: Proposal) -> Behind:
        known = dict(sorted(known.items()))
        values = self._values(list(known), proposal.rows)
        reach("append.before")
        left_us = self._now_us()
        done = await self._call_behind(known, proposal, values)
        reach("append.after")
        if done.clock_us is not None:
            self._way_us = max(0, min(done.clock_us - left_us, WAY_MAX_US))
        if done.written and done.clock_us is not None:
            done.put(proposal, known)
            self._note(proposal.rows, done.clock_us)
        return done

    def _came_first(self, *, others: bool) -> None:
        self._crowded += (others - self._crowded) * CROWDED_WEIGHT

    async def _try(self, known: Mapping[int, Position], proposal: Proposal) -> bool:
        try:
            clock_us = await self._insert(sorted(known), proposal)
        except (errors.UniqueViolation, errors.CheckViolation):
            return False
        if clock_us is None:
            await self.synchronise()
            return False
        return True

    async def _insert(self, partitions: Sequence[int], proposal: Proposal) -> int | None:
        reach("append.before")
        clock_us = await self._called(partitions, proposal.rows)
        reach("append.after")
        if clock_us is not None:
            self._note(proposal.rows, clock_us)
        return clock_us

    async def _called(self, partitions: Sequence[int], rows: Sequence[SealedEvent]) -> int | None:
        # Many appends alone are of one event: without arrays it is half the work for the server, and a tenth of it here.
        alone = len(rows) == len(partitions) == 1
        call = self._call_one if alone else self._call
        (answer,) = await call(self._values_of_one(rows[0]) if alone else [value.data for value in self._values(partitions, rows)])
        return None if answer is None else int.from_bytes(answer, "big")

    def _statement(self, partitions: Sequence[int], proposal: Proposal) -> tuple[str, list[Packed]]:
        values = self._values(partitions, proposal.rows)
        if not proposal.ownership:
            return _APPEND, values
        return _APPEND_OWNED, [*values, *owners(proposal)]

    def _values_of_one(self, row: SealedEvent) -> list[bytes | None]:
        hints = self._hints.of((row,))
        place = integer(self._lock_space), integer(row.partition), bigint(row.time_us), bigint(PATIENCE_US)
        return [*(value.data for value in place), *packed_row(row, hints[0][1] if hints else None)]

    def _values(self, partitions: Sequence[int], rows: Sequence[SealedEvent]) -> list[Packed]:
        hints = self._hints.of(rows)
        return [
            integer(self._lock_space),
            integers(partitions),
            bigint(max(row.time_us for row in rows)),
            bigint(PATIENCE_US),
            *packed_rows(rows),
            bigints([agent for agent, _, _ in hints]),
            integers([segment for _, segment, _ in hints]),
            bigints([version for _, _, version in hints]),
        ]

    def _note(self, rows: Sequence[SealedEvent], clock_us: int) -> None:
        self._clock_ahead_us = clock_us - time.time_ns() // 1000
        self._hints.stand()
        self._segments.note(rows, clock_us)

    async def _append_locked(
        self, known: Mapping[int, Position], propose: Propose, ready: Any, proposal: Proposal | None
    ) -> list[SealedEvent]:
        """The longer way: lock, read what others wrote, insert and commit, each one round trip, so that the lock is held no longer than it
        must be. Where the index refuses (ids are there already) it is gone once more, with all ids looked up."""
        for everything in (False, True):
            try:
                tail = await self._lock(known)
                known = _after(known, tail)  # where the next round begins, if there is one: what this tail tells is known then
                self._came_first(others=bool(tail))
                if proposal is None or tail or everything:
                    proposal = propose(self._now_us(), tail, {})
                proposal = await self._settled(propose, proposal, {}, everything=everything)
                await ready(proposal.rows)
                if not proposal.rows:
                    # Not rolled back: the driver drops its prepared statements then.
                    await self._connection.commit()
                elif not await self._insert_locked(sorted(known), proposal):
                    continue
                return proposal.rows
            finally:
                await self._leave()
        raise StaleWriter

    async def _leave(self) -> None:
        """End the transaction, if it has not ended with its commit."""
        if not self._connection.closed:
            await self._connection.rollback()

    async def _insert_locked(self, partitions: Sequence[int], proposal: Proposal) -> bool:
        """Insert and commit; False, and nothing is in, where a unique index refuses."""
        reach("append.before")
        try:
            clock_us = await self._commit(partitions, proposal)
        except (errors.UniqueViolation, errors.CheckViolation):
            return False
        reach("append.after")
        if clock_us is None:
            await self._leave()
            await self.synchronise()
            raise StaleWriter
        self._note(proposal.rows, clock_us)
        return True

    async def _commit(self, partitions: Sequence[int], proposal: Proposal) -> int | None:
        # Where the server finds the time too old it inserts nothing, and an empty transaction is committed.
        async with self._connection.pipeline():
            cursor = await self._connection.execute(*self._statement(partitions, proposal), binary=True)
            await self._connection.execute("COMMIT")
        return _single(await cursor.fetchone())

    async def _lock(self, known: Mapping[int, Position]) -> list[TailEvent]:
        """Begin, lock the partitions, and what others wrote in them."""
        connection = self._connection
        # One message, and not a pipeline: after one, the server does not count the time that a session stands idle in its transaction, and a
        # writer that is cut off just then would keep the lock from all others for as long as nobody ends its session.
        places = sorted((int(partition), int(position.offset)) for partition, position in known.items())
        lock = _LOCK.format(
            space=int(self._lock_space), partitions=[partition for partition, _ in places], offsets=[offset for _, offset in places]
        )
        cursor = await connection.execute(lock.encode(), prepare=False)
        reach("append.locked")
        while cursor.nextset():
            pass
        if (await cursor.fetchone()) != (False,):
            raise StaleWriter("events that the writer does not know were removed")
        return await self._tail(known)

    async def _tail(self, known: Mapping[int, Position]) -> list[TailEvent]:
        """What others wrote since, in order of partition and offset. Offsets are given under the lock: none comes before one that is there."""
        connection = self._connection
        cursor = await connection.execute(*self._tail_in_segments(known), binary=True)
        rows = await cursor.fetchall()
        if any(row[1] % self._segments.size == 0 for row in rows):
            # It goes on in a later segment. Literal offsets, so that segments are pruned when the statement is planned.
            cursor = await connection.execute(_tail_in_partitions(known), binary=True, prepare=False)
            rows = await cursor.fetchall()
        if len(rows) > limits.TAIL_EVENTS_MAX:
            raise StaleWriter
        return sorted(map(TailEvent._make, rows))

    def _tail_in_segments(self, known: Mapping[int, Position]) -> tuple[bytes, list[Packed]]:
        """Reads each partition's tail within its segment. The statement stays the same until segments change, so it is planned once."""
        parts = []
        for partition, position in sorted(known.items()):
            segment = self._segments.of(position.offset + 1)
            table = f"events_{partition}_{segment}" if segment <= self._segments.newest(partition) else f"events_{partition}"
            parts.append(_TAIL.format(table=table, after="%b", limit=_TAIL_MAX))
        return " UNION ALL ".join(parts).encode(), [bigint(known[partition].offset) for partition in sorted(known)]

    async def _settled(
        self,
        propose: Propose,
        proposal: Proposal,
        found: dict[tuple[int, UUID], int],
        *,
        everything: bool = False,
        behind: bool = False,
    ) -> Proposal:
        """What becomes of a proposal with the ids that are there already; they go into `found`."""
        while new := await look_up(self._connection, self._segments, proposal, found, everything=everything):
            found.update(new)
            proposal = propose(self._now_us(behind=behind), (), found)
        return proposal


def _prepared(connection: AsyncConnection[Any], function: str, parameters: int) -> PreparedCall:
    return PreparedCall(connection, function, f"SELECT {function}({places(parameters)})", parameters)


def _check_follows(known: Mapping[int, Position], rows: Sequence[SealedEvent]) -> None:
    """Whoever proposes goes by the same positions as the server is asked with; else there would be a hole."""
    for partition, offset in {row.partition: row.offset for row in reversed(rows)}.items():
        if offset != known[partition].offset + 1:
            raise IntegrityError(f"offset {offset} does not follow {known[partition].offset}", partition=partition)


def _after(known: Mapping[int, Position], tail: Sequence[TailEvent]) -> dict[int, Position]:
    return {**known, **{event.partition: Position(event.offset, event.time_us) for event in tail}}


def _tail_in_partitions(known: Mapping[int, Position]) -> bytes:
    parts = [
        _TAIL.format(table=f"events_{partition}", after=position.offset, limit=_TAIL_MAX) for partition, position in sorted(known.items())
    ]
    return " UNION ALL ".join(parts).encode()


def _single(row: Sequence[Any] | None) -> int | None:
    assert row is not None, "a function has a result"
    value: int | None = row[0]
    return value
