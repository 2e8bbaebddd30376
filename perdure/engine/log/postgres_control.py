"""Control documents, blobs and leases in Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from perdure import limits
from perdure.engine.log.postgres_arrays import bigints, byteas, texts
from perdure.engine.log.postgres_call import Silent, answered_within
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.records import Document, Lease
from perdure.engine.log.together import Together
from perdure.errors import PerdureError

__all__ = ["PostgresControl"]


DOCUMENTS_AT_ONCE: Final = 256
_MAKE_DOCUMENTS: Final = """
    INSERT INTO documents (scope, name, revision, value)
    SELECT scope, name, expected + 1, value FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::bytea[]) n(scope, name, expected, value)
    ON CONFLICT DO NOTHING RETURNING scope, name, revision"""
_CHANGE_DOCUMENTS: Final = """
    WITH n AS (SELECT * FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::bytea[]) n(scope, name, expected, value)),
    held AS MATERIALIZED (
      SELECT d.scope, d.name FROM documents d JOIN n USING (scope, name) WHERE d.revision = n.expected
      ORDER BY d.scope, d.name FOR UPDATE OF d)
    UPDATE documents d SET value = n.value, revision = d.revision + 1 FROM n JOIN held USING (scope, name)
    WHERE d.scope = n.scope AND d.name = n.name AND d.revision = n.expected
    RETURNING d.scope, d.name, d.revision"""


_PUT_DOCUMENTS: Final = """
    INSERT INTO documents AS d (scope, name, revision, value)
    SELECT scope, name, 1, value FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::bytea[]) n(scope, name, expected, value)
    ON CONFLICT (scope, name) DO UPDATE SET value = excluded.value, revision = d.revision + 1 RETURNING scope, name, revision"""
_ANYHOW: Final = -1


class _Change(msgspec.Struct, eq=False):
    """A document as it shall be, where it stands at the expected revision (0: it is not there), or anyhow. Two that are the same are still two."""

    scope: str
    name: str
    expected: int
    value: bytes

    @property
    def sql(self) -> str:
        """What makes it so."""
        return _PUT_DOCUMENTS if self.expected == _ANYHOW else _CHANGE_DOCUMENTS if self.expected else _MAKE_DOCUMENTS


class PostgresControl:
    """The part of `LogStore` that is not about events."""

    _pool: AsyncConnectionPool
    _reading: Together[tuple[str, str], Document | None]
    _changing: Together[_Change, int | None]
    _superseded: PerdureError | None = None
    """Set when this process belongs to a generation of the log that is over: nothing it knows holds any more."""

    def _together(self) -> None:
        # Documents that many ask for or change at once go together.
        self._reading = Together(self._read_documents, DOCUMENTS_AT_ONCE)
        self._changing = Together(self._change_documents, DOCUMENTS_AT_ONCE)

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
        return await self._reading.get((scope, name))

    async def _read_documents(self, wanted: Sequence[tuple[str, str]]) -> list[Document | None]:
        sql = """SELECT d.scope, d.name, d.revision, d.value
                 FROM unnest(%b::text[], %b::text[]) n(scope, name) JOIN documents d USING (scope, name)"""
        rows = await self._rows(sql, texts([scope for scope, _ in wanted]), texts([name for _, name in wanted]))
        found = {row[:2]: Document(*row) for row in rows}
        return [found.get(key) for key in wanted]

    async def list_documents(self, scope: str) -> list[Document]:
        rows = await self._rows("SELECT scope, name, revision, value FROM documents WHERE scope = %s ORDER BY name", scope)
        return [Document(*row) for row in rows]

    async def put_document(self, scope: str, name: str, value: bytes, *, expected: int | None) -> Document | None:
        revision = await self._changing.get(_Change(scope, name, _ANYHOW if expected is None else expected, value))
        return None if revision is None else Document(scope, name, revision, value)

    async def _change_documents(self, changes: Sequence[_Change]) -> list[int | None]:
        """The new revisions; None where the document was not as expected. Of several changes of one document the first comes first."""
        revisions: dict[_Change, int | None] = {}
        left = list(changes)
        while left:
            first = {(change.scope, change.name): change for change in reversed(left)}
            left = [change for change in left if first[change.scope, change.name] is not change]
            # In the order of their names: two who change many at once wait for each other, and none for ever.
            for sql in (_MAKE_DOCUMENTS, _CHANGE_DOCUMENTS, _PUT_DOCUMENTS):
                if now := [first[key] for key in sorted(first) if first[key].sql is sql]:
                    columns = texts([each.scope for each in now]), texts([each.name for each in now])
                    rows = await self._rows(sql, *columns, bigints([each.expected for each in now]), byteas([each.value for each in now]))
                    revisions |= {first[scope, name]: revision for scope, name, revision in rows}
        return [revisions.get(change) for change in changes]

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
