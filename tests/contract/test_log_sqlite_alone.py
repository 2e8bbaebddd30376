"""One caller after the other on SQLite: the short way, and all that it has to give way to."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perdure.engine.event import Event
from perdure.engine.log import sqlite_connection
from perdure.engine.log.expected import NO_STREAM
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName
from perdure.engine.log.sqlite import SqliteStore
from perdure.errors import AlreadyExists, Conflict, DeadlineExceeded, Fenced, IntegrityError, Unavailable
from perdure.testing.history import check_log_history
from perdure.testing.log_rows import LogUnderTest, log_under_test

NAME = AgentName("t", "agent")
INSERTS = "INSERT INTO events"


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[LogUnderTest]:
    """A log with one partition, so that whatever anybody writes is in the way of all others."""
    async with log_under_test(partial(SqliteStore.open, tmp_path, partitions=1)) as log:
        yield log


@pytest.fixture
async def log(opened: LogUnderTest) -> EventLog:
    """It has an event, so that the next one is alone."""
    log = await opened.open_log()
    await log.append_event(NAME, Event("first"), expected=NO_STREAM)
    return log


async def add(log: EventLog, expected: int, event: Event | None = None, name: AgentName = NAME) -> int:
    """One event at an expected version; its own."""
    return (await log.append_event(name, event or Event("noted"), expected=expected)).version


def connection_of(log: EventLog) -> sqlite3.Connection:
    """The connection that writes."""
    assert isinstance(log.store, SqliteStore)
    assert log.store._write_connection is not None
    return log.store._write_connection


async def statements(log: EventLog, work: Callable[[], Awaitable[Any]]) -> list[str]:
    """What the writer's connection is told while something is done; a statement that sets a trigger off is traced twice."""
    told: list[str] = []
    connection = connection_of(log)
    connection.set_trace_callback(told.append)
    try:
        await work()
    finally:
        connection.set_trace_callback(None)
    return [statement.strip() for statement, before in zip(told, ["", *told], strict=False) if statement != before]


@asynccontextmanager
async def locked(folder: Path) -> AsyncIterator[sqlite3.Connection]:
    """Somebody else holds the log's lock."""
    with sqlite3.connect(folder / "log.db", isolation_level=None, check_same_thread=False) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield other
        finally:
            if other.in_transaction:
                other.execute("ROLLBACK")
    other.close()


async def assert_whole(log: EventLog, versions: int) -> None:
    """Offsets, versions and chains hold, and there are as many events as were acknowledged."""
    report = await check_log_history(log.store, [])
    assert report.holds, report.problems
    assert await log.version(NAME) == versions


async def test_who_is_alone_needs_one_statement(log: EventLog) -> None:
    for version in (1, 2, 3):
        (told,) = await statements(log, partial(add, log, version))
        assert told.startswith(INSERTS)
    await assert_whole(log, 4)


async def test_who_is_not_alone_shares_a_transaction(log: EventLog) -> None:
    names = [AgentName("t", f"agent {number}") for number in range(20)]
    for name in names:
        await log.append_event(name, Event("first"), expected=NO_STREAM)

    async def all_of_them() -> None:
        for version in (1, 2, 3):
            await asyncio.gather(*(add(log, version, name=name) for name in names))

    told = await statements(log, all_of_them)
    # The first one goes at once, and the others together; from then on all go together.
    assert sum(statement.startswith("BEGIN") for statement in told) <= 4
    assert sum("CASE WHEN" in statement for statement in told) <= 1
    assert (await check_log_history(log.store, [])).holds


async def test_writers_in_turns_never_write_on_what_they_did_not_see(opened: LogUnderTest, log: EventLog) -> None:
    other = await opened.open_log()
    version = 1
    for _ in range(5):
        for writer in (log, log, other, other):
            version = await add(writer, version)
        with pytest.raises(Conflict):
            await add(log, version - 1)  # as far as it knows, this is where the agent stands
        with pytest.raises(Conflict):
            await add(other, version + 1)
    await assert_whole(log, 21)


async def test_a_fence_of_another_process_holds(opened: LogUnderTest, log: EventLog) -> None:
    other = await opened.open_log()
    assert await add(log, 1) == 2
    epoch = await other.take_ownership(NAME, "other")
    with pytest.raises(Fenced):
        await log.append_event(NAME, Event("late"), epoch=epoch - 1)
    await log.append_event(NAME, Event("noted"), epoch=epoch)
    await other.fence(NAME, expected_epoch=epoch)
    with pytest.raises(Fenced):
        await log.append_event(NAME, Event("late"))
    await assert_whole(log, 5)


async def test_an_id_that_is_there_is_told_where_it_stands(opened: LogUnderTest, log: EventLog) -> None:
    event, theirs = Event("noted"), Event("theirs")
    assert await add(log, 1, event) == 2
    assert await add(log, 2) == 3
    for expected in (1, 3, 7):
        again = await log.append_event(NAME, event, expected=expected)
        assert (again.version, again.already) == (2, True)
    await add(await opened.open_log(), 3, theirs)
    again = await log.append_event(NAME, theirs, expected=4)
    assert (again.version, again.already) == (4, True)
    with pytest.raises(AlreadyExists):
        await log.append_events(NAME, [event, Event("new")])
    await assert_whole(log, 4)


async def test_an_id_that_was_removed_is_told_where_it_stood(log: EventLog) -> None:
    event = Event("noted")
    assert await add(log, 1, event) == 2
    assert await add(log, 2) == 3
    record = await log.vault.record(*NAME)
    # As `remove_events` leaves it behind a floor.
    connection = connection_of(log)
    await log.store._writer.run(  # type: ignore[attr-defined]
        lambda: connection.executescript(
            f"""BEGIN; INSERT INTO removed_events SELECT agent_key, id, version FROM events WHERE version = 2;
            DELETE FROM events WHERE agent_key = {record.agent_key} AND version = 2; COMMIT"""
        )
    )
    again = await log.append_event(NAME, event, expected=3)
    assert (again.version, again.already) == (2, True)
    assert await add(log, 3) == 4


@pytest.mark.parametrize("newest", ["is gone", "is of another time"])
async def test_a_log_that_is_not_the_one_it_was_is_not_written_to(newest: str, log: EventLog, tmp_path: Path) -> None:
    assert await add(log, 1) == 2
    with sqlite3.connect(tmp_path / "log.db", isolation_level=None) as other:
        other.execute("CREATE TEMP TABLE newest AS SELECT * FROM events WHERE version = 2")
        other.execute("DELETE FROM events WHERE version = 2")
        if newest == "is of another time":
            # Of another writer in an older copy; its clock was ahead.
            other.execute("UPDATE newest SET time_us = time_us + 5000000, id = randomblob(16)")
            other.execute("INSERT INTO events SELECT * FROM newest")
    other.close()
    with pytest.raises(IntegrityError, match="seen before" if newest == "is gone" else "cannot follow"):
        await add(log, 2)
    assert [event.offset for event in await log.store.read(0, 0, 10)] == [1, 2][: 1 if newest == "is gone" else 2]


async def test_a_caller_that_leaves_takes_nothing_along(log: EventLog, tmp_path: Path) -> None:
    async with locked(tmp_path):
        first = asyncio.create_task(add(log, 1))
        await asyncio.sleep(0)
        following = asyncio.create_task(add(log, 2))
        left = asyncio.create_task(add(log, 2))
        await asyncio.sleep(0)
        first.cancel()
        left.cancel()
        await asyncio.wait([first, left])
    # What was under way is finished, whoever waits for it; what had not begun is not.
    assert await following == 3
    assert await add(log, 3) == 4
    await assert_whole(log, 4)


async def test_what_is_under_way_is_finished_by_close(log: EventLog, opened: LogUnderTest, tmp_path: Path) -> None:
    async with locked(tmp_path):
        first = asyncio.create_task(add(log, 1))
        await asyncio.sleep(0)
        following = asyncio.create_task(add(log, 2))
        await asyncio.sleep(0)
        closing = asyncio.create_task(log.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await add(log, 3)
    await closing
    assert (await first, await following) == (2, 3)
    await assert_whole(await opened.open_log(), 3)


async def test_a_lock_held_too_long_is_unavailable_and_heals(log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_connection, "APPEND_TIMEOUT_S", 0.05)
    async with locked(tmp_path):
        with pytest.raises(Unavailable, match="lock"):
            await add(log, 1)
    assert await add(log, 1) == 2
    await assert_whole(log, 2)


async def test_who_waits_too_long_is_told_so_and_may_repeat(log: EventLog, tmp_path: Path) -> None:
    event = Event("noted")
    item = log._prepared(NAME, (event,), 1, None)
    assert item is not None
    async with locked(tmp_path):
        with pytest.raises(DeadlineExceeded):
            await log.writer.append((item,), timeout_s=0.05)
    again = await log.append_event(NAME, event, expected=1)
    assert (again.version, again.already) == (2, True)
    assert await add(log, 2) == 3


async def test_a_full_disk_writes_nothing_and_heals(log: EventLog) -> None:
    connection = connection_of(log)
    ((pages,),) = await log.store._writer.run(lambda: connection.execute("PRAGMA page_count").fetchall())  # type: ignore[attr-defined]
    connection.execute(f"PRAGMA max_page_count = {pages}")

    async def fill() -> None:
        for version in range(1, 200):
            await add(log, version, Event("noted", data=os.urandom(1_000).hex()))

    with pytest.raises(Unavailable, match="full"):
        await fill()
    connection.execute("PRAGMA max_page_count = 1000000")
    stands = await log.version(NAME)
    assert await add(log, stands) == stands + 1
    await assert_whole(log, stands + 1)
