"""What the kit's adversarial cases do around our two backends."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.postgres_open import SCHEMA
from perdure.engine.log.records import AgentRecord, SealedEvent
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.log.sqlite_connection import DATABASE
from perdure.services.postgres import _installed
from perdure.testing.log_surroundings import Opener

COLUMNS = (
    "agent_key", "offset", "time_us", "version", "epoch", "tenant_key", "partition", "id", "causation", "type", "chain", "correlation",
    "trace", "project", "module", "payload",
)  # fmt: skip
RESTORE_TIMEOUT_S = 60


def _values(event: SealedEvent, id: Any) -> list[Any]:
    names = {"causation": "causation_id", "correlation": "correlation_id", "trace": "trace_id"}
    return [id if name == "id" else getattr(event, names.get(name, name)) for name in COLUMNS]


class PostgresSurroundings:
    """Around the log in one database. other_server: the URL of a cluster that is younger, asked for when a log is restored."""

    def __init__(self, url: str, other_server: Callable[[], str], **options: Any) -> None:
        self._url = url
        self._other_server = other_server
        self._options = options

    @asynccontextmanager
    async def transaction_elsewhere(self) -> AsyncIterator[None]:
        elsewhere = urlunsplit(urlsplit(self._url)._replace(path="/postgres"))
        async with await psycopg.AsyncConnection.connect(elsewhere) as connection:
            await connection.execute("CREATE TEMPORARY TABLE held AS SELECT pg_current_xact_id()")
            yield
            await connection.rollback()

    @asynccontextmanager
    async def idle_session(self) -> AsyncIterator[None]:
        async with await psycopg.AsyncConnection.connect(self._url, options=f"-c search_path={SCHEMA}") as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await connection.execute(
                "SELECT pg_current_xact_id(), (SELECT sum(length(payload)) FROM events), (SELECT count(*) FROM agents)"
            )
            yield
            await connection.rollback()

    async def restored(self) -> Opener:
        server = self._other_server()
        await asyncio.to_thread(self._restore, server)
        return partial(PostgresStore.open, server, create=False, **self._options)

    def _restore(self, server: str) -> None:
        with psycopg.connect(server, autocommit=True) as new, psycopg.connect(self._url) as old:
            new.execute("DROP SCHEMA IF EXISTS perdure CASCADE")
            if new.execute("SELECT 1 FROM pg_roles WHERE rolname = 'perdure_reader'").fetchone() is None:
                new.execute("CREATE ROLE perdure_reader NOLOGIN")
            (before,), (after,) = (each.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,) for each in (old, new))
            assert after < before, "transaction ids there are not lower"
        dump = subprocess.run([program("pg_dump"), self._url], check=True, capture_output=True, timeout=RESTORE_TIMEOUT_S).stdout
        restore = [program("psql"), "--quiet", "--set=ON_ERROR_STOP=1", server]
        subprocess.run(restore, input=dump, check=True, stdout=subprocess.DEVNULL, timeout=RESTORE_TIMEOUT_S)

    async def place(self, event: SealedEvent) -> None:
        async with await psycopg.AsyncConnection.connect(self._url, options=f"-c search_path={SCHEMA}") as connection:
            cursor = await connection.execute("SELECT value FROM meta WHERE name = 'segment_offsets'")
            ((size,),) = await cursor.fetchall()
            segment = (event.offset - 1) // size
            await connection.execute("SELECT ensure_segment(%s, %s, %s)", (event.partition, segment, size))
            columns = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
            holders = sql.SQL(", ").join([sql.Placeholder()] * len(COLUMNS))
            await connection.execute(sql.SQL("INSERT INTO events ({}) VALUES ({})").format(columns, holders), _values(event, event.id))
            hint = "INSERT INTO agent_segments VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
            await connection.execute(hint, (event.agent_key, segment, event.version))

    async def erase(self, agent: AgentRecord) -> None:
        async with await psycopg.AsyncConnection.connect(self._url, options=f"-c search_path={SCHEMA}") as connection:
            await connection.execute("UPDATE agents SET data_key = '' WHERE agent_key = %s", (agent.agent_key,))


class SqliteSurroundings:
    """Around the log in one folder; copies are made in folders beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / DATABASE

    @asynccontextmanager
    async def transaction_elsewhere(self) -> AsyncIterator[None]:
        connection = sqlite3.connect(self._folder / "elsewhere.db", isolation_level=None)
        connection.execute("CREATE TABLE held (value)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO held VALUES (1)")
        try:
            yield
        finally:
            connection.close()

    @asynccontextmanager
    async def idle_session(self) -> AsyncIterator[None]:
        connection = sqlite3.connect(self._file, isolation_level=None)
        connection.execute("BEGIN")
        connection.execute("SELECT sum(length(payload)) FROM events").fetchall()
        try:
            yield
        finally:
            connection.close()

    async def restored(self) -> Opener:
        folder = self._folder.with_name(f"{self._folder.name}-restored")
        folder.mkdir()
        self._change("VACUUM INTO ?", (str(folder / DATABASE),))
        return partial(SqliteStore.open, folder, create=False)

    async def place(self, event: SealedEvent) -> None:
        holders = ", ".join(["?"] * len(COLUMNS))
        self._change(f"INSERT INTO events ({', '.join(COLUMNS)}) VALUES ({holders})", _values(event, event.id.bytes))

    async def erase(self, agent: AgentRecord) -> None:
        self._change("UPDATE agents SET data_key = x'' WHERE agent_key = ?", (agent.agent_key,))

    def _change(self, statement: str, values: Any) -> None:
        connection = sqlite3.connect(self._file, isolation_level=None)
        try:
            connection.execute(statement, values)
        finally:
            connection.close()


def program(name: str) -> str:
    """A program of Postgres, of the newest version that this machine has."""
    installed = _installed()
    folder = installed[max(installed)] if installed else None
    found = shutil.which(name, path=folder) or shutil.which(name)
    assert found, f"{name} is not installed"
    return found
