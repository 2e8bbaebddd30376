"""Control documents, blobs and leases in the SQLite log. Plain functions on a connection; they block, and writes run in the caller's transaction."""

from __future__ import annotations

import sqlite3
import time

from perdure.engine.log.records import Document, Lease
from perdure.errors import InvalidInput

__all__ = [
    "acquire_lease",
    "delete_document",
    "get_blob",
    "get_document",
    "list_documents",
    "list_leases",
    "put_blob",
    "put_document",
    "release_lease",
]


def get_document(connection: sqlite3.Connection, scope: str, name: str) -> Document | None:
    """The document, or None."""
    rows = connection.execute("SELECT scope, name, revision, value FROM documents WHERE scope = ? AND name = ?", (scope, name)).fetchall()
    return Document(*rows[0]) if rows else None


def list_documents(connection: sqlite3.Connection, scope: str) -> list[Document]:
    """Every document of a scope, in order of name."""
    rows = connection.execute("SELECT scope, name, revision, value FROM documents WHERE scope = ? ORDER BY name", (scope,)).fetchall()
    return [Document(*row) for row in rows]


def put_document(connection: sqlite3.Connection, scope: str, name: str, value: bytes, expected: int | None) -> Document | None:
    """Compare and set; None when another revision stands."""
    standing = get_document(connection, scope, name)
    revision = standing.revision if standing else 0
    if expected is not None and expected != revision:
        return None
    written = Document(scope, name, revision + 1, value)
    connection.execute("INSERT OR REPLACE INTO documents (scope, name, revision, value) VALUES (?, ?, ?, ?)", written)
    return written


def delete_document(connection: sqlite3.Connection, scope: str, name: str) -> None:
    """Delete it, if it is there."""
    connection.execute("DELETE FROM documents WHERE scope = ? AND name = ?", (scope, name))


def put_blob(connection: sqlite3.Connection, tenant: str, name: bytes, payload: bytes) -> None:
    """Keep it; the first stays."""
    connection.execute("INSERT INTO blobs (tenant, name, payload) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (tenant, name, payload))


def get_blob(connection: sqlite3.Connection, tenant: str, name: bytes) -> bytes | None:
    """The bytes, or None."""
    rows = connection.execute("SELECT payload FROM blobs WHERE tenant = ? AND name = ?", (tenant, name)).fetchall()
    return bytes(rows[0][0]) if rows else None


def _now_us() -> int:
    return time.time_ns() // 1000


def acquire_lease(connection: sqlite3.Connection, name: str, holder: str, duration_s: float) -> Lease | None:
    """Take or renew; the epoch grows when it changes hands, and after it ran out or was given back."""
    if duration_s <= 0:
        raise InvalidInput(f"a lease lasts longer than 0 s, not {duration_s}")
    now_us = _now_us()
    epoch = 1
    rows = connection.execute("SELECT holder, epoch, expires_us FROM leases WHERE name = ?", (name,)).fetchall()
    if rows:
        held_by, held_epoch, expires_us = rows[0]
        if expires_us > now_us and held_by != holder:
            return None
        epoch = held_epoch if expires_us > now_us else held_epoch + 1
    row = (name, holder, epoch, now_us + int(duration_s * 1_000_000))
    connection.execute("INSERT OR REPLACE INTO leases (name, holder, epoch, expires_us) VALUES (?, ?, ?, ?)", row)
    return Lease(name, holder, epoch, duration_s)


def release_lease(connection: sqlite3.Connection, lease: Lease) -> None:
    """Let it run out at once, if it is still this holder's and epoch's; its row stays and remembers the epoch."""
    sql = "UPDATE leases SET expires_us = 0 WHERE name = ? AND holder = ? AND epoch = ?"
    connection.execute(sql, (lease.name, lease.holder, lease.epoch))


def list_leases(connection: sqlite3.Connection, prefix: str) -> list[Lease]:
    """Unexpired leases whose name starts with the prefix, in order of name."""
    now_us = _now_us()
    rows = connection.execute(
        "SELECT name, holder, epoch, expires_us FROM leases WHERE substr(name, 1, ?) = ? AND expires_us > ? ORDER BY name",
        (len(prefix), prefix, now_us),
    ).fetchall()
    return [Lease(name, holder, epoch, (expires_us - now_us) / 1_000_000) for name, holder, epoch, expires_us in rows]
