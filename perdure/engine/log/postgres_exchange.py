"""What is sent to libpq directly, and what comes back: the driver's layers (a cursor, looking up the plan, adapting parameters, a task that is woken
for each piece of an answer) cost an append or a page of rows more than its own work.

Invariant: an exchange either ends with all of its answers taken, or the connection is closed: no later question ever gets an answer to this one.
Nobody else uses the connection meanwhile.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from psycopg import AsyncConnection, OperationalError, errors
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format, PipelineStatus
from psycopg.pq.abc import PGconn, PGresult

from perdure.engine.log.postgres_arrays import Packed

__all__ = ["Exchange", "Statement", "ask_at_once", "rows_of"]

T = TypeVar("T")

PIECES_AT_ONCE: Final = 64
"""Of an answer, some 16 KB each, until others on the loop have their turn."""
_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class Statement(NamedTuple):
    """One statement, its parameters $1, $2 … in their binary forms."""

    sql: bytes
    values: Sequence[Packed] = ()


async def ask_at_once(connection: AsyncConnection[Any], *statements: Statement) -> list[PGresult]:
    """The results of statements that go in one round trip, in one transaction where none is open; rows in binary form.

    Each statement sees what was committed before it began, also while the one before it waited for a lock. The first that fails undoes
    all, and raises what psycopg raises.
    """
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    try:
        for sql, values in statements:
            types, formats = [value.oid for value in values], [Format.BINARY] * len(values)
            pgconn.send_query_params(sql, [value.data for value in values], types, formats, result_format=Format.BINARY)
        pgconn.pipeline_sync()
    except BaseException:
        pgconn.finish()
        raise
    results = await Exchange(pgconn).answers()
    pgconn.exit_pipeline_mode()
    for result in results:
        if result.status not in _GOOD:
            raise errors.error_from_result(result, connection.info.encoding)
    return results


def rows_of(connection: AsyncConnection[Any], result: PGresult, make_row: Callable[[Sequence[Any]], T]) -> list[T]:
    """What `make_row` makes of the rows of a result."""
    transformer = Transformer(connection)
    transformer.set_pgresult(result, format=Format.BINARY)
    return transformer.load_rows(0, result.ntuples, make_row)


def _has_more(descriptor: int) -> bool:
    """Whether bytes wait to be read, or the end of the connection does: of an end that has come uvloop tells once, also with bytes before it."""
    looking = select.poll()
    looking.register(descriptor, select.POLLIN)
    return bool(looking.poll(0))


class Exchange:
    """The waiting for answers on one connection; may be used again and again, for one exchange at a time."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[list[PGresult]] | None = None
        self._results: list[PGresult] = []
        self._fd = -1

    async def answers(self) -> list[PGresult]:
        """The results of what was just handed to libpq: of one statement, or of a pipeline up to its end. Raises OperationalError where the
        connection was lost; it is closed then, and where the caller was cancelled."""
        self._results = []
        done = self._done = self._loop.create_future()
        try:
            self._fd = self._pgconn.socket
            # What the socket does not take at once follows as soon as it does.
            if self._pgconn.flush():
                self._loop.add_writer(self._fd, self._writable)
            self._loop.add_reader(self._fd, self._readable)
            results: list[PGresult] = await done
            return results
        except BaseException:
            self._stop()
            self._pgconn.finish()  # what is still to come would be taken for the answer to the next question
            raise
        finally:
            self._stop()

    def _writable(self) -> None:
        try:
            if not self._pgconn.flush():
                self._loop.remove_writer(self._fd)
        except OperationalError as problem:
            self._settle(problem)

    def _readable(self) -> None:
        if self._fd < 0:
            return
        try:
            # What came while the loop was at work elsewhere is taken in one go: libpq takes no more than its buffer holds at a time.
            for _ in range(PIECES_AT_ONCE):
                self._pgconn.consume_input()
                if self._took_all():
                    self._settle(None)
                    return
                if not _has_more(self._fd):
                    return
            self._loop.call_soon(self._readable)
        except OperationalError as problem:
            self._settle(problem)

    def _took_all(self) -> bool:
        """Take the results that have come; whether they are all."""
        pgconn = self._pgconn
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is not None and result.status != ExecStatus.PIPELINE_SYNC:
                self._results.append(result)
            elif result is not None or (pgconn.pipeline_status == PipelineStatus.OFF and self._results):
                return True
            elif pgconn.status == ConnStatus.BAD:
                raise OperationalError("the connection was lost")
        return False

    def _settle(self, problem: OperationalError | None) -> None:
        self._stop()
        if self._done is None or self._done.done():
            return
        if problem is not None:
            self._done.set_exception(problem)
        else:
            self._done.set_result(self._results)

    def _stop(self) -> None:
        """Look no more at the descriptor: when the connection is lost, its number may be somebody else's a moment later."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1
