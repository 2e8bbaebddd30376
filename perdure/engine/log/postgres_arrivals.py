"""Taking agents in from another engine, in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection

from perdure import limits
from perdure.engine.log.arrival_rows import Room, Settling, check_runs, other_owner
from perdure.engine.log.contract import AgentRecord, SealedEvent
from perdure.engine.log.postgres_arrays import bigints, integers
from perdure.engine.log.postgres_call import answered_within
from perdure.engine.log.postgres_control import PostgresControl
from perdure.engine.log.postgres_copy import copy_data
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.signal import SignalHub

__all__ = ["PostgresArrivals"]

_BEGIN: Final = "BEGIN; SELECT pg_advisory_xact_lock({space:d}, {partition:d})"
_CLOCK: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
# One statement under the lock: who is still marked becomes what the events make of it, and says where it and the partition stand.
_SETTLE: Final = """UPDATE agents a SET owner = %b, epoch = n.epoch FROM unnest(%b, %b) n(agent_key, epoch)
    WHERE a.agent_key = n.agent_key AND a.owner = %b
    RETURNING a.agent_key, greatest(
      (SELECT e.version FROM events_{partition:d} e WHERE e.agent_key = a.agent_key ORDER BY e.version DESC LIMIT 1),
      (SELECT f.version - 1 FROM floors f WHERE f.agent_key = a.agent_key), a.parent_version, 0)::bigint,
      coalesce((SELECT "offset" FROM events_{partition:d} ORDER BY "offset" DESC LIMIT 1), 0)"""
_HINTS: Final = """INSERT INTO agent_segments (agent_key, segment, first_version)
                   SELECT * FROM unnest(%b, %b, %b) ON CONFLICT DO NOTHING"""
_COLUMNS: Final = (
    'agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain, '
    "correlation, trace, project, module, payload"
)


class PostgresArrivals(PostgresControl):
    """The part of `LogStore` that is `ArrivalRows`."""

    _lock_space: int
    _segments: Segments
    _hub: SignalHub
    _ends: dict[int, int]

    async def clock_us(self) -> int:
        return int((await self._rows(_CLOCK))[0][0])

    async def room(self) -> Room:
        # How full its disks are a server tells nobody.
        return Room(int((await self._rows("SELECT pg_database_size(current_database())"))[0][0]), None)

    async def receive_events(
        self, agents: Sequence[AgentRecord], events: Sequence[SealedEvent], *, owner: str, settle: Settling | None = None
    ) -> None:
        if not events:
            return
        partition = agents[0].partition
        size = sum(len(event.payload) for event in events)
        limit_s = limits.COMMIT_TIMEOUT_S + size / limits.COMMIT_BYTES_PER_S_MIN
        with translated():
            async with self._pool.connection() as connection:
                with answered_within(connection, limit_s):
                    await connection.execute(_BEGIN.format(space=self._lock_space, partition=partition).encode())
                    try:
                        offset = await self._settle(connection, agents, events, owner, settle)
                        placed = [msgspec.structs.replace(event, offset=offset + number) for number, event in enumerate(events, 1)]
                        await self._segments.ready(self._pool, placed)
                        await self._copy(connection, partition, placed)
                    except BaseException:
                        if not connection.closed:
                            await connection.rollback()
                        raise
                    await connection.commit()
        self._ends[partition] = max(placed[-1].offset, self._ends.get(partition, 0))
        self._hub.notify()

    async def swap_owner(self, agent: AgentRecord, before: str, owner: str) -> bool:
        sql = "UPDATE agents SET owner = %s WHERE tenant_key = %s AND agent_key = %s AND owner = %s RETURNING agent_key"
        return bool(await self._rows(sql, owner, agent.tenant_key, agent.agent_key, before))

    async def _settle(
        self,
        connection: AsyncConnection[Any],
        agents: Sequence[AgentRecord],
        events: Sequence[SealedEvent],
        owner: str,
        settle: Settling | None,
    ) -> int:
        """Check that the events may come in, and give the rows what they become; the offset that they follow."""
        epochs = {agent.agent_key: agent.epoch for agent in agents} | {event.agent_key: event.epoch for event in events}
        after = settle or Settling(owner, 0)
        epoch = [settle.epoch if settle else epochs[agent.agent_key] for agent in agents]
        sql = _SETTLE.format(partition=agents[0].partition)
        keys = bigints([agent.agent_key for agent in agents])
        cursor = await connection.execute(sql.encode(), (after.owner, keys, bigints(epoch), owner), binary=True)
        rows = await cursor.fetchall()
        if len(rows) != len(agents):
            raise other_owner(owner)
        check_runs(events, {agent_key: version for agent_key, version, _ in rows})
        offset: int = rows[0][2]
        return offset

    async def _copy(self, connection: AsyncConnection[Any], partition: int, events: Sequence[SealedEvent]) -> None:
        """Rows straight into their segments, and where an agent goes on in a later one."""
        start = 0
        while start < len(events):
            segment = self._segments.of(events[start].offset)
            end = min(len(events), start + (segment + 1) * self._segments.size - events[start].offset + 1)
            statement = f"COPY events_{partition:d}_{segment:d} ({_COLUMNS}) FROM STDIN (FORMAT BINARY)"
            async with connection.cursor().copy(statement.encode()) as copy:
                await copy.write(copy_data(events[start:end]))
            start = end
        hints: dict[tuple[int, int], int] = {}
        for event in events:
            hints.setdefault((event.agent_key, self._segments.of(event.offset)), event.version)
        later = [(agent, segment, version) for (agent, segment), version in hints.items() if segment]
        if later:
            keys, segments, versions = zip(*later, strict=True)
            await connection.execute(_HINTS.encode(), (bigints(keys), integers(segments), bigints(versions)), binary=True)
