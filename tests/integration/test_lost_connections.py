"""A connection that Postgres ends in the midst of an exchange is noticed, whichever loop runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest
import uvloop

from perdure.engine.log.postgres_arrays import Packed
from perdure.engine.log.postgres_exchange import Statement, ask_at_once

TIMEOUT_S = 60.0
UNREAD = b"x" * 200_000
"""More than a backend reads at once, and as much as goes to the socket at once: a backend that ends then resets the connection."""
BYTEA = 17

Run = Callable[[Coroutine[Any, Any, None]], None]


def end(url: str, backend: int) -> None:
    """Let a session end, and return when it has; the loop of this thread sees nothing of it meanwhile."""
    until = time.monotonic() + TIMEOUT_S
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (backend,))
        while other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (backend,)).rowcount:
            assert time.monotonic() < until
            time.sleep(0.01)


async def lose(url: str) -> None:
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    statements = Statement(b"SELECT pg_sleep(600)"), Statement(b"SELECT $1", [Packed(BYTEA, UNREAD)])
    asking = asyncio.create_task(ask_at_once(connection, *statements))
    for _ in range(3):
        await asyncio.sleep(0)
    # Its last words and the end of the connection come at once: uvloop tells of both together, and never again.
    end(url, connection.info.backend_pid)
    with pytest.raises(psycopg.OperationalError):
        async with asyncio.timeout(TIMEOUT_S):
            await asking
    assert connection.closed


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_session_that_is_ended_with_questions_unread_is_noticed(fresh_database: str, run: Run) -> None:
    run(lose(fresh_database))
