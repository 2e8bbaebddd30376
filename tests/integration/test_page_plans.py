"""How Postgres finds an agent's events: in the order of their index, also while nothing is known about a table that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import Event, append, config
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.postgres_append import _TAIL, _TAIL_MAX
from perdure.engine.log.postgres_open import connect
from perdure.engine.log.postgres_pages import page_query
from perdure.engine.log.records import AgentName, EventFilter
from perdure.engine.replay import fold_log
from perdure.errors import ChainBroken

NAME = AgentName("default", "long")
EVENTS = 4_000
NEWEST = "SELECT e.version FROM events_{partition} e WHERE e.agent_key = {agent_key} ORDER BY e.version DESC LIMIT 1"


async def plan(pool: Any, query: str) -> str:
    """As the store's own connections have it planned."""
    async with pool.connection() as connection:
        cursor = await connection.execute(f"EXPLAIN {query}".encode())
        return "\n".join(row[0] for row in await cursor.fetchall())


async def test_a_page_is_read_without_sorting_an_agents_events(fresh_database: str, tmp_path: Path) -> None:
    """Else each page of a long agent would cost as much as the whole of it."""
    settings = config.load({"log": fresh_database, "keys": f"file://{tmp_path}/root.key"}, {})
    async with perdure.open(settings=settings, partitions=1) as engine:
        store = engine.log.store
        assert isinstance(store, PostgresStore)
        async with store._pool.connection() as connection:
            await connection.execute("ALTER TABLE events_0_0 SET (autovacuum_enabled = off)")  # nobody gathers statistics meanwhile
        for _ in range(EVENTS // 1_000):
            await engine.agent(NAME.agent).append([Event("said", changes=(append("/messages", "a message"),)) for _ in range(1_000)])
        record = await engine.log.vault.record(*NAME)
        where = EventFilter(from_version=2)
        for table in ("events_0", "events_0_0"):
            for descending in (False, True):
                query = page_query(table, record, where, 1_000, descending=descending)
                assert query is not None
                told = await plan(store._tenant_pool, query.decode())
                assert "Index Scan" in told, told
                assert "Sort" not in told, told
        newest = await plan(store._pool, NEWEST.format(partition=record.partition, agent_key=record.agent_key))
        assert "Index" in newest, newest
        assert "Sort" not in newest, newest
        # And a page that is not there is no end.
        async with store._pool.connection() as connection:
            await connection.execute("DELETE FROM events_0 WHERE version BETWEEN 1001 AND 2500")
        with pytest.raises(ChainBroken):
            await fold_log(store, engine.log.vault, record)


async def test_what_others_wrote_is_found_by_its_index_though_it_was_planned_when_there_was_nothing(
    fresh_database: str, tmp_path: Path
) -> None:
    """Else each append of a writer that is not alone would read a whole segment, until somebody gathers statistics."""
    settings = config.load({"log": fresh_database, "keys": f"file://{tmp_path}/root.key"}, {})
    async with perdure.open(settings=settings, partitions=1) as engine, await connect(fresh_database) as writing:
        await writing.execute("ALTER TABLE events_0_0 SET (autovacuum_enabled = off)")
        tail = _TAIL.format(table="events_0_0", after="$1", limit=_TAIL_MAX)
        await writing.execute(f"PREPARE tail (bigint) AS {tail}".encode())
        await writing.execute("SET plan_cache_mode = force_generic_plan")  # as Postgres does by itself after a few times
        await writing.execute("EXECUTE tail (0)")
        for _ in range(EVENTS // 1_000):
            await engine.agent(NAME.agent).append([Event("said", changes=(append("/messages", "a message"),)) for _ in range(1_000)])
        cursor = await writing.execute(f"EXPLAIN EXECUTE tail ({EVENTS - 1})".encode())
        told = "\n".join(row[0] for row in await cursor.fetchall())
        assert "$1" in told, told  # planned once, for any offset
        assert "Index Scan" in told, told
        assert "Sort" not in told, told
