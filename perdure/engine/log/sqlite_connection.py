"""Connections to the SQLite log: how one is opened, made and locked, and what SQLite's failures mean. Blocking; runs on the store's threads."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from perdure.engine.log import migrations
from perdure.errors import ConfigurationError, IntegrityError, LimitExceeded, PerdureError, Unavailable
from perdure.limits import APPEND_TIMEOUT_S, MIB, PARTITIONS_MAX

__all__ = ["DATABASE", "as_error", "connect", "patiently", "prepare", "reading", "transaction", "translated"]

DATABASE: Final = "log.db"
PAGE_BYTES: Final = 8192
"""Larger pages hold more whole payloads: 4 % fewer bytes per event than with SQLite's 4096."""
CHECKPOINT_PAGES: Final = 2000
JOURNAL_BYTES_MAX: Final = 64 * MIB
CACHE_KIB: Final = 32 * 1024
LOCK_POLL_S: Final = 0.002
"""SQLite's own waiting backs off to 100 ms and starves; a transaction here takes about as long as one flush of the disk."""

_META = "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING"


def connect(file: Path, *, writer: bool) -> sqlite3.Connection:
    """A connection that commits by hand, durably. Used by one thread at a time; closed by another."""
    connection = sqlite3.connect(file, timeout=APPEND_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    if writer:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS tells a disk's cache from the disk; elsewhere it changes nothing
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES_MAX}")
    else:
        connection.execute("PRAGMA query_only = ON")
    return connection


def prepare(file: Path, partitions: int, *, create: bool) -> sqlite3.Connection:
    """The writer's connection to a log whose schema is up to date; made when missing. partitions counts only when it is made."""
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise ConfigurationError(f"a log has 1 to {PARTITIONS_MAX} partitions, not {partitions}")
    fresh = not file.exists()
    if fresh and not create:
        raise ConfigurationError(f"there is no log in {file.parent}", hint="check PERDURE_LOG, or make one: perdure init")
    if fresh:
        _make_folder(file.parent)
    connection = connect(file, writer=True)
    try:
        _write_ahead(connection)
        # From here on all that it does is within transactions, and `patiently` waits for their lock.
        connection.execute("PRAGMA busy_timeout = 0")
        _migrate(connection, partitions)
    except BaseException:
        connection.close()
        raise
    if fresh:
        _sync_folder(file.parent)
    return connection


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {folder}: {error.strerror}", hint="check the path and its permissions") from error


def _write_ahead(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # no effect on a file that is there already
    deadline = time.monotonic() + APPEND_TIMEOUT_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchall()[0]
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait by itself when two processes make the same file at once.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(LOCK_POLL_S)
    if mode != "wal":
        raise ConfigurationError(f"SQLite keeps its journal in mode {mode!r} here", hint="put the log on a local file system")


def _migrate(connection: sqlite3.Connection, partitions: int) -> None:
    known = migrations.load("sqlite")
    with transaction(connection):
        connection.execute(migrations.RECORD_TABLE_SQL)
        applied = dict(connection.execute(f"SELECT number, checksum FROM {migrations.RECORD_TABLE}").fetchall())  # noqa: S608
        for migration in migrations.pending(known, applied):
            for statement in migrations.statements(migration.sql):
                connection.execute(statement)
            row = (migration.number, migration.name, migration.checksum, time.time_ns() // 1000)
            connection.execute(f"INSERT INTO {migrations.RECORD_TABLE} VALUES (?, ?, ?, ?)", row)  # noqa: S608
        connection.executemany(_META, [("partitions", partitions), ("generation", 1), ("created_us", time.time_ns() // 1000)])


def _sync_folder(folder: Path) -> None:
    """A new file survives a power failure only when its folder was flushed too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold the log's one lock from here to the commit, over all processes; roll back whatever is raised."""
    patiently(connection, "BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself after some failures
            connection.execute("ROLLBACK")
        raise


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """Within, all reads see one moment of the log."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def patiently(connection: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> None:
    """Run a statement that takes the log's lock; where another connection holds it, wait for it."""
    deadline = 0.0
    while True:
        try:
            connection.execute(sql, values)
            return
        except sqlite3.OperationalError as error:
            deadline = deadline or time.monotonic() + APPEND_TIMEOUT_S
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            # Uneven steps: several waiting processes do not fall into step with the one that holds the lock.
            time.sleep(LOCK_POLL_S * random.random())  # noqa: S311


@contextmanager
def translated(file: Path) -> Iterator[None]:
    """Raise SQLite's failures as errors of perdure."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a mistake of ours, not the database's failure
    except sqlite3.Error as error:
        raise as_error(error, file) from error


def as_error(error: sqlite3.Error, file: Path) -> PerdureError:
    """SQLite's failure as an error of perdure."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    what = f"{file}: {error}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(what, hint=f"another process held the log's lock for {APPEND_TIMEOUT_S:.0f} s; try again")
    if code == sqlite3.SQLITE_FULL:
        return Unavailable(what, hint="the disk is full: make room, then try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return ConfigurationError(what, hint="check the folder and its permissions")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IntegrityError(what, hint="the file is damaged or is no log: run `perdure verify`, or restore a backup")
    if code == sqlite3.SQLITE_TOOBIG:
        return LimitExceeded(what)
    if code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR):
        return IntegrityError(what, hint="the log refused what would break it: run `perdure verify`")
    # I/O errors, out of memory, closed connections: whether the last commit stands is not known.
    return Unavailable(what, hint="check the disk, then repeat with the same event ids")
