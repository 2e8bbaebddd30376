"""The registry of snapshots in Postgres."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from perdure.engine.log.postgres_control import PostgresControl
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.records import AgentRecord
from perdure.engine.log.snapshot_rows import CHECKPOINT, COLUMNS, SnapshotMark, SnapshotRow, promised_as

__all__ = ["PostgresSnapshots"]

_SELECTED: Final = ", ".join(f"s.{column}" for column in COLUMNS)
_NAMED: Final = (
    f"SELECT {_SELECTED}, t.name, a.agent FROM snapshots s JOIN agents a ON a.agent_key = s.agent_key"  # noqa: S608 - constants
    " JOIN tenants t ON t.tenant_key = s.tenant_key"
)
_INSERT: Final = f"INSERT INTO snapshots ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"  # noqa: S608 - constants
# Whoever adds or deletes rows of an agent holds this lock, so what is read after it still stands at the commit.
_LOCK: Final = "SELECT agent_key FROM agents WHERE tenant_key = %s AND agent_key = %s FOR NO KEY UPDATE"


class PostgresSnapshots(PostgresControl):
    """The part of `LogStore` that is `SnapshotRows`."""

    @abstractmethod
    async def _tenant_rows(self, tenant_key: int, sql: str, *values: Any) -> list[tuple[Any, ...]]: ...

    async def add_snapshot(self, row: SnapshotRow) -> SnapshotRow | None:
        compared = "=" if row.kind == CHECKPOINT else ">="
        standing = f"{_NAMED} WHERE s.agent_key = %s AND s.version {compared} %s AND s.damage = '' ORDER BY s.version DESC LIMIT 1"
        with translated():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK, (row.tenant_key, row.agent_key))
                cursor = await connection.execute(standing.encode(), (row.agent_key, row.version), binary=True)
                found = await cursor.fetchone()
                if found is None:
                    await connection.execute(_INSERT.encode(), [getattr(row, column) for column in COLUMNS])
        return _row(found) if found is not None else None

    async def snapshots(
        self, agent: AgentRecord, *, to_version: int | None = None, limit: int = 100, good: bool = False
    ) -> list[SnapshotRow]:
        sql = f"""SELECT {_SELECTED} FROM snapshots s WHERE s.tenant_key = %s AND s.agent_key = %s
                  AND (%s::bigint IS NULL OR s.version <= %s::bigint) AND (NOT %s OR s.damage = '')
                  ORDER BY s.version DESC, s.id DESC LIMIT %s"""  # noqa: S608 - constants
        values = (agent.tenant_key, agent.agent_key, to_version, to_version, good, limit)
        rows = await self._tenant_rows(agent.tenant_key, sql, *values)
        return [_row((*row, agent.tenant, agent.agent)) for row in rows]

    async def newest_snapshots(self, agents: Sequence[AgentRecord]) -> list[SnapshotRow | None]:
        sql = f"""SELECT {_SELECTED}, '', '' FROM unnest(%s::bigint[]) k(agent_key), LATERAL
                  (SELECT * FROM snapshots s WHERE s.agent_key = k.agent_key AND s.damage = '' ORDER BY s.version DESC LIMIT 1) s"""  # noqa: S608
        rows = await self._rows(sql, [agent.agent_key for agent in agents]) if agents else []
        found = {row[COLUMNS.index("agent_key")]: row[:-2] for row in rows}
        return [_row((*found[agent.agent_key], agent.tenant, agent.agent)) if agent.agent_key in found else None for agent in agents]

    async def get_snapshot(self, tenant: str, id: UUID) -> SnapshotRow | None:
        rows = await self._of_tenant(tenant, f"{_NAMED} WHERE t.name = %s AND s.id = %s", id)
        return _row(rows[0]) if rows else None

    async def list_snapshots(self, tenant: str, *, after: UUID | None = None, limit: int = 100) -> list[SnapshotRow]:
        sql = f"{_NAMED} WHERE t.name = %s AND s.id > %s ORDER BY s.id LIMIT %s"
        return [_row(row) for row in await self._of_tenant(tenant, sql, after or UUID(int=0), limit)]

    async def _of_tenant(self, tenant: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a tenant under the role that sees no other's."""
        keys = await self._rows("SELECT tenant_key FROM tenants WHERE name = %s", tenant)
        return await self._tenant_rows(keys[0][0], sql, tenant, *values) if keys else []

    async def mark_snapshot(self, row: SnapshotRow, mark: SnapshotMark) -> SnapshotRow | None:
        sql = """UPDATE snapshots SET
                   damage = CASE WHEN damage = '' THEN coalesce(%s::text, '') ELSE damage END,
                   verified_us = coalesce(%s::bigint, verified_us), expires_us = coalesce(%s::bigint, expires_us),
                   permanent = coalesce(%s::boolean, permanent), critical = coalesce(%s::boolean, critical)
                 WHERE tenant_key = %s AND id = %s"""
        await self._rows(sql, *mark, row.tenant_key, row.id)
        return await self.get_snapshot(row.tenant, row.id)

    async def replace_snapshot(self, old: SnapshotRow, new: SnapshotRow) -> bool:
        with translated():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK, (old.tenant_key, old.agent_key))
                sql = f"{_NAMED} WHERE s.tenant_key = %s AND s.id = %s AND s.damage = '' FOR UPDATE OF s"
                cursor = await connection.execute(sql.encode(), (old.tenant_key, old.id), binary=True)
                found = await cursor.fetchone()
                if found is None:
                    return False
                await connection.execute("DELETE FROM snapshots WHERE tenant_key = %s AND id = %s", (old.tenant_key, old.id))
                row = promised_as(new, _row(found))
                await connection.execute(_INSERT.encode(), [getattr(row, column) for column in COLUMNS])
        return True

    async def delete_snapshots(
        self, agent: AgentRecord, ids: Sequence[UUID], *, keep_newest: int, even_permanent: bool = False
    ) -> list[UUID]:
        sql = """DELETE FROM snapshots WHERE tenant_key = %s AND agent_key = %s AND id = ANY(%s) AND (%s OR NOT permanent) AND id NOT IN
                   (SELECT id FROM snapshots WHERE agent_key = %s AND damage = '' ORDER BY version DESC LIMIT %s)
                 AND NOT (damage = '' AND version IN (SELECT f.version - 1 FROM floors f WHERE f.agent_key = snapshots.agent_key))
                 RETURNING id"""
        with translated():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK, (agent.tenant_key, agent.agent_key))
                values = (agent.tenant_key, agent.agent_key, list(ids), even_permanent, agent.agent_key, keep_newest)
                cursor = await connection.execute(sql, values, binary=True)
                return sorted(id for (id,) in await cursor.fetchall())


def _row(values: Sequence[Any]) -> SnapshotRow:
    """A row selected as COLUMNS and the two names."""
    *columns, tenant, agent = values
    return SnapshotRow(tenant=tenant, agent=agent, **dict(zip(COLUMNS, columns, strict=True)))
