"""Floors of agents in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from perdure.engine.log.floor_rows import NO_FLOOR, Floor, Written, broken_anchor, no_anchor
from perdure.engine.log.fork_rows import begins_at, floor_of_line, needed_by_a_fork, shared_beginning
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.postgres_snapshots import PostgresSnapshots
from perdure.engine.log.records import AgentRecord
from perdure.engine.log.versions import no_version
from perdure.limits import SNAPSHOTS_NEWEST_MIN

__all__ = ["PostgresFloors"]

_COLUMNS: Final = 'version, chain, epoch, time_us, "offset"'
_GOOD: Final = "SELECT version FROM snapshots WHERE agent_key = %s AND damage = '' ORDER BY version DESC"
# A floor is raised under the agent's row lock, so that two that shorten one agent come one after the other, and whoever forks it beside.
_LOCK: Final = "SELECT agent_key FROM agents WHERE tenant_key = %s AND agent_key = %s FOR UPDATE"
_FIRST_FORKED: Final = """SELECT min(a.parent_version) FROM agents a WHERE a.past_key = %s
    AND NOT EXISTS (SELECT FROM floors f WHERE f.agent_key = a.agent_key)"""
_PUT: Final = f"""INSERT INTO floors (agent_key, tenant_key, partition, {_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (agent_key) DO UPDATE SET version = excluded.version, chain = excluded.chain, epoch = excluded.epoch,
      time_us = excluded.time_us, "offset" = excluded."offset" """  # noqa: S608 - constants
_STANDING: Final = f"SELECT {_COLUMNS} FROM floors WHERE agent_key = %s"  # noqa: S608 - constants


class PostgresFloors(PostgresSnapshots):
    """The part of `LogStore` that is `FloorRows`."""

    partitions: int
    _lock_space: int

    async def written(self, partition: int, after: int, limit: int) -> list[Written]:
        # A payload's length stands beside its pointer: nothing is read from the TOAST table.
        sql = f"""SELECT t.name, a.agent, w.agent_key, w.version::bigint, w.events, w.bytes FROM
                  (SELECT agent_key, max(version) AS version, count(*) AS events, sum(length(payload))::bigint AS bytes FROM events_{partition:d}
                   WHERE "offset" > {after:d} AND "offset" <= {after + limit:d} GROUP BY agent_key) w
                  JOIN agents a USING (agent_key) JOIN tenants t USING (tenant_key) ORDER BY w.agent_key"""  # noqa: S608 - integers
        return [Written(*row) for row in await self._rows(sql)]

    async def floors(self, agents: Sequence[AgentRecord]) -> list[Floor]:
        sql = f"SELECT agent_key, {_COLUMNS} FROM floors WHERE agent_key = ANY(%s)"  # noqa: S608 - constants
        keys = {agent.agent_key for agent in agents} | {past.agent_key for agent in agents for past in agent.past}
        rows = await self._rows(sql, list(keys)) if agents else []
        found = {agent_key: Floor(*floor) for agent_key, *floor in rows}
        return [floor_of_line(agent, found) for agent in agents]

    async def first_forked(self, agent: AgentRecord) -> int | None:
        ((version,),) = await self._rows(_FIRST_FORKED, agent.agent_key)
        return None if version is None else int(version)

    async def raise_floor(self, agent: AgentRecord, version: int, chain: bytes) -> Floor:
        keys = (agent.agent_key, agent.tenant_key, agent.partition)
        event = f"""SELECT version + 1, chain, epoch::bigint, time_us, "offset" FROM events_{agent.partition:d}
                    WHERE agent_key = %s AND tenant_key = %s AND version IN (%s, %s) ORDER BY version"""  # noqa: S608 - an integer
        with translated():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK, (agent.tenant_key, agent.agent_key))
                cursor = await connection.execute(_STANDING.encode(), (agent.agent_key,), binary=True)
                standing = Floor(*row) if (row := await cursor.fetchone()) else NO_FLOOR
                if version <= standing.version:
                    return standing
                if agent.parent is not None and version <= begins_at(agent) + 1:
                    raise shared_beginning(agent, version)
                cursor = await connection.execute(_FIRST_FORKED, (agent.agent_key,), binary=True)
                ((forked,),) = await cursor.fetchall()
                if forked is not None and version > forked:
                    raise needed_by_a_fork(agent, version, forked)
                cursor = await connection.execute(event.encode(), (*keys[:2], version - 1, version), binary=True)
                rows = await cursor.fetchall()
                if not rows or rows[-1][0] != version + 1:
                    raise no_version(agent, version)
                if rows[0][0] != version or rows[0][1] != chain:
                    raise broken_anchor(agent, version - 1)
                cursor = await connection.execute(_GOOD, (agent.agent_key,), binary=True)
                good = [version for (version,) in await cursor.fetchall()]
                if version - 1 not in good or version - 1 > min(good[:SNAPSHOTS_NEWEST_MIN]) or len(good) < SNAPSHOTS_NEWEST_MIN:
                    raise no_anchor(agent, version)
                floor = Floor(*rows[0])
                await connection.execute(_PUT.encode(), (*keys, *floor))
        return floor

    async def remove_events(self, agent: AgentRecord, limit: int) -> int:
        values = (self._lock_space, agent.partition, agent.agent_key, limit)
        rows = await self._rows("SELECT remove_events(%s, %s, %s, %s)", *values)
        removed: int = rows[0][0]
        return removed

    async def partition_floors(self) -> dict[int, int]:
        rows = await self._rows('SELECT partition, max("offset") FROM floors GROUP BY partition')
        return {**dict.fromkeys(range(self.partitions), 0), **dict(rows)}

    async def _floor(self, agent: AgentRecord) -> Floor:
        return (await self.floors([agent]))[0]

    async def _partition_floor(self, partition: int, tenant_key: int | None = None) -> int:
        sql = 'SELECT max("offset") FROM floors WHERE partition = %s AND (%s::integer IS NULL OR tenant_key = %s)'
        return (await self._rows(sql, partition, tenant_key, tenant_key))[0][0] or 0
