"""The SQLite log: the kit, and its own failures."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from perdure.engine.log import sqlite_connection
from perdure.engine.log.contract import Proposal
from perdure.engine.log.decide import FENCED, OWNED
from perdure.engine.log.records import Position, SealedEvent, TailEvent
from perdure.engine.log.sqlite import SqliteStore
from perdure.errors import ConfigurationError, IntegrityError, Unavailable
from perdure.limits import PARTITIONS_MAX
from perdure.testing.log_kit import LOG_CASES, STORE_CASES, TAIL_CASES, Case, log_under_test, name_of
from perdure.testing.log_rows import RawWriter, agent_of, read_all, row
from tests.contract.log_surroundings import SqliteSurroundings


@pytest.mark.parametrize("case", [*STORE_CASES, *LOG_CASES], ids=name_of)
async def test_log(case: Case, tmp_path: Path) -> None:
    async with log_under_test(partial(SqliteStore.open, tmp_path)) as log:
        await case(log)


@pytest.mark.parametrize("case", TAIL_CASES, ids=name_of)
async def test_tail(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    async with log_under_test(partial(SqliteStore.open, folder, partitions=2), SqliteSurroundings(folder)) as log:
        await case(log)


def rows_of(rows: Callable[[int], list[SealedEvent]]) -> Any:
    """A propose that always wants these rows."""

    def propose(now_us: int, _tail: Sequence[TailEvent], _found: Mapping[tuple[int, UUID], int]) -> Proposal:
        return Proposal(rows(now_us), [], [])

    return propose


def names_in(folder: Path) -> list[str]:
    """What stands in a folder."""
    return sorted(path.name for path in folder.iterdir())


async def on_writer(store: SqliteStore, sql: str) -> list[Any]:
    """Run a statement on the store's own writer connection."""
    connection = store._write_connection
    assert connection is not None
    return await store._writer.run(lambda: connection.execute(sql).fetchall())


async def test_partitions_are_fixed_when_the_log_is_made(tmp_path: Path) -> None:
    first = await SqliteStore.open(tmp_path, partitions=3)
    second = await SqliteStore.open(tmp_path, partitions=16, create=False)
    assert (first.partitions, second.partitions) == (3, 3)
    await first.close()
    await second.close()


@pytest.mark.parametrize("partitions", [0, -1, PARTITIONS_MAX + 1])
async def test_impossible_numbers_of_partitions_are_refused(tmp_path: Path, partitions: int) -> None:
    with pytest.raises(ConfigurationError):
        await SqliteStore.open(tmp_path, partitions=partitions)
    assert names_in(tmp_path) == []


async def test_missing_log_is_not_made_when_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no log"):
        await SqliteStore.open(tmp_path / "typo", create=False)
    assert not (tmp_path / "typo").exists()


async def test_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError):
        await SqliteStore.open(tmp_path / "file" / "state")
    (tmp_path / "log.db").mkdir()
    with pytest.raises(ConfigurationError):
        await SqliteStore.open(tmp_path)


async def test_file_that_is_no_log_is_an_integrity_error(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"this is not a database" * 1000)
    with pytest.raises(IntegrityError):
        await SqliteStore.open(tmp_path)


async def test_log_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    await (await SqliteStore.open(tmp_path)).close()
    with sqlite3.connect(tmp_path / "log.db") as connection:
        connection.execute("INSERT INTO perdure_migrations VALUES (99, 'later', 'x', 0)")
    connection.close()
    with pytest.raises(ConfigurationError, match="schema 99"):
        await SqliteStore.open(tmp_path)


async def test_damaged_page_is_an_integrity_error_not_wrong_data(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path, partitions=1)
    record = await agent_of(store)
    await RawWriter(store).add(record, 200, payload=bytes(2000))
    await store.close()
    file = tmp_path / "log.db"
    content = bytearray(file.read_bytes())
    for page in range(8, len(content) // 8192):
        content[page * 8192 : page * 8192 + 64] = bytes(64)
    file.write_bytes(content)
    damaged = await SqliteStore.open(tmp_path)
    with pytest.raises(IntegrityError):
        await read_all(damaged, 0)
    await damaged.close()


async def test_openings_at_once_make_one_log(tmp_path: Path) -> None:
    stores = await asyncio.gather(*(SqliteStore.open(tmp_path, partitions=partitions) for partitions in range(1, 9)))
    assert len({store.partitions for store in stores}) == 1
    for store in stores:
        await store.close()


def open_once(folder: Path) -> None:
    """A child: open and close."""

    async def run() -> None:
        await (await SqliteStore.open(folder)).close()

    asyncio.run(run())


async def test_processes_that_open_at_once_make_one_log(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=open_once, args=(tmp_path,)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        await asyncio.to_thread(child.join)
    assert [child.exitcode for child in children] == [0] * 4


async def test_full_disk_writes_nothing_and_heals(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    record, writer = await agent_of(store), RawWriter(store)
    await writer.add(record)
    ((pages,),) = await on_writer(store, "PRAGMA page_count")
    await on_writer(store, f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(Unavailable) as caught:
        await writer.add(record, 50, payload=bytes(10_000))
    assert "full" in caught.value.hint
    assert caught.value.retryable
    assert len(await read_all(store, record.partition)) == 1
    await on_writer(store, "PRAGMA max_page_count = 1000000")
    assert (await writer.add(record, 50, payload=bytes(10_000)))[0].offset == 2
    await store.close()


async def test_lock_held_too_long_is_unavailable_and_blocks_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_connection, "APPEND_TIMEOUT_S", 0.1)
    store = await SqliteStore.open(tmp_path)
    record, writer = await agent_of(store), RawWriter(store)
    await writer.add(record)
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    append = asyncio.create_task(writer.add(record))
    assert len(await read_all(store, record.partition)) == 1
    with pytest.raises(Unavailable, match="lock"):
        await append
    other.execute("ROLLBACK")
    other.close()
    assert (await writer.add(record))[0].offset == 2
    await store.close()


async def test_rows_that_do_not_follow_are_refused(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    record = await agent_of(store)
    (first,) = await RawWriter(store).add(record)
    at = Position(1, first.time_us)
    known = {record.partition: at}
    wrong: list[Callable[[int], list[SealedEvent]]] = [
        lambda now_us: [row(record, Position(2, at.time_us), 2, now_us)],
        lambda now_us: [row(record, Position(0, at.time_us), 2, now_us)],
        lambda now_us: [row(record, at, 2, now_us, time_us=at.time_us - 1)],
        lambda now_us: [row(record, at, 2, now_us, partition=(record.partition + 1) % store.partitions)],
        lambda now_us: [row(record, at, 1, now_us)],
        # The first row is good and in when the second is refused: it must not stay.
        lambda now_us: [row(record, at, 2, now_us), row(record, Position(2, at.time_us), 1, now_us, agent_key=999)],
    ]
    for rows in wrong:
        with pytest.raises(IntegrityError):
            await store.append(known, rows_of(rows))
    assert await store.positions() == {**dict.fromkeys(range(16), Position(0, 0)), **known}
    await store.close()


async def test_fence_holds_whatever_comes_after_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    record, writer = await agent_of(store, owner="me", epoch=3), RawWriter(store)
    fenced = []
    for type_ in ("noted", FENCED, "noted", OWNED, "noted", FENCED):
        await writer.add(record, type=type_)
        fenced += [head.fenced for head in await store.heads([record])]
    assert fenced == [False, True, True, False, False, True]
    assert (record.owner, (await store.heads([record]))[0].epoch) == ("me", 3)
    await store.close()


async def test_older_copy_put_in_place_is_noticed(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    record = await agent_of(store)
    with pytest.raises(IntegrityError, match="seen before"):
        await store.append({record.partition: Position(5, 1)}, rows_of(lambda _: []))
    await store.close()


async def test_events_cannot_be_changed_by_hand(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    record = await agent_of(store)
    written = await RawWriter(store).add(record)
    with pytest.raises(sqlite3.IntegrityError, match="never changed"):
        await on_writer(store, "UPDATE events SET payload = x'00'")
    assert await read_all(store, record.partition) == written
    await store.close()


async def test_commits_are_flushed(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    assert await on_writer(store, "PRAGMA synchronous") == [(2,)]
    assert await on_writer(store, "PRAGMA journal_mode") == [("wal",)]
    await store.close()


async def test_append_whose_caller_left_is_finished_by_close(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    record, loop, begun = await agent_of(store), asyncio.get_running_loop(), asyncio.Event()
    signal = store.signal()

    def rows(now_us: int) -> list[SealedEvent]:
        loop.call_soon_threadsafe(begun.set)
        return [row(record, Position(number, now_us), number + 1, now_us) for number in range(500)]

    append = asyncio.create_task(store.append({record.partition: Position(0, 0)}, rows_of(rows)))
    await begun.wait()
    append.cancel()
    async with asyncio.timeout(60.0):
        await signal.wait(20.0)  # the commit wakes readers although nobody waits for its result
    await store.close()
    again = await SqliteStore.open(tmp_path)
    assert len(await read_all(again, record.partition)) == 500
    await again.close()


async def test_closed_log_is_unavailable(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    await store.close()
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.positions()
    assert names_in(tmp_path) == ["log.db"]


async def test_hot_queries_use_their_indexes(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    plans = {
        "SELECT offset, time_us FROM events WHERE partition = 1 ORDER BY offset DESC LIMIT 1": "events_by_offset",
        "SELECT max(version) FROM events WHERE agent_key = 1": "events_by_version",
        "SELECT version FROM events WHERE agent_key = 1 AND id = x'00'": "events_by_id",
        "SELECT type FROM events WHERE agent_key = 1 AND type IN ('perdure.owned', 'perdure.fenced')"
        " ORDER BY version DESC LIMIT 1": "events_of_ownership",
    }
    for sql, index in plans.items():
        steps = [step for *_, step in await on_writer(store, f"EXPLAIN QUERY PLAN {sql}")]
        assert any(index in step for step in steps), steps
        assert not any(step.startswith("SCAN") or "TEMP B-TREE" in step for step in steps), steps
    await store.close()
