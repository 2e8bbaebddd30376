"""The registry of snapshots in the SQLite log. The functions block; writes run in the caller's transaction, which is the log's one lock."""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from uuid import UUID

from perdure.engine.log.records import AgentRecord
from perdure.engine.log.snapshot_rows import CHECKPOINT, COLUMNS, SnapshotMark, SnapshotRow, promised_as

__all__ = ["SqliteSnapshots"]

P = ParamSpec("P")
T = TypeVar("T")

_NAMED: Final = (
    f"SELECT {', '.join(f's.{column}' for column in COLUMNS)}, t.name, a.agent"  # noqa: S608 - constants
    " FROM snapshots s CROSS JOIN agents a USING (agent_key) CROSS JOIN tenants t ON t.tenant_key = s.tenant_key "
)
_INSERT: Final = f"INSERT INTO snapshots ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants
_UUIDS: Final = ("id", "replaces")
_FLAGS: Final = ("permanent", "critical")


class SqliteSnapshots:
    """The part of `LogStore` that is `SnapshotRows`."""

    @abstractmethod
    async def _read(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    @abstractmethod
    async def _commit(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def add_snapshot(self, row: SnapshotRow) -> SnapshotRow | None:
        """See `SnapshotRows.add_snapshot`."""
        return await self._commit(_add, row)

    async def snapshots(
        self, agent: AgentRecord, *, to_version: int | None = None, limit: int = 100, good: bool = False
    ) -> list[SnapshotRow]:
        """See `SnapshotRows.snapshots`."""
        return await self._read(_of_agent, agent, to_version, limit, good)

    async def newest_snapshots(self, agents: Sequence[AgentRecord]) -> list[SnapshotRow | None]:
        """See `SnapshotRows.newest_snapshots`."""
        return await self._read(_newest, agents)

    async def get_snapshot(self, tenant: str, id: UUID) -> SnapshotRow | None:
        """See `SnapshotRows.get_snapshot`."""
        return await self._read(_get, tenant, id)

    async def list_snapshots(self, tenant: str, *, after: UUID | None = None, limit: int = 100) -> list[SnapshotRow]:
        """See `SnapshotRows.list_snapshots`."""
        return await self._read(_select, "WHERE t.name = ? AND s.id > ? ORDER BY s.id LIMIT ?", tenant, (after or UUID(int=0)).bytes, limit)

    async def mark_snapshot(self, row: SnapshotRow, mark: SnapshotMark) -> SnapshotRow | None:
        """See `SnapshotRows.mark_snapshot`."""
        return await self._commit(_mark, row, mark)

    async def replace_snapshot(self, old: SnapshotRow, new: SnapshotRow) -> bool:
        """See `SnapshotRows.replace_snapshot`."""
        return await self._commit(_replace, old, new)

    async def delete_snapshots(
        self, agent: AgentRecord, ids: Sequence[UUID], *, keep_newest: int, even_permanent: bool = False
    ) -> list[UUID]:
        """See `SnapshotRows.delete_snapshots`."""
        return await self._commit(_delete, agent, ids, keep_newest, even_permanent)


def _select(connection: sqlite3.Connection, where: str, *values: Any) -> list[SnapshotRow]:
    return [_row(row) for row in connection.execute(_NAMED + where, values).fetchall()]


def _row(values: Sequence[Any]) -> SnapshotRow:
    *columns, tenant, agent = values
    fields = dict(zip(COLUMNS, columns, strict=True))
    for name in _UUIDS:
        fields[name] = None if fields[name] is None else UUID(bytes=fields[name])
    for name in _FLAGS:
        fields[name] = bool(fields[name])
    return SnapshotRow(tenant=tenant, agent=agent, **fields)


def _add(connection: sqlite3.Connection, row: SnapshotRow) -> SnapshotRow | None:
    compared = "=" if row.kind == CHECKPOINT else ">="
    where = f"WHERE s.agent_key = ? AND s.version {compared} ? AND s.damage = '' ORDER BY s.version DESC LIMIT 1"
    standing = _select(connection, where, row.agent_key, row.version)
    if standing:
        return standing[0]
    _insert(connection, row)
    return None


def _insert(connection: sqlite3.Connection, row: SnapshotRow) -> None:
    values = [getattr(row, column) for column in COLUMNS]
    connection.execute(_INSERT, [value.bytes if isinstance(value, UUID) else value for value in values])


def _replace(connection: sqlite3.Connection, old: SnapshotRow, new: SnapshotRow) -> bool:
    standing = _get(connection, old.tenant, old.id)
    if standing is None or standing.damage:
        return False
    connection.execute("DELETE FROM snapshots WHERE tenant_key = ? AND id = ?", (old.tenant_key, old.id.bytes))
    _insert(connection, promised_as(new, standing))
    return True


def _of_agent(connection: sqlite3.Connection, agent: AgentRecord, to_version: int | None, limit: int, good: bool) -> list[SnapshotRow]:
    where = (
        "WHERE s.tenant_key = ? AND s.agent_key = ? AND (? IS NULL OR s.version <= ?) AND (NOT ? OR s.damage = '')"
        " ORDER BY s.version DESC, s.id DESC LIMIT ?"
    )
    return _select(connection, where, agent.tenant_key, agent.agent_key, to_version, to_version, good, limit)


def _newest(connection: sqlite3.Connection, agents: Sequence[AgentRecord]) -> list[SnapshotRow | None]:
    return [next(iter(_of_agent(connection, agent, None, 1, True)), None) for agent in agents]


def _get(connection: sqlite3.Connection, tenant: str, id: UUID) -> SnapshotRow | None:
    return next(iter(_select(connection, "WHERE t.name = ? AND s.id = ?", tenant, id.bytes)), None)


def _mark(connection: sqlite3.Connection, row: SnapshotRow, mark: SnapshotMark) -> SnapshotRow | None:
    sql = """UPDATE snapshots SET
               damage = CASE WHEN damage = '' THEN coalesce(?, '') ELSE damage END,
               verified_us = coalesce(?, verified_us), expires_us = coalesce(?, expires_us),
               permanent = coalesce(?, permanent), critical = coalesce(?, critical)
             WHERE tenant_key = ? AND id = ?"""
    connection.execute(sql, (*mark, row.tenant_key, row.id.bytes))
    return _get(connection, row.tenant, row.id)


def _delete(connection: sqlite3.Connection, agent: AgentRecord, ids: Sequence[UUID], keep_newest: int, even_permanent: bool) -> list[UUID]:
    sql = """DELETE FROM snapshots WHERE tenant_key = ? AND agent_key = ? AND id = ? AND (? OR NOT permanent) AND id NOT IN
               (SELECT id FROM snapshots WHERE agent_key = ? AND damage = '' ORDER BY version DESC LIMIT ?)
             AND NOT (damage = '' AND version IN (SELECT f.version - 1 FROM floors f WHERE f.agent_key = snapshots.agent_key))"""
    deleted = []
    for id in sorted(set(ids)):
        values = (agent.tenant_key, agent.agent_key, id.bytes, even_permanent, agent.agent_key, keep_newest)
        if connection.execute(sql, values).rowcount:
            deleted.append(id)
    return deleted
