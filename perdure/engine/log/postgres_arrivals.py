"""Taking agents in from another engine, in Postgres."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection

from perdure import limits
from perdure.engine.log.arrival_rows import Settling, check_runs, other_owner
from perdure.engine.log.contract import AgentRecord, SealedEvent
from perdure.engine.log.postgres_arrays import bigints, integers
from perdure.engine.log.postgres_call import answered_within
from perdure.engine.log.postgres_control import PostgresControl
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.signal import SignalHub

__all__ = ["PostgresArrivals"]

_LOCK: Final = "SELECT pg_advisory_xact_lock(%s, %s)"
_CLOCK: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_MARKED: Final = "SELECT agent_key FROM agents WHERE agent_key = ANY(%s) AND owner = %s ORDER BY agent_key FOR NO KEY UPDATE"
_HINTS: Final = """INSERT INTO agent_segments (agent_key, segment, first_version)
                   SELECT * FROM unnest(%b, %b, %b) ON CONFLICT DO NOTHING"""
_SETTLE: Final = "UPDATE agents SET owner = %s, epoch = %s WHERE agent_key = %s"
_COLUMNS: Final = (
    'agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain, '
    "correlation, trace, project, module, payload"
)

# The binary form of COPY (PostgreSQL manual, COPY, "Binary Format"): a signature, and per row the count of fields and each one's length
# before it. What is as wide in every row is packed in one step.
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_FIXED: Final = struct.Struct(">hiqiqiqiiiiiiiii16s")
_LENGTH: Final = struct.Struct(">i")
_NULL: Final = _LENGTH.pack(-1)
_SIXTEEN: Final = _LENGTH.pack(16)
_COPY_BYTES: Final = 256 * 1024


class PostgresArrivals(PostgresControl):
    """The part of `LogStore` that is `ArrivalRows`."""

    _lock_space: int
    _segments: Segments
    _hub: SignalHub
    _ends: dict[int, int]

    async def clock_us(self) -> int:
        return int((await self._rows(_CLOCK))[0][0])

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
                    async with connection.transaction():
                        await connection.execute(_LOCK, (self._lock_space, partition))
                        await self._check(connection, agents, events, owner)
                        placed = await self._place(connection, partition, events)
                        await self._segments.ready(self._pool, placed)
                        await self._copy(connection, partition, placed)
                        await self._settle(connection, agents, placed, owner, settle)
        self._ends[partition] = max(placed[-1].offset, self._ends.get(partition, 0))
        self._hub.notify()

    async def swap_owner(self, agent: AgentRecord, before: str, owner: str) -> bool:
        sql = "UPDATE agents SET owner = %s WHERE tenant_key = %s AND agent_key = %s AND owner = %s RETURNING agent_key"
        return bool(await self._rows(sql, owner, agent.tenant_key, agent.agent_key, before))

    async def _check(
        self, connection: AsyncConnection[Any], agents: Sequence[AgentRecord], events: Sequence[SealedEvent], owner: str
    ) -> None:
        keys = [agent.agent_key for agent in agents]
        cursor = await connection.execute(_MARKED, (keys, owner))
        if len(await cursor.fetchall()) != len(keys):
            raise other_owner(owner)
        sql = f"""SELECT k.agent_key, coalesce(
                    (SELECT e.version FROM events_{agents[0].partition:d} e WHERE e.agent_key = k.agent_key ORDER BY e.version DESC LIMIT 1),
                    (SELECT f.version - 1 FROM floors f WHERE f.agent_key = k.agent_key), 0)
                  FROM unnest(%s::bigint[]) k(agent_key)"""  # noqa: S608 - an integer
        cursor = await connection.execute(sql.encode(), (keys,), binary=True)
        check_runs(events, dict(await cursor.fetchall()))

    async def _place(self, connection: AsyncConnection[Any], partition: int, events: Sequence[SealedEvent]) -> list[SealedEvent]:
        newest = f'SELECT "offset" FROM events_{partition:d} ORDER BY "offset" DESC LIMIT 1'  # noqa: S608 - an integer
        row = await (await connection.execute(newest.encode(), binary=True)).fetchone()
        offset = row[0] if row else 0
        return [msgspec.structs.replace(event, offset=offset + number) for number, event in enumerate(events, 1)]

    async def _copy(self, connection: AsyncConnection[Any], partition: int, events: Sequence[SealedEvent]) -> None:
        """Rows straight into their segments."""
        start = 0
        while start < len(events):
            segment = self._segments.of(events[start].offset)
            end = min(len(events), start + (segment + 1) * self._segments.size - events[start].offset + 1)
            statement = f"COPY events_{partition:d}_{segment:d} ({_COLUMNS}) FROM STDIN (FORMAT BINARY)"
            async with connection.cursor().copy(statement.encode()) as copy:
                for block in _blocks(events[start:end]):
                    await copy.write(block)
            start = end

    async def _settle(
        self,
        connection: AsyncConnection[Any],
        agents: Sequence[AgentRecord],
        events: Sequence[SealedEvent],
        owner: str,
        settle: Settling | None,
    ) -> None:
        hints: dict[tuple[int, int], int] = {}
        epochs: dict[int, int] = {}
        for event in events:
            hints.setdefault((event.agent_key, self._segments.of(event.offset)), event.version)
            epochs[event.agent_key] = event.epoch
        later = [(agent, segment, version) for (agent, segment), version in hints.items() if segment]
        if later:
            keys, segments, versions = zip(*later, strict=True)
            await connection.execute(_HINTS.encode(), (bigints(keys), integers(segments), bigints(versions)), binary=True)
        for agent in agents:
            epoch = epochs.get(agent.agent_key, agent.epoch)
            values = (settle.owner, settle.epoch) if settle else (owner, epoch)
            await connection.execute(_SETTLE, (*values, agent.agent_key))


def _blocks(events: Sequence[SealedEvent]) -> Iterator[bytes]:
    """The rows in the binary form of COPY, some at a time."""
    parts: list[bytes] = [_SIGNATURE]
    size = 0
    known: dict[str | None, bytes] = {None: _NULL}
    fixed, length = _FIXED.pack, _LENGTH.pack
    for event in events:
        texts = []
        for text in (event.type, event.correlation_id, event.trace_id, event.project, event.module):
            encoded = known.get(text)
            if encoded is None:
                plain = str(text).encode()
                encoded = known[text] = length(len(plain)) + plain
            texts.append(encoded)
        if len(known) > limits.TRANSFER_PAGE_EVENTS_MAX:
            known = {None: _NULL}
        parts += (
            fixed(
                *(16, 8, event.agent_key, 8, event.offset, 8, event.time_us, 4, event.version, 4, event.epoch),
                *(4, event.tenant_key, 4, event.partition, 16, event.id.int.to_bytes(16, "big")),
            ),
            _NULL if event.causation_id is None else _SIXTEEN + event.causation_id.bytes,
            texts[0],
            length(len(event.chain)),
            event.chain,
            *texts[1:],
            length(len(event.payload)),
            event.payload,
        )
        size += len(event.payload)
        if size > _COPY_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join((*parts, _TRAILER))
