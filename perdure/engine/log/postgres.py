"""The log in Postgres.

Layout and guarantees: `sql/postgres/schema.sql` and `perdure.engine.log.contract`. Reads on behalf of a tenant work under the role
`perdure_reader`, whose row-level security shows that tenant's rows alone; the engine's own processes cross tenants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self
from uuid import UUID

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from perdure import limits
from perdure.engine.log.contract import Propose
from perdure.engine.log.floor_rows import check_floor, compacted_offsets
from perdure.engine.log.postgres_agents import PostgresAgents
from perdure.engine.log.postgres_append import Appender
from perdure.engine.log.postgres_archive import PostgresArchive
from perdure.engine.log.postgres_arrivals import PostgresArrivals
from perdure.engine.log.postgres_call import Watch, answered_within
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.postgres_many import FEW_SEGMENTS, PostgresMany
from perdure.engine.log.postgres_open import CONNECT_TIMEOUT_S, SCHEMA, check_settings, check_url, connect, end_sessions, make_pool, migrate
from perdure.engine.log.postgres_pages import fetch_page, page_query
from perdure.engine.log.postgres_rows import EVENT_COLUMNS, conditions, event_of, events_of
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.postgres_tails import Tails
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, Position, SealedEvent
from perdure.engine.log.signal import Signal, SignalHub
from perdure.engine.log.together import Together
from perdure.errors import ConfigurationError, Fenced, IntegrityError, Unavailable
from perdure.limits import PARTITIONS_DEFAULT, PARTITIONS_MAX

__all__ = ["PostgresStore"]


class PostgresStore(PostgresAgents, PostgresArrivals, PostgresArchive, PostgresMany):
    """A log in a Postgres database; open it with `await PostgresStore.open(url)`."""

    def __init__(self, url: str, segment_offsets: int) -> None:
        self.partitions = 0
        self.generation = 0
        self._url = url
        self._lock_space = 0
        self._pool: AsyncConnectionPool = make_pool(url, greet=self._greet)
        self._tenant_pool: AsyncConnectionPool = make_pool(url, role="perdure_reader")
        self._segments = Segments(segment_offsets)
        self._ends: dict[int, int] = {}
        self._tenants: set[str] = set()
        self._appender: Appender | None = None
        self._writing: AsyncConnection[Any] | None = None
        self._write_lock = asyncio.Lock()
        self._hub = SignalHub()
        self._tails = Tails(url, self._pool)
        self._closed = False
        self._together()
        self._looking: Together[AgentName, AgentRecord | None] = Together(self._look_up, limits.AGENTS_PER_APPEND_MAX)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        partitions: int = PARTITIONS_DEFAULT,
        create: bool = True,
        segment_offsets: int = limits.SEGMENT_OFFSETS,
    ) -> Self:
        """Open the log of this database; it is made or migrated where `create` allows it.

        Raises Unavailable, UnsafeSettings (the server would acknowledge what is not durable), ConfigurationError.
        """
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise ConfigurationError(f"{partitions} partitions", hint=f"1 to {PARTITIONS_MAX}")
        check_url(url)
        store = cls(url, segment_offsets)
        try:
            with translated():
                await store._prepare(partitions, create)
        except BaseException:
            await store.close()
            raise
        return store

    async def _prepare(self, partitions: int, create: bool) -> None:
        connection = await connect(self._url)
        async with connection:
            await check_settings(connection)
            await migrate(connection, partitions, create=create)
            meta = dict(await (await connection.execute("SELECT name, value FROM meta")).fetchall())
            (space,) = await (await connection.execute("SELECT hashtext(%s)", (SCHEMA,))).fetchone() or (0,)
        self.partitions, self.generation, self._lock_space = meta["partitions"], meta["generation"], space
        stored = meta.get("segment_offsets")
        await self._pool.open()
        await self._tenant_pool.open()
        if stored is None:
            sql = "INSERT INTO meta VALUES ('segment_offsets', %s) ON CONFLICT (name) DO UPDATE SET value = meta.value RETURNING value"
            ((stored,),) = await self._rows(sql, self._segments.size)
        self._segments = Segments(stored)
        await self._segments.load(self._pool)
        await self._segments.begin(self._pool, self.partitions)

    async def close(self) -> None:
        """Leave the server. Again is no error."""
        self._closed = True
        await self._reading.close()
        await self._changing.close()
        await self._looking.close()
        await self._segments.close()
        await self._tails.close()
        if self._writing is not None:
            await self._writing.close()
        await self._pool.close()
        await self._tenant_pool.close()

    async def positions(self) -> dict[int, Position]:
        parts = [
            f'(SELECT {partition}, "offset", time_us FROM events_{partition} ORDER BY "offset" DESC LIMIT 1)'  # noqa: S608 - integers
            for partition in range(self.partitions)
        ]
        positions = dict.fromkeys(range(self.partitions), Position(0, 0))
        for partition, offset, time_us in await self._rows(" UNION ALL ".join(parts), limit_s=limits.COMMIT_TIMEOUT_S):
            positions[partition] = Position(offset, time_us)
            self._ends[partition] = max(offset, self._ends.get(partition, 0))
        return positions

    def look_before_ms(self, partition: int, offset: int, count: int) -> int:
        return self._segments.look_before_ms(partition, offset, count)

    async def append(self, known: Mapping[int, Position], propose: Propose) -> dict[int, Position]:
        async with self._write_lock:
            appender = await self._writer()
            assert self._writing is not None
            try:
                with translated(), answered_within(self._writing, limits.COMMIT_TIMEOUT_S) as watch:
                    rows = await appender.append(known, propose, partial(self._ready, watch))
            except Unavailable:
                await self._drop_writer()
                raise
        positions = dict(known)
        for partition, row in {row.partition: row for row in rows}.items():
            positions[partition] = Position(row.offset, row.time_us)
            self._ends[partition] = row.offset
        if rows:
            self._hub.notify()
        return positions

    async def _ready(self, watch: Watch, rows: Sequence[SealedEvent]) -> None:
        await self._segments.ready(self._pool, rows)
        watch.allow(limits.COMMIT_TIMEOUT_S + sum(len(row.payload) for row in rows) / limits.COMMIT_BYTES_PER_S_MIN)

    async def _writer(self) -> Appender:
        if self._closed:
            raise Unavailable("the log is closed")
        if self._appender is None or self._writing is None or self._writing.closed:
            with translated():
                self._writing = await connect(self._url)
                with answered_within(self._writing, CONNECT_TIMEOUT_S):
                    await self._greet(self._writing)
                    self._check_generation()
                await self._check_not_older()
                with answered_within(self._writing, CONNECT_TIMEOUT_S):
                    self._appender = await Appender.open(self._writing, self._lock_space, self._segments)
        return self._appender

    async def set_generation(self, generation: int) -> None:
        await super().set_generation(generation)
        # Who is connected is told by losing the connection: the next one shows the generation.
        async with self._answering(self._pool, limits.COMMIT_TIMEOUT_S) as connection:
            await end_sessions(connection)
        # Of what these pools hold nothing lives any more, so nothing is asked whether it does.
        await self._pool.drain()
        await self._tenant_pool.drain()

    async def _greet(self, connection: AsyncConnection[Any]) -> None:
        """A new connection may lead to another log than the one before: a copy that was promoted. What this process knows is then of no use."""
        if not self.generation:
            return  # it is being opened
        row = await (await connection.execute("SELECT value FROM meta WHERE name = 'generation'")).fetchone()
        if row is not None and row[0] != self.generation:
            self._superseded = Fenced(
                f"the log is of generation {row[0]}, this process of {self.generation}: the log was restored or promoted",
                hint="start the process again",
            )

    async def _check_not_older(self) -> None:
        """Before a writer goes on after its connection was lost: a copy that lacks what was seen must not be written to by who knows the rest."""
        seen = dict(self._ends)
        for partition, position in (await self.positions()).items():
            if position.offset < seen.get(partition, 0):
                raise IntegrityError(
                    f"partition {partition} ends at offset {position.offset}, and offset {seen[partition]} was seen: an older copy of the log "
                    "was put in its place",
                    hint="stop every process, then `perdure recover promote`",
                    partition=partition,
                )

    async def _drop_writer(self) -> None:
        if self._writing is not None:
            await self._writing.close()
        self._writing = self._appender = None

    async def read(self, partition: int, after: int, limit: int, *, sparse: bool = False) -> list[SealedEvent]:
        # Offsets are dense, so the page's end is known, and only the segments that hold it are planned for.
        sql = f"""SELECT t.name, a.agent, {EVENT_COLUMNS} FROM events_{partition:d} e
                  JOIN agents a ON a.agent_key = e.agent_key JOIN tenants t ON t.tenant_key = e.tenant_key
                  WHERE e."offset" > {after:d} AND ({sparse} OR e."offset" <= {after + limit:d}) ORDER BY e."offset" LIMIT {limit:d}"""  # noqa: S608
        events = [SealedEvent(*row) for row in await self._rows(sql)]
        dense = events and events[-1].offset == after + len(events)
        if not dense and not sparse and (floor := await self._partition_floor(partition)) > after:
            raise compacted_offsets(partition, after, floor)
        return events

    async def read_tails(self, after: Mapping[int, int], limit: int) -> list[SealedEvent]:
        return await self._tails.read(self._segments, after, limit) if after else []

    async def read_agent(self, agent: AgentRecord, where: EventFilter, limit: int, *, descending: bool = False) -> list[SealedEvent]:
        if agent.past and where.from_version <= agent.past[0].version:
            return await self._read_line(agent, where, limit, descending=descending)
        filters, values = conditions(where)
        order = "DESC" if descending else "ASC"
        found: list[SealedEvent] = []
        for table in await self._tables(agent, where, descending=descending):
            if len(found) >= limit:
                break
            page = page_query(table, agent, where, limit - len(found), descending=descending)
            if page is not None:
                found += await self._page(agent, page)
                continue
            sql = f"""SELECT {EVENT_COLUMNS} FROM {table} e WHERE e.tenant_key = %s AND e.agent_key = %s{filters}
                      ORDER BY e.version {order} LIMIT %s"""  # noqa: S608 - table names of integers, filters of constants
            rows = await self._tenant_rows(agent.tenant_key, sql, agent.tenant_key, agent.agent_key, *values, limit - len(found))
            found += events_of(agent.tenant, agent.agent, rows)
        if not descending and where.from_version != (found[0].version if found else 0):
            check_floor(agent, where, await self._floor(agent))
        return found

    async def _page(self, agent: AgentRecord, query: bytes) -> list[SealedEvent]:
        setting = f"SELECT set_config('perdure.tenant_key', '{agent.tenant_key:d}', false)"
        async with self._answering(self._tenant_pool, limits.ANSWER_TIMEOUT_S) as connection:
            rows = await fetch_page(connection, setting.encode(), query, tuple)
        return events_of(agent.tenant, agent.agent, rows)

    async def _tables(self, agent: AgentRecord, where: EventFilter, *, descending: bool) -> list[str]:
        if self._segments.newest(agent.partition) < FEW_SEGMENTS:
            return [f"events_{agent.partition}"]
        sql = """SELECT a.first_segment, 1 FROM agents a WHERE a.agent_key = %s
                 UNION ALL SELECT s.segment, s.first_version FROM agent_segments s WHERE s.agent_key = %s ORDER BY 1, 2"""
        starts: dict[int, int] = {}
        for segment, version in await self._rows(sql, agent.agent_key, agent.agent_key):
            starts.setdefault(segment, version)
        segments = sorted(starts)
        chosen = []
        for number, segment in enumerate(segments):
            before = starts[segments[number + 1]] if number + 1 < len(segments) else None
            if (before is None or where.from_version < before) and (where.to_version is None or starts[segment] <= where.to_version):
                chosen.append(f"events_{agent.partition}_{segment}")
        return chosen[::-1] if descending else chosen

    async def read_tenant(self, tenant: str, partition: int, after: int, where: EventFilter, limit: int) -> list[SealedEvent]:
        filters, values = conditions(where)
        keys = await self._rows("SELECT tenant_key FROM tenants WHERE name = %s", tenant)
        if not keys:
            return []
        ((key,),) = keys
        if (floor := await self._partition_floor(partition, key)) > after:
            raise compacted_offsets(partition, after, floor)
        sql = f"""SELECT a.agent, {EVENT_COLUMNS} FROM events_{partition:d} e JOIN agents a USING (agent_key)
                  WHERE e.tenant_key = %s AND e."offset" > {after:d}{filters} ORDER BY e."offset" LIMIT %s"""  # noqa: S608
        return [event_of(tenant, row[0], row[1:]) for row in await self._tenant_rows(key, sql, key, *values, limit)]

    async def find(self, agent: AgentRecord, ids: Sequence[UUID]) -> list[SealedEvent]:
        sql = f"""SELECT {EVENT_COLUMNS} FROM events_{agent.partition:d} e
                  WHERE e.tenant_key = %s AND e.agent_key = %s AND e.id = ANY(%s) ORDER BY e.version"""  # noqa: S608
        rows = await self._tenant_rows(agent.tenant_key, sql, agent.tenant_key, agent.agent_key, list(ids))
        found = events_of(agent.tenant, agent.agent, rows)
        return await self._find_past(agent, ids) + found if agent.past else found

    def signal(self) -> Signal:
        return Signal(self._hub)

    async def _tenant_rows(self, tenant_key: int, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        async with self._answering(self._tenant_pool, limits.ANSWER_TIMEOUT_S) as connection, connection.pipeline():
            # One round trip: the setting and the query go together.
            await connection.execute("SELECT set_config('perdure.tenant_key', %s, false)", (str(tenant_key),))
            cursor = await connection.execute(sql.encode(), values, binary=True)
            return await cursor.fetchall()
