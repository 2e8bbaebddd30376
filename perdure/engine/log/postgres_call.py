"""One prepared statement, called without the driver's layers; and the bound on how long a server may be silent.

A group commit is one call, which goes to libpq directly (`postgres_exchange`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg import AsyncConnection, OperationalError, errors
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn

from perdure.engine.log.postgres_exchange import Exchange
from perdure.errors import Unavailable

__all__ = ["PreparedCall", "Silent", "Watch", "answered_within", "places"]


def places(parameters: int) -> str:
    """`$1, $2, …`"""
    return ", ".join(f"${number}" for number in range(1, parameters + 1))


class Silent(Unavailable):
    """The server said nothing for too long."""


class PreparedCall:
    """A statement that was prepared on a connection. Nobody else uses the connection during a call."""

    def __init__(self, connection: AsyncConnection[Any], name: str, sql: str, parameters: int) -> None:
        self._name = f"perdure_{name}".encode()
        self._sql = f"PREPARE perdure_{name} AS {sql}".encode()
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._formats = [Format.BINARY] * parameters
        self._exchange = Exchange(self._pgconn)

    async def prepare(self) -> None:
        """Tell the server; where a type is not given, it is that of the function's parameter."""
        await self._connection.execute(self._sql, prepare=False)

    async def __call__(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        """The one row. values and answer: in binary form. Raises what psycopg raises."""
        try:
            return await self._ask(values)
        except errors.InvalidSqlStatementName:
            # The driver drops all statements after a rollback, ours among them. Nothing has been done.
            await self.prepare()
            return await self._ask(values)

    async def _ask(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        self._pgconn.send_query_prepared(self._name, values, self._formats, result_format=Format.BINARY)
        result = (await self._exchange.answers())[-1]
        if result.status != ExecStatus.TUPLES_OK:
            raise errors.error_from_result(result, self._connection.info.encoding)
        return [result.get_value(0, column) for column in range(result.nfields)]


class Watch:
    """Over a connection whose server has to answer in time."""

    def __init__(self, connection: AsyncConnection[Any], limit_s: float) -> None:
        self.silent = False
        self.limit_s = limit_s
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit_s, self._give_up)

    def allow(self, limit_s: float) -> None:
        """Begin anew, with this limit."""
        self._timer.cancel()
        self.limit_s = limit_s
        self._timer = self._loop.call_later(limit_s, self._give_up)

    def end(self) -> None:
        """Watch no more."""
        self._timer.cancel()

    def _give_up(self) -> None:
        self.silent = True
        _shut_down(self._connection)


@contextmanager
def answered_within(connection: AsyncConnection[Any], limit_s: float) -> Iterator[Watch]:
    """Give a server up that has not answered when the time is over: the connection is shut down, so whatever waits on it fails at once.

    A server can be silent for ever on a connection that stays open (a machine that hangs, a proxy that stopped forwarding); TCP does not tell.
    Raises Silent: what the server did is not known.
    """
    watch = Watch(connection, limit_s)
    try:
        yield watch
    except OperationalError as problem:
        if watch.silent:
            message = f"Postgres did not answer within {watch.limit_s:.1f} s"
            raise Silent(message, hint="the same call with the same event ids is safe to repeat") from problem
        raise
    finally:
        watch.end()


def _shut_down(connection: AsyncConnection[Any]) -> None:
    # Not closed: libpq has the descriptor, and reads the end of the stream from it.
    if connection.closed:
        return
    with socket.socket(fileno=os.dup(connection.fileno())) as beside:
        try:
            beside.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is gone already, and whoever waits on it knows
