"""The newest events of many partitions in one round trip, for whoever follows the log.

Planning such a query takes ten times as long as running it, so it works on a connection of its own where the plan is kept. That plan was made
knowing nothing of the tables' sizes; with scans of whole tables off, it is the walk along the indexes that is right for every size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from perdure.engine.log.postgres_call import answered_within
from perdure.engine.log.postgres_errors import translated
from perdure.engine.log.postgres_open import connect
from perdure.engine.log.postgres_rows import EVENT_COLUMNS
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import SealedEvent

__all__ = ["Tails"]

LEARN_INTERVAL_S: Final = 0.2
"""How often it is asked whether a segment that lies ahead has been made."""
ANSWER_TIMEOUT_S: Final = 5.0
"""How long the server may be silent; a relay that is not answered stands still with all its partitions."""
_SETTING: Final = "SET plan_cache_mode = force_generic_plan"
_SQL = """SELECT t.name, a.agent, {columns} FROM ({tails}) e,
          LATERAL (SELECT a.agent FROM agents a WHERE a.agent_key = e.agent_key LIMIT 1) a,
          LATERAL (SELECT t.name FROM tenants t WHERE t.tenant_key = e.tenant_key LIMIT 1) t
          ORDER BY e.partition, e."offset\""""
_TAIL = '(SELECT * FROM {table} WHERE "offset" > %s ORDER BY "offset" LIMIT {limit:d})'


class Tails:
    """Reads tails; one caller at a time."""

    def __init__(self, url: str, pool: AsyncConnectionPool) -> None:
        self._url = url
        self._pool = pool
        self._connection: AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self._learned_at = 0.0

    async def read(self, segments: Segments, after: Mapping[int, int], limit: int) -> list[SealedEvent]:
        """Of each partition at most `limit` events after its offset, in order of partition and offset; none beyond the end of a segment."""
        await self._learn(segments, after)
        tails, values = [], []
        for partition, offset in sorted(after.items()):
            tails.append(_TAIL.format(table=f"events_{partition:d}_{segments.following(partition, offset):d}", limit=limit))
            values.append(offset)
        sql = _SQL.format(columns=EVENT_COLUMNS, tails=" UNION ALL ".join(tails))
        async with self._lock:
            with translated():
                try:
                    connection = await self._connected()
                    with answered_within(connection, ANSWER_TIMEOUT_S):
                        cursor = await connection.execute(sql.encode(), values, binary=True)
                        return [SealedEvent(*row) for row in await cursor.fetchall()]
                except BaseException:
                    # Also when it was given up half-way: an answer that is still to come must not meet the next question.
                    await self._disconnect()
                    raise

    async def close(self) -> None:
        """Close the connection."""
        async with self._lock:
            await self._disconnect()

    async def _connected(self) -> AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            connection = await connect(self._url)
            await connection.execute(_SETTING)
            self._connection = connection
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _learn(self, segments: Segments, after: Mapping[int, int]) -> None:
        """Segments that other processes have made since are known before a tail crosses into them."""
        now = time.monotonic()
        ahead = any(segments.of(offset + 1) > segments.newest(partition) for partition, offset in after.items())
        if ahead and now - self._learned_at >= LEARN_INTERVAL_S:
            self._learned_at = now
            with translated():
                await segments.load(self._pool)
