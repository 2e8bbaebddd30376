"""Taking agents in from another engine, in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from psycopg import AsyncConnection

from perdure import limits
from perdure.engine.log.arrival_rows import Room, Settling, Swap, check_runs, other_owner, placed
from perdure.engine.log.postgres_arrays import bigints, integers, text, texts
from perdure.engine.log.postgres_call import answered_within
from perdure.engine.log.postgres_control import PostgresControl
from perdure.engine.log.postgres_copy import copy_data
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.postgres_exchange import Statement, ask_at_once, rows_of
from perdure.engine.log.postgres_rows import packed_rows
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import AgentRecord, SealedEvent
from perdure.engine.log.signal import SignalHub

__all__ = ["PostgresArrivals"]

_LOCK: Final = "SELECT pg_advisory_xact_lock({space:d}, {partition:d})"
_CLOCK: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
# One statement under the lock: who is still marked becomes what the events make of it, and says where it and the partition stand.
_SETTLE: Final = """UPDATE agents a SET owner = $1, epoch = n.epoch FROM unnest($2, $3) n(agent_key, epoch)
    WHERE a.agent_key = n.agent_key AND a.owner = $4
    RETURNING a.agent_key, greatest(
      (SELECT e.version FROM events_{partition:d} e WHERE e.agent_key = a.agent_key ORDER BY e.version DESC LIMIT 1),
      (SELECT f.version - 1 FROM floors f WHERE f.agent_key = a.agent_key), a.parent_version, 0)::bigint,
      coalesce((SELECT "offset" FROM events_{partition:d} ORDER BY "offset" DESC LIMIT 1), 0)"""
_HINTS: Final = """INSERT INTO agent_segments (agent_key, segment, first_version)
                   SELECT * FROM unnest($1, $2, $3) ON CONFLICT DO NOTHING"""
# Locked in the order of their keys: two who swap at once wait for each other, and none for ever.
_SWAP: Final = """WITH n AS MATERIALIZED (
      SELECT a.tenant_key, a.agent_key, n.owner FROM unnest(%b, %b, %b) n(agent_key, before, owner)
      JOIN agents a ON a.agent_key = n.agent_key AND a.owner = n.before ORDER BY a.agent_key FOR NO KEY UPDATE OF a)
    UPDATE agents a SET owner = n.owner FROM n WHERE a.tenant_key = n.tenant_key AND a.agent_key = n.agent_key RETURNING a.agent_key"""
_FEW_EVENTS: Final = 8
_FEW_BYTES: Final = 64 * 1024
"""So little goes in and is committed in one round trip; what is more is copied, which costs the server half as much for each event."""
_COLUMNS: Final = (
    'agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain, '
    "correlation, trace, project, module, payload"
)
_INSERT: Final = f"INSERT INTO events_{{partition:d}} ({_COLUMNS}) SELECT * FROM unnest({', '.join(f'${at}' for at in range(1, 17))})"  # noqa: S608 - constants


class _Standing(NamedTuple):
    """Where an agent stands, and its partition."""

    agent_key: int
    version: int
    offset: int


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
        few = len(events) <= _FEW_EVENTS and size <= _FEW_BYTES
        limit_s = limits.COMMIT_TIMEOUT_S + size / limits.COMMIT_BYTES_PER_S_MIN
        with translated():
            async with self._pool.connection() as connection:
                with answered_within(connection, limit_s):
                    try:
                        rows = await self._begin(connection, agents, events, owner, settle)
                        await self._segments.ready(self._pool, rows)
                        if not few:
                            await self._copy(connection, partition, rows)
                        insert = [Statement(_INSERT.format(partition=partition).encode(), packed_rows(rows))] if few else []
                        await ask_at_once(connection, *insert, *self._hints(rows), Statement(b"COMMIT"))
                    except BaseException:
                        if not connection.closed:
                            await connection.rollback()
                        raise
        self._ends[partition] = max(rows[-1].offset, self._ends.get(partition, 0))
        self._hub.notify()

    async def swap_owners(self, swaps: Sequence[Swap]) -> list[bool]:
        columns = texts([swap.before for swap in swaps]), texts([swap.owner for swap in swaps])
        rows = await self._rows(_SWAP, bigints([swap.agent.agent_key for swap in swaps]), *columns)
        done = {agent_key for (agent_key,) in rows}
        return [swap.agent.agent_key in done for swap in swaps]

    async def swap_owner(self, agent: AgentRecord, before: str, owner: str) -> bool:
        return (await self.swap_owners([Swap(agent, before, owner)]))[0]

    async def _begin(
        self,
        connection: AsyncConnection[Any],
        agents: Sequence[AgentRecord],
        events: Sequence[SealedEvent],
        owner: str,
        settle: Settling | None,
    ) -> list[SealedEvent]:
        """Take the partition's lock, check that the events may come in, and give the agents' rows what they become; the events at their places."""
        epochs = {(event.tenant, event.agent): event.epoch for event in events}
        after = settle or Settling(owner, 0)
        epoch = [settle.epoch if settle else epochs.get((agent.tenant, agent.agent), agent.epoch) for agent in agents]
        partition = agents[0].partition
        lock = _LOCK.format(space=self._lock_space, partition=partition).encode()
        marked = (text(after.owner), bigints([agent.agent_key for agent in agents]), bigints(epoch), text(owner))
        begin = Statement(b"BEGIN"), Statement(lock), Statement(_SETTLE.format(partition=partition).encode(), marked)
        *_, result = await ask_at_once(connection, *begin)
        standing = rows_of(connection, result, _Standing._make)
        if len(standing) != len(agents):
            raise other_owner(owner)
        rows = placed(agents, events, standing[0].offset)
        check_runs(rows, {each.agent_key: each.version for each in standing})
        return rows

    async def _copy(self, connection: AsyncConnection[Any], partition: int, events: Sequence[SealedEvent]) -> None:
        """Rows straight into their segments."""
        start = 0
        while start < len(events):
            segment = self._segments.of(events[start].offset)
            end = min(len(events), start + (segment + 1) * self._segments.size - events[start].offset + 1)
            statement = f"COPY events_{partition:d}_{segment:d} ({_COLUMNS}) FROM STDIN (FORMAT BINARY)"
            async with connection.cursor().copy(statement.encode()) as copy:
                await copy.write(copy_data(events[start:end]))
            start = end

    def _hints(self, events: Sequence[SealedEvent]) -> list[Statement]:
        """Where an agent goes on in a later segment."""
        hints: dict[tuple[int, int], int] = {}
        for event in events:
            hints.setdefault((event.agent_key, self._segments.of(event.offset)), event.version)
        later = [(agent, segment, version) for (agent, segment), version in hints.items() if segment]
        if not later:
            return []
        keys, segments, versions = zip(*later, strict=True)
        return [Statement(_HINTS.encode(), (bigints(keys), integers(segments), bigints(versions)))]
