"""Pages of rows, fetched without the driver's layers.

A replay reads a page of a thousand rows after the other, which come in some twenty pieces each. The driver wakes a task for each piece, and that
costs as much as reading the rows; here each goes from the loop to libpq directly. The query is sent before the first wait, so whoever begins to
fetch a page and then works on another has the server work beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from psycopg import AsyncConnection, OperationalError, errors
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult

from perdure.engine.log.contract import AgentRecord, EventFilter
from perdure.engine.log.postgres_rows import EVENT_COLUMNS

__all__ = ["fetch_page", "page_query"]

T = TypeVar("T")


async def fetch_page(connection: AsyncConnection[Any], setting: bytes, query: bytes, make_row: Callable[[Sequence[Any]], T]) -> list[T]:
    """What `make_row` makes of a query's rows, after a statement that sets something for it, in one round trip.

    Nobody else uses the connection meanwhile. The statements have no parameters. Raises what psycopg raises.
    """
    results = await _Exchange(connection.pgconn).run(setting, query)
    for result in results:
        if result.status != ExecStatus.TUPLES_OK:
            raise errors.error_from_result(result, connection.info.encoding)
    transformer = Transformer(connection)
    transformer.set_pgresult(results[-1], format=Format.BINARY)
    return transformer.load_rows(0, results[-1].ntuples, make_row)


def page_query(table: str, agent: AgentRecord, where: EventFilter, limit: int, *, descending: bool) -> bytes | None:
    """A page of an agent's events by their versions alone, with the numbers in the text; None where the filter asks for more."""
    if msgspec.structs.replace(where, from_version=1, to_version=None) != EventFilter():
        return None
    versions = f"e.version >= {where.from_version:d}" + ("" if where.to_version is None else f" AND e.version <= {where.to_version:d}")
    sql = f"""SELECT {EVENT_COLUMNS} FROM {table} e WHERE e.tenant_key = {agent.tenant_key:d} AND e.agent_key = {agent.agent_key:d}
              AND {versions} ORDER BY e.version {"DESC" if descending else "ASC"} LIMIT {limit:d}"""  # noqa: S608 - integers
    return sql.encode()


class _Exchange:
    """Statements sent as one pipeline, and their results."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[list[PGresult]] = self._loop.create_future()
        self._results: list[PGresult] = []
        self._fd = pgconn.socket

    async def run(self, *statements: bytes) -> list[PGresult]:
        pgconn = self._pgconn
        pgconn.enter_pipeline_mode()
        try:
            for statement in statements:
                pgconn.send_query_params(statement, None, result_format=Format.BINARY)
            pgconn.pipeline_sync()
            # What the socket does not take at once follows as soon as it does.
            if pgconn.flush():
                self._loop.add_writer(self._fd, self._writable)
            self._loop.add_reader(self._fd, self._readable)
            results = await self._done
            pgconn.exit_pipeline_mode()
        except BaseException:
            self._stop()
            pgconn.finish()  # what is still to come would be taken for the answer to the next query
            raise
        finally:
            self._stop()
        return results

    def _writable(self) -> None:
        try:
            if not self._pgconn.flush():
                self._loop.remove_writer(self._fd)
        except OperationalError as problem:
            self._fail(problem)

    def _readable(self) -> None:
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    if pgconn.status == ConnStatus.BAD:
                        self._fail(OperationalError("the connection was lost"))
                        return
                    continue  # the end of one statement
                if result.status == ExecStatus.PIPELINE_SYNC:
                    self._stop()
                    if not self._done.done():
                        self._done.set_result(self._results)
                    return
                self._results.append(result)
        except OperationalError as problem:
            self._fail(problem)

    def _fail(self, problem: OperationalError) -> None:
        self._stop()
        if not self._done.done():
            self._done.set_exception(problem)

    def _stop(self) -> None:
        """Look no more at the descriptor: when the connection is lost, its number may be somebody else's a moment later."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1
