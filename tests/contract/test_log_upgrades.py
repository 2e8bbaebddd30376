"""A log that an earlier release made is brought up to date when it is opened, with all that it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.engine.log import migrations
from perdure.engine.log.contract import LogStore
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.postgres_open import connect, migrate
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.log.sqlite_connection import DATABASE, prepare
from perdure.testing.log_rows import RawWriter, agent_of, read_all
from perdure.testing.log_snapshot_cases import snapshot_row

AGENT = "INSERT INTO agents (tenant_key, agent, partition, {segment}owner, epoch, type, labels, data_key, created_us)"


@pytest.fixture
def first_release(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if there were only the first migration; `undo` it to be of today."""
    load = migrations.load
    monkeypatch.setattr(migrations, "load", lambda dialect: load(dialect)[:1])
    return monkeypatch


async def works(store: LogStore) -> None:
    """The agent of the earlier release is there; events and snapshots can be written."""
    try:
        assert store.partitions == 2
        record = await agent_of(store, "a", "t")
        assert (record.tenant_key, record.agent_key, record.data_key) == (1, 1, b"old")
        written = await RawWriter(store).add(record, 3)
        assert await read_all(store, record.partition) == written
        row = snapshot_row(record, 3)
        assert await store.add_snapshot(row) is None
        assert await store.snapshots(record) == [row]
    finally:
        await store.close()


async def test_an_older_file_is_brought_up_to_date(tmp_path: Path, first_release: pytest.MonkeyPatch) -> None:
    old = prepare(tmp_path / DATABASE, 2, create=True)
    old.execute("INSERT INTO tenants (name) VALUES ('t')")
    old.execute(AGENT.format(segment="") + " VALUES (1, 'a', 0, '', 0, '', '{}', CAST('old' AS BLOB), 0)")
    assert old.execute("SELECT name FROM sqlite_master WHERE name = 'snapshots'").fetchall() == []
    old.close()
    first_release.undo()
    await works(await SqliteStore.open(tmp_path))


async def test_an_older_database_is_brought_up_to_date(fresh_database: str, first_release: pytest.MonkeyPatch) -> None:
    async with await connect(fresh_database) as old:
        await migrate(old, 2, create=True)
        await old.execute("INSERT INTO tenants (name) VALUES ('t')")
        await old.execute(AGENT.format(segment="first_segment, ").encode() + b" VALUES (1, 'a', 0, 0, '', 0, '', '{}', 'old', 0)")
    first_release.undo()
    await works(await PostgresStore.open(fresh_database))
