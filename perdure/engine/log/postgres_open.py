"""Opening a Postgres log: connections, the checks of the server's settings, migrations."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from psycopg import AsyncConnection, ProgrammingError, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from perdure.engine.log import migrations
from perdure.engine.log.postgres_arrays import register
from perdure.errors import ConfigurationError, UnsafeSettings

__all__ = ["CONNECT_TIMEOUT_S", "SCHEMA", "check_settings", "check_url", "connect", "end_sessions", "make_pool", "migrate"]

SCHEMA = "perdure"
URL_HINT = "postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full; what is special in a password is percent-encoded"
CONNECT_TIMEOUT_S = 5
POOL_MAX = 10
IDLE_IN_TRANSACTION_MS = 4_000
"""A writer that stands still with a partition's lock in its hands is thrown out by the server, before others' appends run into their deadline."""
END_SESSIONS_S = 5.0
END_SESSIONS_EVERY_S = 0.005
_END_SESSIONS = """SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND usename = current_user AND application_name = 'perdure'
                     AND pid <> pg_backend_pid()"""
ALLOW_VARIABLE = "PERDURE_ALLOW_UNSAFE_SETTINGS"
_SAFE = {"fsync": {"on"}, "full_page_writes": {"on"}, "synchronous_commit": {"on", "local", "remote_write", "remote_apply"}}
_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "perdure",
    # Statement text is stable and worth preparing at once; a server that vanishes is noticed within seconds.
    "prepare_threshold": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": f"-c search_path={SCHEMA} -c default_transaction_isolation=read\\ committed -c timezone=UTC -c jit=off"
    f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}",
}


def check_url(url: str) -> None:
    """Raise ConfigurationError for what is no URL of a Postgres: no retry would heal it."""
    try:
        given = conninfo_to_dict(url)
    except ProgrammingError as problem:
        words = str(problem).strip()
        # The library quotes the URL, and with it the password.
        raise ConfigurationError(
            "the URL of Postgres is not well formed" + ("" if "://" in words else f": {words}"), hint=URL_HINT
        ) from None
    for port in str(given.get("port") or "").split(","):
        if port and not port.isdecimal():
            raise ConfigurationError(f"the URL of Postgres names a port that is no number: {port!r}", hint=URL_HINT)


async def connect(url: str) -> AsyncConnection[Any]:
    """One connection, for a writer or who reads tails: what they ask again and again is planned once.

    That may be while a segment is empty, and the plan is kept while it fills. So it takes an index wherever there is one.
    """
    options = _OPTIONS | {"options": _OPTIONS["options"] + " -c enable_seqscan=off -c enable_bitmapscan=off"}
    connection = await AsyncConnection.connect(url, **options)
    register(connection)
    return connection


Greeting = Callable[[AsyncConnection[Any]], Awaitable[None]]


def make_pool(url: str, *, role: str | None = None, greet: Greeting | None = None) -> AsyncConnectionPool:
    """Connections for everything else; with a role, they work under it. greet: looks at each that is made."""

    async def configure(connection: AsyncConnection[Any]) -> None:
        register(connection)
        if greet is not None:
            await greet(connection)
        if role is not None:
            await connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))

    # A plan that is made while a table is still small must not be kept for when it is large. And whatever is asked for stands in the order of an
    # index: without statistics, as long as a segment is new, the planner would gather all of an agent's rows and sort them, for each page anew.
    options = _OPTIONS | {"options": _OPTIONS["options"] + " -c plan_cache_mode=force_custom_plan -c enable_bitmapscan=off"}
    return AsyncConnectionPool(
        url,
        kwargs=options,
        min_size=1,
        max_size=POOL_MAX,
        open=False,
        timeout=CONNECT_TIMEOUT_S,
        # Attempts back off, up to the length of the outage; given up early, the next caller begins anew and finds the server as soon as it is back.
        reconnect_timeout=CONNECT_TIMEOUT_S,
        configure=configure,
        max_waiting=10_000,
    )


async def end_sessions(connection: AsyncConnection[Any]) -> None:
    """Let all others lose their connection to this log, this process's own as well, and wait until they have, for a while."""
    cursor = await connection.execute(_END_SESSIONS)
    ended = [pid for pid, _ in await cursor.fetchall()]
    until = time.monotonic() + END_SESSIONS_S
    # The server's own way to wait looks ten times a second, at one after the other.
    while time.monotonic() < until:
        cursor = await connection.execute("SELECT FROM pg_stat_activity WHERE pid = ANY(%s) LIMIT 1", (ended,))
        if not cursor.rowcount:
            return
        await asyncio.sleep(END_SESSIONS_EVERY_S)


async def check_settings(connection: AsyncConnection[Any], allowed: Collection[str] | None = None) -> None:
    """Raise UnsafeSettings where the server would acknowledge what is not durable, but for settings that are allowed by name."""
    names = os.environ.get(ALLOW_VARIABLE, "").split(",") if allowed is None else allowed
    for name, safe in _SAFE.items():
        row = await (await connection.execute("SELECT current_setting(%s)", (name,))).fetchone()
        value = str(row[0]) if row else ""
        if value not in safe and name not in names:
            raise UnsafeSettings(
                f"Postgres runs with {name} = {value}: acknowledged events could be lost",
                hint=f"set {name} = on, or accept it by name with {ALLOW_VARIABLE}={name}",
                setting=name,
                value=value,
            )


async def migrate(connection: AsyncConnection[Any], partitions: int, *, create: bool) -> None:
    """Bring the schema up to date, in one transaction under a lock."""
    steps = migrations.load("postgres")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"{SCHEMA}.migrations",))
        there = await (await connection.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.{migrations.RECORD_TABLE}",))).fetchone()
        applied: dict[int, str] = {}
        if there is not None and there[0] is not None:
            cursor = await connection.execute(f"SELECT number, checksum FROM {migrations.RECORD_TABLE}")  # noqa: S608 - a constant
            applied = dict(await cursor.fetchall())
        todo = migrations.pending(steps, applied)
        if todo and not create:
            raise ConfigurationError("this database holds no log, or an older one", hint="run perdure init")
        if todo and not applied:
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
            await connection.execute(migrations.RECORD_TABLE_SQL)
        for step in todo:
            await connection.execute(step.sql.encode())
            await connection.execute(
                f"INSERT INTO {migrations.RECORD_TABLE} VALUES (%s, %s, %s, (extract(epoch FROM now()) * 1000000)::bigint)",  # noqa: S608
                (step.number, step.name, step.checksum),
            )
        if todo and not applied:
            await connection.execute("INSERT INTO meta VALUES ('partitions', %s), ('generation', 1)", (partitions,))
