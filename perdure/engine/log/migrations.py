"""Numbered SQL migrations, and the table of checksums that a log keeps of those it has had.

Pure: the files of a dialect are read with `load`, and `pending` says which of them a log still needs. Each store runs them in its own way,
all in one transaction, under a lock against a second process that opens the same log, and records each with `RECORD_COLUMNS`.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from perdure.errors import ConfigurationError, IntegrityError

__all__ = ["RECORD_COLUMNS", "RECORD_TABLE", "RECORD_TABLE_SQL", "Migration", "folder", "load", "parse", "pending", "statements"]

RECORD_TABLE = "perdure_migrations"
RECORD_COLUMNS = ("number", "name", "checksum", "applied_us")
RECORD_TABLE_SQL = (
    f"CREATE TABLE IF NOT EXISTS {RECORD_TABLE} "
    "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_us BIGINT NOT NULL)"
)
"""Valid in SQLite and in Postgres."""

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


class Migration(NamedTuple):
    """One step of a schema. checksum: SHA-256 of the text, hex; it does not depend on the line ends of a checkout."""

    number: int
    name: str
    sql: str
    checksum: str


def folder(dialect: str) -> Traversable:
    """The folder of a dialect's SQL (`schema.sql`, `migrations/`), as it is installed."""
    return files("perdure.engine.log") / "sql" / dialect


def load(dialect: str) -> tuple[Migration, ...]:
    """The migrations of a dialect in order. Raises ConfigurationError when the installed files are not 1, 2, 3 …"""
    texts = {entry.name: entry.read_text("utf-8") for entry in (folder(dialect) / "migrations").iterdir() if entry.name.endswith(".sql")}
    return parse(texts)


def parse(texts: Mapping[str, str]) -> tuple[Migration, ...]:
    """Migrations from file names (`0001_what.sql`) and their texts."""
    found = []
    for file_name, text in sorted(texts.items()):
        match = _FILE_NAME.fullmatch(file_name)
        if match is None:
            raise ConfigurationError(f"{file_name!r} is not the name of a migration", hint="migrations are named 0001_what_it_does.sql")
        sql = text.replace("\r\n", "\n")
        found.append(Migration(int(match[1]), match[2], sql, hashlib.sha256(sql.encode()).hexdigest()))
    numbers = [migration.number for migration in found]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ConfigurationError(
            f"migrations must be numbered 1, 2, 3 …; found {numbers}", hint="reinstall perdure: its SQL files are incomplete"
        )
    return tuple(found)


def pending(migrations: tuple[Migration, ...], applied: Mapping[int, str]) -> tuple[Migration, ...]:
    """Those of `migrations` that a log still needs. applied: number → checksum, as the log recorded them.

    Raises ConfigurationError when the log is newer than this program, IntegrityError when it had another text under the same number.
    """
    if applied and max(applied) > len(migrations):
        raise ConfigurationError(
            f"the log has schema {max(applied)}, this perdure knows {len(migrations)}",
            hint="a newer perdure has opened this log: upgrade this one",
        )
    if sorted(applied) != list(range(1, len(applied) + 1)):
        raise IntegrityError(f"the log records migrations {sorted(applied)}, which is not 1, 2, 3 …", hint="restore the log from a backup")
    for migration in migrations[: len(applied)]:
        if applied[migration.number] != migration.checksum:
            raise IntegrityError(
                f"migration {migration.number} ({migration.name}) is not the one that this log was made with",
                hint="a migration that was released is never edited; add a new one",
            )
    return migrations[len(applied) :]


def statements(sql: str) -> Iterator[str]:
    """The single statements of a SQLite script, for drivers that would commit before running a whole script."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        if not statement and (not line.strip() or line.startswith("--")):
            continue
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    if statement.strip():
        raise ConfigurationError(f"a migration ends in the middle of a statement: {statement.strip()[:60]!r}")
