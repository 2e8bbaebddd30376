"""The public recorder cases of the `eventsourcing` package, over every backend of the log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from eventsourcing.tests import persistence as cases

from perdure.engine.log.contract import LogStore
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.sqlite import SqliteStore
from perdure.errors import Unavailable
from tests.contract.eventsourcing_adapter import (
    PerdureAggregateRecorder,
    PerdureApplicationRecorder,
    PerdureProcessRecorder,
    PerdureTrackingRecorder,
    SyncLog,
)

ANSWER_S = 60.0


class OnSqlite:
    """Each test gets a new log in a folder."""

    opener: Callable[[], Awaitable[LogStore]]

    @pytest.fixture(autouse=True)
    def _new_log(self, tmp_path: Path) -> None:
        self.opener = partial(SqliteStore.open, tmp_path, partitions=1)


class OnPostgres:
    """Each test gets a new database."""

    opener: Callable[[], Awaitable[LogStore]]

    @pytest.fixture(autouse=True)
    def _new_log(self, fresh_database: str) -> None:
        self.opener = partial(PostgresStore.open, fresh_database, partitions=1)


class Aggregates(cases.AggregateRecorderTestCase):
    __test__ = False

    def create_recorder(self) -> PerdureAggregateRecorder:
        return PerdureAggregateRecorder(_sync(self))


class Applications(cases.ApplicationRecorderTestCase):
    __test__ = False

    def create_recorder(self) -> PerdureApplicationRecorder:
        return PerdureApplicationRecorder(_sync(self))

    def test_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class Trackings(cases.TrackingRecorderTestCase):
    __test__ = False

    def create_recorder(self) -> PerdureTrackingRecorder:
        return PerdureTrackingRecorder(_sync(self))


class Processes(cases.ProcessRecorderTestCase):
    __test__ = False

    def create_recorder(self) -> PerdureProcessRecorder:
        return PerdureProcessRecorder(_sync(self))


class NonInterleaving(cases.NonInterleavingNotificationIDsBaseCase):
    __test__ = False

    def create_recorder(self) -> PerdureApplicationRecorder:
        return PerdureApplicationRecorder(_sync(self))


def _sync(case: Aggregates | Applications | Trackings | Processes | NonInterleaving) -> SyncLog:
    sync = SyncLog(case.opener)
    case.addCleanup(sync.close)
    return sync


def test_a_thread_that_reads_while_the_log_is_closed_is_answered(tmp_path: Path) -> None:
    sync = SyncLog(partial(SqliteStore.open, tmp_path, partitions=1))
    begun, let_go = threading.Event(), asyncio.Event()

    async def read() -> None:
        begun.set()
        await let_go.wait()

    reader = threading.Thread(target=sync.run, args=(read(),), daemon=True)
    reader.start()
    assert begun.wait(ANSWER_S)
    closer = threading.Thread(target=sync.close, daemon=True)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive(), "closed under its reader"
    sync._loop.call_soon_threadsafe(let_go.set)
    for thread in (reader, closer):
        thread.join(ANSWER_S)
        assert not thread.is_alive()
    with pytest.raises(Unavailable):
        sync.run(read())


class TestSqliteAggregates(OnSqlite, Aggregates):
    __test__ = True


class TestSqliteApplications(OnSqlite, Applications):
    __test__ = True


class TestSqliteTrackings(OnSqlite, Trackings):
    __test__ = True


class TestSqliteProcesses(OnSqlite, Processes):
    __test__ = True


class TestSqliteNonInterleaving(OnSqlite, NonInterleaving):
    __test__ = True


class TestPostgresAggregates(OnPostgres, Aggregates):
    __test__ = True


class TestPostgresApplications(OnPostgres, Applications):
    __test__ = True


class TestPostgresTrackings(OnPostgres, Trackings):
    __test__ = True


class TestPostgresProcesses(OnPostgres, Processes):
    __test__ = True


class TestPostgresNonInterleaving(OnPostgres, NonInterleaving):
    __test__ = True
