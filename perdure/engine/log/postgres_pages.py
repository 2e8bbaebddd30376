"""Pages of rows, fetched without the driver's layers.

A replay reads a page of a thousand rows after the other, which come in some twenty pieces each. The driver wakes a task for each piece, and that
costs as much as reading the rows; here each goes from the loop to libpq directly. The query is sent before the first wait, so whoever begins to
fetch a page and then works on another has the server work beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from psycopg import AsyncConnection

from perdure.engine.log.postgres_exchange import Statement, ask_at_once, rows_of
from perdure.engine.log.postgres_rows import EVENT_COLUMNS
from perdure.engine.log.records import AgentRecord, EventFilter

__all__ = ["fetch_page", "page_query"]

T = TypeVar("T")


async def fetch_page(connection: AsyncConnection[Any], setting: bytes, query: bytes, make_row: Callable[[Sequence[Any]], T]) -> list[T]:
    """What `make_row` makes of a query's rows, after a statement that sets something for it, in one round trip.

    Nobody else uses the connection meanwhile. The statements have no parameters. Raises what psycopg raises.
    """
    *_, result = await ask_at_once(connection, Statement(setting), Statement(query))
    return rows_of(connection, result, make_row)


def page_query(table: str, agent: AgentRecord, where: EventFilter, limit: int, *, descending: bool) -> bytes | None:
    """A page of an agent's events by their versions alone, with the numbers in the text; None where the filter asks for more."""
    if msgspec.structs.replace(where, from_version=1, to_version=None) != EventFilter():
        return None
    versions = f"e.version >= {where.from_version:d}" + ("" if where.to_version is None else f" AND e.version <= {where.to_version:d}")
    sql = f"""SELECT {EVENT_COLUMNS} FROM {table} e WHERE e.tenant_key = {agent.tenant_key:d} AND e.agent_key = {agent.agent_key:d}
              AND {versions} ORDER BY e.version {"DESC" if descending else "ASC"} LIMIT {limit:d}"""  # noqa: S608 - integers
    return sql.encode()
