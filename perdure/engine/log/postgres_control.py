"""Control documents, blobs and leases in Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from perdure import limits
from perdure.engine.log.contract import Document, Lease
from perdure.engine.log.postgres_call import Silent, answered_within
from perdure.engine.log.postgres_errors import translated
from perdure.errors import PerdureError

__all__ = ["PostgresControl"]


class PostgresControl:
    """The part of `LogStore` that is not about events."""

    _pool: AsyncConnectionPool
    _superseded: PerdureError | None = None
    """Set when this process belongs to a generation of the log that is over: nothing it knows holds any more."""

    async def _rows(self, sql: str, *values: Any, limit_s: float | None = None) -> list[tuple[Any, ...]]:
        async with self._answering(self._pool, limit_s or limits.ANSWER_TIMEOUT_S) as connection:
            cursor = await connection.execute(sql, values, binary=True)
            return await cursor.fetchall() if cursor.description is not None else []

    @asynccontextmanager
    async def _answering(self, pool: AsyncConnectionPool, limit_s: float) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection of the pool, given up when the server is silent for too long; those beside it are then made anew as well."""
        with translated():
            try:
                async with pool.connection() as connection:
                    self._check_generation()
                    with answered_within(connection, limit_s):
                        yield connection
            except Silent:
                await pool.drain()
                raise

    def _check_generation(self) -> None:
        if self._superseded is not None:
            raise self._superseded

    async def get_document(self, scope: str, name: str) -> Document | None:
        rows = await self._rows("SELECT scope, name, revision, value FROM documents WHERE scope = %s AND name = %s", scope, name)
        return Document(*rows[0]) if rows else None

    async def list_documents(self, scope: str) -> list[Document]:
        rows = await self._rows("SELECT scope, name, revision, value FROM documents WHERE scope = %s ORDER BY name", scope)
        return [Document(*row) for row in rows]

    async def put_document(self, scope: str, name: str, value: bytes, *, expected: int | None) -> Document | None:
        if expected == 0:
            sql = "INSERT INTO documents VALUES (%s, %s, 1, %s) ON CONFLICT DO NOTHING RETURNING revision"
            rows = await self._rows(sql, scope, name, value)
        elif expected is None:
            sql = """INSERT INTO documents AS d VALUES (%s, %s, 1, %s)
                     ON CONFLICT (scope, name) DO UPDATE SET value = excluded.value, revision = d.revision + 1 RETURNING revision"""
            rows = await self._rows(sql, scope, name, value)
        else:
            sql = """UPDATE documents SET value = %s, revision = revision + 1
                     WHERE scope = %s AND name = %s AND revision = %s RETURNING revision"""
            rows = await self._rows(sql, value, scope, name, expected)
        return Document(scope, name, rows[0][0], value) if rows else None

    async def delete_document(self, scope: str, name: str) -> None:
        await self._rows("DELETE FROM documents WHERE scope = %s AND name = %s", scope, name)

    async def put_blob(self, tenant: str, name: bytes, payload: bytes) -> None:
        await self._rows(
            "INSERT INTO blobs VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", tenant, name, payload, limit_s=limits.BLOB_TIMEOUT_S
        )

    async def get_blob(self, tenant: str, name: bytes) -> bytes | None:
        rows = await self._rows("SELECT payload FROM blobs WHERE tenant = %s AND name = %s", tenant, name, limit_s=limits.BLOB_TIMEOUT_S)
        return rows[0][0] if rows else None

    async def acquire_lease(self, name: str, holder: str, duration_s: float) -> Lease | None:
        # The epoch stays while the same holder renews in time, and grows with every other change.
        sql = """INSERT INTO leases AS l VALUES (%(name)s, %(holder)s, 1, clock_timestamp() + %(duration)s * interval '1 second')
                 ON CONFLICT (name) DO UPDATE SET
                   epoch = l.epoch + CASE WHEN l.holder = excluded.holder AND l.expires > clock_timestamp() THEN 0 ELSE 1 END,
                   holder = excluded.holder,
                   expires = excluded.expires
                 WHERE l.holder = excluded.holder OR l.expires <= clock_timestamp()
                 RETURNING epoch"""
        async with self._answering(self._pool, limits.COMMIT_TIMEOUT_S) as connection:
            cursor = await connection.execute(sql, {"name": name, "holder": holder, "duration": duration_s})
            row = await cursor.fetchone()
        return Lease(name, holder, row[0], duration_s) if row else None

    async def release_lease(self, lease: Lease) -> None:
        # The row stays, so that its epoch goes on growing.
        sql = "UPDATE leases SET expires = '-infinity' WHERE name = %s AND holder = %s AND epoch = %s"
        await self._rows(sql, lease.name, lease.holder, lease.epoch)

    async def list_leases(self, prefix: str) -> list[Lease]:
        sql = """SELECT name, holder, epoch, extract(epoch FROM expires - clock_timestamp())::float8 FROM leases
                 WHERE starts_with(name, %s) AND expires > clock_timestamp() ORDER BY name"""
        return [Lease(*row) for row in await self._rows(sql, prefix)]
