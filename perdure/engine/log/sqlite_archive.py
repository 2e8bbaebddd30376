"""Taking a log out of SQLite whole, and putting one in. The functions block; writes run in the caller's transaction, which is the log's one lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from perdure.engine.log import sqlite_append
from perdure.engine.log.archive_rows import check_follows, lower_generation
from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.records import AgentRecord, SealedEvent
from perdure.engine.log.sqlite_events import has_arrivals, position

__all__ = ["SqliteArchive"]


class SqliteArchive:
    """The part of `LogStore` that is `ArchiveRows`."""

    generation: int
    _read: Callable[..., Awaitable[Any]]
    _commit: Callable[..., Awaitable[Any]]

    async def scopes(self) -> list[str]:
        """See `ArchiveRows.scopes`."""
        rows = await self._read(lambda connection: connection.execute("SELECT DISTINCT scope FROM documents ORDER BY scope").fetchall())
        return [scope for (scope,) in rows]

    async def list_blobs(self, after: tuple[str, bytes] | None, limit: int) -> list[tuple[str, bytes]]:
        """See `ArchiveRows.list_blobs`."""
        blobs: list[tuple[str, bytes]] = await self._read(_blobs, after or ("", b""), limit)
        return blobs

    async def removed_ids(self, agent: AgentRecord) -> list[tuple[UUID, int]]:
        """See `ArchiveRows.removed_ids`."""
        sql = "SELECT id, version FROM removed_events WHERE agent_key = ? ORDER BY version"
        rows = await self._read(lambda connection: connection.execute(sql, (agent.agent_key,)).fetchall())
        return [(UUID(bytes=id), version) for id, version in rows]

    async def load_events(self, partition: int, events: Sequence[SealedEvent]) -> None:
        """See `ArchiveRows.load_events`."""
        await self._commit(_load_events, partition, events)

    async def load_floor(self, agent: AgentRecord, floor: Floor, removed: Sequence[tuple[UUID, int]]) -> None:
        """See `ArchiveRows.load_floor`."""
        await self._commit(_load_floor, agent, floor, removed)

    async def mend_event(self, event: SealedEvent) -> None:
        """See `ArchiveRows.mend_event`."""
        await self._commit(_mend, event)

    async def set_generation(self, generation: int) -> None:
        """See `ArchiveRows.set_generation`."""
        await self._commit(_set_generation, generation)
        self.generation = generation


def _blobs(connection: sqlite3.Connection, after: tuple[str, bytes], limit: int) -> list[tuple[str, bytes]]:
    sql = "SELECT tenant, name FROM blobs WHERE (tenant, name) > (?, ?) ORDER BY tenant, name LIMIT ?"
    return connection.execute(sql, (*after, limit)).fetchall()


def _load_events(connection: sqlite3.Connection, partition: int, events: Sequence[SealedEvent]) -> None:
    check_follows(partition, position(connection, partition), events, arrivals=has_arrivals(connection))
    sqlite_append.insert(connection, events)


def _mend(connection: sqlite3.Connection, event: SealedEvent) -> None:
    place = (event.partition, event.offset, event.agent_key, event.version)
    connection.execute("DELETE FROM events WHERE (partition = ? AND offset = ?) OR (agent_key = ? AND version = ?)", place)
    sqlite_append.insert(connection, [event])


def _load_floor(connection: sqlite3.Connection, agent: AgentRecord, floor: Floor, removed: Sequence[tuple[UUID, int]]) -> None:
    sql = """INSERT INTO floors (agent_key, tenant_key, partition, version, chain, epoch, time_us, offset)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (agent_key) DO UPDATE SET version = excluded.version, chain = excluded.chain, epoch = excluded.epoch,
               time_us = excluded.time_us, offset = max(floors.offset, excluded.offset)"""
    connection.execute(sql, (agent.agent_key, agent.tenant_key, agent.partition, *floor))
    rows = [(agent.agent_key, id.bytes, version) for id, version in removed]
    connection.executemany("INSERT OR IGNORE INTO removed_events (agent_key, id, version) VALUES (?, ?, ?)", rows)


def _set_generation(connection: sqlite3.Connection, generation: int) -> None:
    ((standing,),) = connection.execute("SELECT value FROM meta WHERE name = 'generation'").fetchall()
    if generation <= standing:
        raise lower_generation(standing, generation)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'generation'", (generation,))
