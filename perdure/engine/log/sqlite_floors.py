"""Floors of agents in the SQLite log. The functions block; writes run in the caller's transaction, which is the log's one lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from perdure.engine.log.floor_rows import Floor, Written, broken_anchor, no_anchor
from perdure.engine.log.fork_rows import begins_at, floor_of_line, needed_by_a_fork, shared_beginning
from perdure.engine.log.records import AgentRecord
from perdure.engine.log.versions import no_version
from perdure.limits import SNAPSHOTS_NEWEST_MIN

__all__ = ["SqliteFloors", "first_forked", "floor_of", "partition_floor"]

T = TypeVar("T")

_FLOOR: Final = "SELECT version, chain, epoch, time_us, offset FROM floors WHERE agent_key = ? AND tenant_key = ?"
_FIRST_FORKED: Final = """SELECT min(a.parent_version) FROM agents a WHERE a.past_key = ?
    AND NOT EXISTS (SELECT 1 FROM floors f WHERE f.agent_key = a.agent_key)"""
_BEFORE: Final = "SELECT chain, epoch, time_us, offset FROM events WHERE agent_key = ? AND tenant_key = ? AND version = ?"
_GOOD: Final = "SELECT version FROM snapshots WHERE agent_key = ? AND damage = '' ORDER BY version DESC"
# SQLite knows the length of a blob without reading it.
_WRITTEN: Final = """
SELECT t.name, a.agent, a.agent_key, w.version, w.events, w.bytes FROM
  (SELECT agent_key, max(version) AS version, count(*) AS events, sum(length(payload)) AS bytes FROM events
   WHERE partition = ? AND offset > ? AND offset <= ? GROUP BY agent_key) w
JOIN agents a USING (agent_key) JOIN tenants t USING (tenant_key) ORDER BY a.agent_key
"""
_DOOMED: Final = "agent_key = ? AND version < ? AND version < (SELECT min(version) FROM events WHERE agent_key = ?) + ?"


class SqliteFloors:
    """The part of `LogStore` that is `FloorRows`."""

    _read: Callable[..., Awaitable[Any]]
    _commit: Callable[..., Awaitable[Any]]

    async def written(self, partition: int, after: int, limit: int) -> list[Written]:
        """See `FloorRows.written`."""
        written: list[Written] = await self._read(_written, partition, after, limit)
        return written

    async def floors(self, agents: Sequence[AgentRecord]) -> list[Floor]:
        """See `FloorRows.floors`."""
        floors: list[Floor] = await self._read(lambda connection: [floor_of(connection, agent) for agent in agents])
        return floors

    async def raise_floor(self, agent: AgentRecord, version: int, chain: bytes) -> Floor:
        """See `FloorRows.raise_floor`."""
        floor: Floor = await self._commit(_raise, agent, version, chain)
        return floor

    async def remove_events(self, agent: AgentRecord, limit: int) -> int:
        """See `FloorRows.remove_events`."""
        removed: int = await self._commit(_remove, agent, limit)
        return removed

    async def partition_floors(self) -> dict[int, int]:
        """See `FloorRows.partition_floors`."""
        floors: dict[int, int] = await self._read(_partition_floors)
        return floors


def _written(connection: sqlite3.Connection, partition: int, after: int, limit: int) -> list[Written]:
    rows = connection.execute(_WRITTEN, (partition, after, after + limit)).fetchall()
    return [Written(*row) for row in rows]


def floor_of(connection: sqlite3.Connection, agent: AgentRecord) -> Floor:
    """Where the agent's events begin."""
    floors: dict[int, Floor] = {}
    for agent_key in (agent.agent_key, *(past.agent_key for past in agent.past)):
        floors.update((agent_key, Floor(*row)) for row in connection.execute(_FLOOR, (agent_key, agent.tenant_key)).fetchall())
    return floor_of_line(agent, floors)


def first_forked(connection: sqlite3.Connection, agent: AgentRecord) -> int | None:
    """See `ForkRows.first_forked`."""
    ((version,),) = connection.execute(_FIRST_FORKED, (agent.agent_key,)).fetchall()
    return None if version is None else int(version)


def partition_floor(connection: sqlite3.Connection, partition: int, tenant: str | None = None) -> int:
    """The newest offset that was removed, of all tenants or of one; 0 where there is none."""
    sql = "SELECT max(offset) FROM floors WHERE partition = ?"
    if tenant is None:
        rows = connection.execute(sql, (partition,)).fetchall()
    else:
        sql += " AND tenant_key = (SELECT tenant_key FROM tenants WHERE name = ?)"
        rows = connection.execute(sql, (partition, tenant)).fetchall()
    return rows[0][0] or 0


def _partition_floors(connection: sqlite3.Connection) -> dict[int, int]:
    (partitions,) = connection.execute("SELECT value FROM meta WHERE name = 'partitions'").fetchall()[0]
    return {partition: partition_floor(connection, partition) for partition in range(partitions)}


def _raise(connection: sqlite3.Connection, agent: AgentRecord, version: int, chain: bytes) -> Floor:
    standing = floor_of(connection, agent)
    if version <= standing.version:
        return standing
    if agent.parent is not None and version <= begins_at(agent) + 1:
        raise shared_beginning(agent, version)
    forked = first_forked(connection, agent)
    if forked is not None and version > forked:
        raise needed_by_a_fork(agent, version, forked)
    key = (agent.agent_key, agent.tenant_key)
    if not connection.execute(_BEFORE, (*key, version)).fetchall():
        raise no_version(agent, version)
    rows = connection.execute(_BEFORE, (*key, version - 1)).fetchall()
    if not rows or rows[0][0] != chain:
        raise broken_anchor(agent, version - 1)
    good = [row[0] for row in connection.execute(_GOOD, (agent.agent_key,)).fetchall()]
    if version - 1 not in good or version - 1 > min(good[:SNAPSHOTS_NEWEST_MIN]) or len(good) < SNAPSHOTS_NEWEST_MIN:
        raise no_anchor(agent, version)
    floor = Floor(version, *rows[0])
    connection.execute("INSERT OR REPLACE INTO floors VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*key, agent.partition, *floor))
    return floor


def _remove(connection: sqlite3.Connection, agent: AgentRecord, limit: int) -> int:
    values = (agent.agent_key, floor_of(connection, agent).version, agent.agent_key, limit)
    connection.execute(f"INSERT OR IGNORE INTO removed_events SELECT agent_key, id, version FROM events WHERE {_DOOMED}", values)  # noqa: S608
    return connection.execute(f"DELETE FROM events WHERE {_DOOMED}", values).rowcount  # noqa: S608
