"""The Postgres log: the kit, and its own failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache, partial

import psycopg
import pytest

from perdure.engine.log import migrations
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.postgres_open import SCHEMA
from perdure.engine.log.records import EventFilter
from perdure.errors import ConfigurationError
from perdure.testing.log_kit import LOG_CASES, STORE_CASES, TAIL_CASES, Case, log_under_test, name_of
from perdure.testing.log_rows import agent_of
from perdure.testing.log_snapshot_cases import snapshot_row
from tests.contract.log_surroundings import PostgresSurroundings
from tests.fix_services import PrivateServices

PARTITIONS = 4
"""Each costs a dozen relations, which are made anew for every case."""


@pytest.mark.parametrize("case", [*STORE_CASES, *LOG_CASES], ids=name_of)
async def test_log(case: Case, fresh_database: str) -> None:
    async with log_under_test(partial(PostgresStore.open, fresh_database, partitions=PARTITIONS)) as log:
        await case(log)


@pytest.mark.parametrize("case", LOG_CASES, ids=name_of)
async def test_log_over_many_segments(case: Case, fresh_database: str) -> None:
    async with log_under_test(partial(PostgresStore.open, fresh_database, partitions=PARTITIONS, segment_offsets=7)) as log:
        await case(log)


@pytest.fixture(scope="module")
def younger_server(private_services: Callable[..., PrivateServices]) -> Callable[[], str]:
    """A server that has counted fewer transactions than the shared one; started when it is asked for."""

    @cache
    def url() -> str:
        service = private_services("postgres").services.postgres
        assert service is not None
        return service.url

    return url


@pytest.mark.parametrize("case", TAIL_CASES, ids=name_of)
async def test_tail(case: Case, fresh_database: str, younger_server: Callable[[], str]) -> None:
    surroundings = PostgresSurroundings(fresh_database, younger_server)
    async with log_under_test(partial(PostgresStore.open, fresh_database, partitions=2, segment_offsets=20), surroundings) as log:
        await case(log)


async def test_openings_at_once_make_one_log(fresh_database: str) -> None:
    """Each makes the first segments of all partitions in one transaction; one that an opening left behind is made by the next."""
    openings = [asyncio.create_task(PostgresStore.open(fresh_database, partitions=PARTITIONS)) for _ in range(4)]
    stores = await asyncio.gather(*openings)
    assert {store.partitions for store in stores} == {PARTITIONS}
    for store in stores:
        await store.close()
    existing = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^events_[0-9]+_0$' ORDER BY relname"
    async with await psycopg.AsyncConnection.connect(fresh_database, autocommit=True) as connection:
        made = [name for (name,) in await (await connection.execute(existing)).fetchall()]
        assert made == [f"events_{partition}_0" for partition in range(PARTITIONS)]
        await connection.execute(f"DROP TABLE {SCHEMA}.events_2_0")
        await (await PostgresStore.open(fresh_database)).close()
        assert [name for (name,) in await (await connection.execute(existing)).fetchall()] == made


async def test_a_database_without_a_log_is_refused_unless_it_may_be_made(fresh_database: str) -> None:
    with pytest.raises(ConfigurationError, match="holds no log"):
        await PostgresStore.open(fresh_database, create=False)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:geheim@h:port/x",
        "postgresql://u:geheim@h/x?bogus=1",
        "postgresql://u:geheim@[h/x",
        "postgresql://u:geheim%zz@h/x",
        "postgresql://u:geheim@h:5432,i:x/x",
    ],
)
async def test_a_url_that_is_none_is_a_configuration_error_that_keeps_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await PostgresStore.open(url)
    assert "geheim@" not in f"{caught.value} {caught.value.__cause__} {caught.value.hint}"


async def test_schema_equals_the_sum_of_the_migrations() -> None:
    whole = (migrations.folder("postgres") / "schema.sql").read_text("utf-8")
    assert whole == "".join(step.sql for step in migrations.load("postgres"))


async def test_a_reader_of_a_tenant_sees_that_tenant_alone(fresh_database: str) -> None:
    store = await PostgresStore.open(fresh_database, partitions=2)
    await store.close()
    async with await psycopg.AsyncConnection.connect(fresh_database, options=f"-c search_path={SCHEMA}", autocommit=True) as connection:
        await connection.execute("INSERT INTO tenants (name) VALUES ('a'), ('b')")
        await connection.execute(
            "INSERT INTO events SELECT k, 1, 0, 1, 0, k, k - 1, gen_random_uuid(), NULL, 't', '', NULL, NULL, NULL, NULL, ''"
            " FROM generate_series(1, 2) k"
        )
        await connection.execute("SET ROLE perdure_reader")
        for table in ("events", "events_0", "events_0_0"):
            assert await (await connection.execute(f"SELECT tenant_key FROM {table}")).fetchall() == []
        await connection.execute("SELECT set_config('perdure.tenant_key', '1', false)")
        for table in ("events", "events_0", "events_0_0"):
            assert await (await connection.execute(f"SELECT tenant_key FROM {table}")).fetchall() == [(1,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("SELECT * FROM documents")


async def test_a_reader_of_a_tenant_sees_that_tenants_snapshots_alone(fresh_database: str) -> None:
    store = await PostgresStore.open(fresh_database, partitions=2)
    try:
        agents = [await agent_of(store, tenant=tenant) for tenant in ("a", "b")]
        for agent in agents:
            assert await store.add_snapshot(snapshot_row(agent, 1)) is None
    finally:
        await store.close()
    async with await psycopg.AsyncConnection.connect(fresh_database, options=f"-c search_path={SCHEMA}", autocommit=True) as connection:
        await connection.execute("SET ROLE perdure_reader")
        assert await (await connection.execute("SELECT agent_key FROM snapshots")).fetchall() == []
        await connection.execute("SELECT set_config('perdure.tenant_key', %s, false)", (str(agents[1].tenant_key),))
        assert await (await connection.execute("SELECT agent_key FROM snapshots")).fetchall() == [(agents[1].agent_key,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("UPDATE snapshots SET damage = 'x'")


async def test_a_new_generation_ends_this_process_s_own_connections_without_a_warning(
    fresh_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = await PostgresStore.open(fresh_database, partitions=PARTITIONS)
    try:
        agent = await agent_of(store, "a")
        await store.read_agent(agent, EventFilter(), 1)
        await store.set_generation(store.generation + 1)
        assert await store.read_agent(agent, EventFilter(), 1) == []
        assert await store.tenants() != []
    finally:
        await store.close()
    assert [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"] == []
