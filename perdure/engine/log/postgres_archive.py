"""Taking a log out of Postgres whole, and putting one in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from perdure.engine.log.archive_rows import check_follows, lower_generation
from perdure.engine.log.arrival_rows import HAS_ARRIVALS
from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.postgres_arrays import bigints, integers
from perdure.engine.log.postgres_copy import COPY_EVENTS, copy_data
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.postgres_forks import PostgresForks
from perdure.engine.log.postgres_rows import packed_rows
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import AgentRecord, Position, SealedEvent

__all__ = ["PostgresArchive"]

_LOCK: Final = "SELECT pg_advisory_xact_lock(%s, %s)"
_EVENTS: Final = f"""INSERT INTO events (agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain,
                       correlation, trace, project, module, payload)
                     SELECT * FROM unnest({", ".join(["%b"] * 16)})"""  # noqa: S608 - constants
_HINTS: Final = """INSERT INTO agent_segments (agent_key, segment, first_version)
                   SELECT * FROM unnest(%b, %b, %b) ON CONFLICT DO NOTHING"""
_FLOOR: Final = """INSERT INTO floors (agent_key, tenant_key, partition, version, chain, epoch, time_us, "offset")
                   VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
                   ON CONFLICT (agent_key) DO UPDATE SET version = excluded.version, chain = excluded.chain, epoch = excluded.epoch,
                     time_us = excluded.time_us, "offset" = greatest(floors."offset", excluded."offset")"""


class PostgresArchive(PostgresForks):
    """The part of `LogStore` that is `ArchiveRows`."""

    generation: int
    _segments: Segments

    async def scopes(self) -> list[str]:
        return sorted(scope for (scope,) in await self._rows("SELECT DISTINCT scope FROM documents"))

    async def list_blobs(self, after: tuple[str, bytes] | None, limit: int) -> list[tuple[str, bytes]]:
        sql = "SELECT tenant, name FROM blobs WHERE (tenant, name) > (%s, %s) ORDER BY tenant, name LIMIT %s"
        return [(tenant, bytes(name)) for tenant, name in await self._rows(sql, *(after or ("", b"")), limit)]

    async def removed_ids(self, agent: AgentRecord) -> list[tuple[UUID, int]]:
        rows = await self._rows("SELECT id, version FROM removed_events WHERE agent_key = %s ORDER BY version", agent.agent_key)
        return [(id, version) for id, version in rows]

    async def load_events(self, partition: int, events: Sequence[SealedEvent]) -> None:
        await self._segments.ready(self._pool, events)
        hints: dict[tuple[int, int], int] = {}
        for event in events:
            hints.setdefault((event.agent_key, self._segments.of(event.offset)), event.version)
        later = [(agent, segment, version) for (agent, segment), version in hints.items() if segment]
        newest = f'SELECT "offset", time_us FROM events_{partition:d} ORDER BY "offset" DESC LIMIT 1'  # noqa: S608 - an integer
        with translated():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK, (self._lock_space, partition))
                row = await (await connection.execute(newest.encode(), binary=True)).fetchone()
                arrivals = bool(await (await connection.execute(HAS_ARRIVALS)).fetchone())
                check_follows(partition, Position(*row) if row else Position(0, 0), events, arrivals=arrivals)
                # Nobody is told of a single page: the first write that somebody is told of makes all before it durable, too.
                await connection.execute("SET LOCAL synchronous_commit = off")
                async with connection.cursor().copy(COPY_EVENTS) as copy:
                    await copy.write(copy_data(events))
                if later:
                    agents, segments, versions = zip(*later, strict=True)
                    await connection.execute(_HINTS.encode(), (bigints(agents), integers(segments), bigints(versions)), binary=True)

    async def load_floor(self, agent: AgentRecord, floor: Floor, removed: Sequence[tuple[UUID, int]]) -> None:
        with translated():
            async with self._pool.connection() as connection, connection.transaction():
                values = (agent.agent_key, agent.tenant_key, agent.partition, *floor)
                await connection.execute(_FLOOR.encode(), values)
                cursor = connection.cursor()
                rows = [(agent.agent_key, version, id) for id, version in removed]
                await cursor.executemany(
                    "INSERT INTO removed_events (agent_key, version, id) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", rows
                )

    async def mend_event(self, event: SealedEvent) -> None:
        sql = f"""DELETE FROM events_{event.partition:d}
                  WHERE ("offset" = %s OR (agent_key = %s AND version = %s)) AND tenant_key = %s"""  # noqa: S608 - an integer
        await self._segments.ready(self._pool, [event])
        with translated():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK, (self._lock_space, event.partition))
                await connection.execute(sql.encode(), (event.offset, event.agent_key, event.version, event.tenant_key))
                await connection.execute(_EVENTS.encode(), packed_rows([event]), binary=True)

    async def set_generation(self, generation: int) -> None:
        sql = "UPDATE meta SET value = %s WHERE name = 'generation' AND value < %s RETURNING value"
        if not await self._rows(sql, generation, generation):
            raise lower_generation(self.generation, generation)
        self.generation = generation
