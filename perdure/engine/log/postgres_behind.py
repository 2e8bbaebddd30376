"""Rows that go behind whatever others have written meanwhile, in one round trip.

An offset is no part of what an event is hashed over, and what others write to other agents changes nothing about these: so the server may give
the offsets, under the lock, and tells what it has put the rows behind. Where that would not be true (`append_after` in `sql/postgres`),
nothing is written, and what others wrote is told all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace
from psycopg import AsyncConnection

from perdure.engine.log.contract import Proposal
from perdure.engine.log.postgres_arrays import Packed, bigints, integer, integers, texts, unpacked, unpacked_numbers
from perdure.engine.log.postgres_call import PreparedCall, places
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import Position, TailEvent

__all__ = ["BEHIND_MAX", "Behind", "BehindCalls", "owners"]

BEHIND_MAX: Final = 1_000
"""Events of others that rows are put behind; more are read in pages."""
_PARAMETERS: Final = 27
_SQL: Final = f"SELECT * FROM append_after({places(_PARAMETERS)})"  # noqa: S608 - constants
# Owners change in the same statement: it is one round trip for a hand-over, for which an agent stands still, and one for the hundreds of a take-over.
# An agent's owner and epoch change with an event of the agent, under the partition's lock: where they changed since the statement began, nothing was
# written.
_SQL_OWNED: Final = f"""WITH done AS MATERIALIZED ({_SQL}), given AS (
    UPDATE agents a SET owner = n.owner, epoch = n.epoch
    FROM done, unnest(${_PARAMETERS + 1}::bigint[], ${_PARAMETERS + 2}::text[], ${_PARAMETERS + 3}::integer[]) n(agent_key, owner, epoch)
    WHERE a.agent_key = n.agent_key AND done.written)
  SELECT * FROM done"""  # noqa: S608 - constants


class Behind(NamedTuple):
    """What came of it. clock_us: the server's, None when the writer's was wrong. tail: what others wrote, in order of partition and offset."""

    clock_us: int | None
    written: bool
    tail: list[TailEvent]

    def put(self, proposal: Proposal, known: Mapping[int, Position]) -> None:
        """Let the proposal tell where its rows are. known: where the partitions stood for who proposed."""
        if self.tail:
            by = {event.partition: event.offset - known[event.partition].offset for event in self.tail}
            proposal.rows[:] = [replace(row, offset=row.offset + by.get(row.partition, 0)) for row in proposal.rows]
            proposal.behind = self.tail


class BehindCalls:
    """On the writing connection."""

    def __init__(self, connection: AsyncConnection[Any], segments: Segments) -> None:
        self._segments = segments
        self._plain = PreparedCall(connection, "append_after", _SQL, _PARAMETERS)
        self._owned = PreparedCall(connection, "append_after_owned", _SQL_OWNED, _PARAMETERS + 3)

    async def prepare(self) -> None:
        """Once for a connection."""
        await self._plain.prepare()
        await self._owned.prepare()

    async def __call__(self, known: Mapping[int, Position], proposal: Proposal, values: Sequence[Packed]) -> Behind:
        """known: in order of partition. values: as of `append_events`. Raises UniqueViolation where ids or versions are there already."""
        segments = [self._segments.following(partition, position.offset) for partition, position in known.items()]
        lock, partitions, *others = values
        place = [
            lock,
            partitions,
            bigints([position.offset for position in known.values()]),
            integers(segments),
            bigints([(segment + 1) * self._segments.size for segment in segments]),
            integer(BEHIND_MAX),
        ]
        call, more = (self._owned, owners(proposal)) if proposal.ownership else (self._plain, [])
        return _behind(await call([value.data for value in (*place, *others, *more)]))


def owners(proposal: Proposal) -> list[Packed]:
    """(agents, owners, epochs): of each agent the last."""
    last = {agent: (owner, epoch) for agent, owner, epoch in proposal.ownership}
    return [bigints(list(last)), texts([owner for owner, _ in last.values()]), integers([epoch for _, epoch in last.values()])]


def _behind(row: Sequence[bytes | None]) -> Behind:
    clock, written, partition, offset, time_us, agent_key, version, epoch, type, chain = row
    columns = [unpacked_numbers(each) for each in (partition, offset, time_us, agent_key, version, epoch)]
    types = [each.decode() for each in unpacked(type)]
    tail = sorted(map(TailEvent._make, zip(*columns, types, unpacked(chain), strict=True)))
    return Behind(None if clock is None else int.from_bytes(clock, "big"), written == b"\1", tail)
