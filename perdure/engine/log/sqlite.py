"""The log in one SQLite file: the store of embedded use, one folder and no server.

One writer connection on one thread, and a few readers on theirs; the event loop never waits for the disk. Several processes may open the same
folder: `BEGIN IMMEDIATE` is the lock of all partitions, and write-ahead logging lets readers go on while somebody writes.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, Self, TypeVar
from uuid import UUID

from perdure.engine.log import sqlite_agents, sqlite_append, sqlite_control, sqlite_events, sqlite_many
from perdure.engine.log.contract import Propose
from perdure.engine.log.lone import Inserted
from perdure.engine.log.records import AgentName, AgentRecord, Document, EventFilter, Head, Lease, Position, SealedEvent
from perdure.engine.log.signal import Signal, SignalHub
from perdure.engine.log.sqlite_archive import SqliteArchive
from perdure.engine.log.sqlite_arrivals import SqliteArrivals
from perdure.engine.log.sqlite_connection import DATABASE, as_error, connect, prepare, transaction, translated
from perdure.engine.log.sqlite_floors import SqliteFloors
from perdure.engine.log.sqlite_forks import SqliteForks
from perdure.engine.log.sqlite_snapshots import SqliteSnapshots
from perdure.engine.log.sqlite_thread import WorkThreads
from perdure.errors import Unavailable
from perdure.limits import PARTITIONS_DEFAULT

__all__ = ["SqliteStore"]

READERS: Final = 4

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[Concatenate[sqlite3.Connection, P], T]


class SqliteStore(SqliteSnapshots, SqliteFloors, SqliteForks, SqliteArchive, SqliteArrivals):
    """A `LogStore` in a folder. Made by `open`; used on the event loop that it was opened on."""

    def __init__(self, file: Path) -> None:
        self.partitions = 0
        self.generation = 0
        self._file = file
        self._hub = SignalHub()
        self._writer = WorkThreads("perdure-log-writer")
        self._readers = WorkThreads("perdure-log-reader", READERS)
        self._write_connection: sqlite3.Connection | None = None
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._closed = False

    @classmethod
    async def open(cls, folder: Path, *, partitions: int = PARTITIONS_DEFAULT, create: bool = True) -> Self:
        """Open the log in `folder`, made with so many partitions when it is missing; a log that is there keeps the number it has.

        Raises ConfigurationError (no log and not create; no permission; schema of a newer version), IntegrityError (damaged file), Unavailable.
        """
        store = cls(folder / DATABASE)
        try:
            await store._writer.run(partial(store._prepare, partitions, create))
        except BaseException:
            await store.close()
            raise
        return store

    def _prepare(self, partitions: int, create: bool) -> None:
        with translated(self._file):
            connection = prepare(self._file, partitions, create=create)
            self._opened.append(connection)
            self._write_connection = connection
            with transaction(connection):
                meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        self.partitions, self.generation = meta["partitions"], meta["generation"]

    async def close(self) -> None:
        """Finish what was begun, then close every connection. Again is no error."""
        self._closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._shut_down)

    def _shut_down(self) -> None:
        self._readers.shut_down()
        self._writer.shut_down()
        # The writer's first in the list is closed last: SQLite then puts the write-ahead log away.
        while self._opened:
            self._opened.pop().close()

    # --- threads ---

    async def _read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_open()
        return await self._readers.run(partial(self._on_reader, work, *args, **kwargs))

    async def _write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_open()
        return await self._writer.run(partial(self._on_writer, work, *args, **kwargs))

    async def _commit(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def whole(connection: sqlite3.Connection) -> T:
            with transaction(connection):
                return work(connection, *args, **kwargs)

        return await self._write(whole)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"the log {self._file} is closed", hint="open it again")

    def _on_reader(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with translated(self._file):
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = connect(self._file, writer=False)
                self._opened.append(connection)
            return work(connection, *args, **kwargs)

    def _on_writer(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        assert self._write_connection is not None, "the writer is prepared before anything is written"
        with translated(self._file):
            return work(self._write_connection, *args, **kwargs)

    # --- agents ---

    async def agents(self, names: Sequence[AgentName]) -> list[AgentRecord | None]:
        """See `LogStore.agents`."""
        return await self._read(sqlite_agents.get_agents, names)

    async def create_agents(self, records: Sequence[AgentRecord]) -> list[AgentRecord]:
        """See `LogStore.create_agents`."""
        return await self._commit(sqlite_agents.create_agents, records)

    async def heads(self, agents: Sequence[AgentRecord]) -> list[Head]:
        """See `LogStore.heads`."""
        return await self._read(sqlite_agents.heads, agents)

    async def list_agents(
        self, tenant: str, *, type: str | None = None, labels: Mapping[str, str] | None = None, after: str = "", limit: int = 100
    ) -> list[AgentRecord]:
        """See `LogStore.list_agents`."""
        return await self._read(sqlite_agents.list_agents, tenant, type, labels or {}, after, limit)

    async def tenants(self) -> list[str]:
        """See `LogStore.tenants`."""
        return await self._read(sqlite_agents.tenants)

    async def list_owned(self, owner: str, *, after: int = 0, limit: int = 1_000) -> list[AgentRecord]:
        """See `LogStore.list_owned`."""
        return await self._read(sqlite_agents.list_owned, owner, after, limit)

    async def count_owned(self, owner: str) -> int:
        """See `LogStore.count_owned`."""
        return await self._read(sqlite_agents.count_owned, owner)

    async def describe_agent(self, agent: AgentRecord, *, type: str, labels: Mapping[str, str]) -> None:
        """See `LogStore.describe_agent`."""
        await self._commit(sqlite_agents.describe_agent, agent, type, labels)

    async def swap_data_keys(self, agents: Sequence[AgentRecord], data_keys: Sequence[bytes]) -> int:
        """See `LogStore.swap_data_keys`."""
        return await self._commit(sqlite_agents.swap_data_keys, agents, data_keys)

    # --- events ---

    async def positions(self) -> dict[int, Position]:
        """See `LogStore.positions`."""
        return await self._read(sqlite_events.positions, self.partitions)

    async def append(self, known: Mapping[int, Position], propose: Propose) -> dict[int, Position]:
        """See `LogStore.append`. `propose` is called on the writer's thread."""
        self._check_open()
        # Readers wake also when whoever awaited the append was cancelled.
        return await self._writer.run(partial(self._on_writer, sqlite_append.append, known, propose), then=self._hub.notify)

    def insert_alone(self, row: SealedEvent, after: Position, told: Inserted) -> None:
        """See `StoresAlone.insert_alone`."""
        self._check_open()
        self._writer.hand(partial(self._insert_alone, row, after), partial(self._tell_alone, told))

    def _insert_alone(self, row: SealedEvent, after: Position) -> bool:
        assert self._write_connection is not None, "the writer is prepared before anything is written"
        try:
            return sqlite_append.insert_alone(self._write_connection, row, after)
        except sqlite3.ProgrammingError:
            raise  # a mistake of ours, not the database's failure
        except sqlite3.Error as error:
            raise as_error(error, self._file) from error

    def _tell_alone(self, told: Inserted, stands: bool | None, problem: BaseException | None) -> None:
        if stands:
            self._hub.notify()
        told(bool(stands), problem)

    async def read(self, partition: int, after: int, limit: int, *, sparse: bool = False) -> list[SealedEvent]:
        """See `LogStore.read`."""
        return await self._read(sqlite_events.read, partition, after, limit, sparse)

    async def read_tails(self, after: Mapping[int, int], limit: int) -> list[SealedEvent]:
        """See `LogStore.read_tails`."""
        return await self._read(sqlite_events.read_tails, after, limit)

    async def read_agent(self, agent: AgentRecord, where: EventFilter, limit: int, *, descending: bool = False) -> list[SealedEvent]:
        """See `LogStore.read_agent`."""
        return await self._read(sqlite_events.read_agent, agent, where, limit, descending)

    async def read_many(self, wanted: Sequence[tuple[AgentRecord, int, int]]) -> list[list[SealedEvent]]:
        """See `LogStore.read_many`."""
        return await self._read(sqlite_many.read_many, wanted)

    async def read_tenant(self, tenant: str, partition: int, after: int, where: EventFilter, limit: int) -> list[SealedEvent]:
        """See `LogStore.read_tenant`."""
        return await self._read(sqlite_events.read_tenant, tenant, partition, after, where, limit)

    async def find(self, agent: AgentRecord, ids: Sequence[UUID]) -> list[SealedEvent]:
        """See `LogStore.find`."""
        return await self._read(sqlite_events.find, agent, ids)

    async def version_at(self, agent: AgentRecord, time_us: int) -> int:
        """See `LogStore.version_at`."""
        return await self._read(sqlite_events.version_at, agent, time_us)

    def look_before_ms(self, partition: int, offset: int, count: int) -> int:  # noqa: ARG002
        """See `LogStore.look_before_ms`: 0, for one index holds all ids of the log."""
        return 0

    def signal(self) -> Signal:
        """See `LogStore.signal`. Each call gives another reader's view."""
        return Signal(self._hub)

    # --- control documents, blobs, leases ---

    async def get_document(self, scope: str, name: str) -> Document | None:
        """See `LogStore.get_document`."""
        return await self._read(sqlite_control.get_document, scope, name)

    async def list_documents(self, scope: str) -> list[Document]:
        """See `LogStore.list_documents`."""
        return await self._read(sqlite_control.list_documents, scope)

    async def put_document(self, scope: str, name: str, value: bytes, *, expected: int | None) -> Document | None:
        """See `LogStore.put_document`."""
        return await self._commit(sqlite_control.put_document, scope, name, value, expected)

    async def delete_document(self, scope: str, name: str) -> None:
        """See `LogStore.delete_document`."""
        await self._commit(sqlite_control.delete_document, scope, name)

    async def put_blob(self, tenant: str, name: bytes, payload: bytes) -> None:
        """See `LogStore.put_blob`."""
        await self._commit(sqlite_control.put_blob, tenant, name, payload)

    async def get_blob(self, tenant: str, name: bytes) -> bytes | None:
        """See `LogStore.get_blob`."""
        return await self._read(sqlite_control.get_blob, tenant, name)

    async def acquire_lease(self, name: str, holder: str, duration_s: float) -> Lease | None:
        """See `LogStore.acquire_lease`. On this machine's clock."""
        return await self._commit(sqlite_control.acquire_lease, name, holder, duration_s)

    async def release_lease(self, lease: Lease) -> None:
        """See `LogStore.release_lease`."""
        await self._commit(sqlite_control.release_lease, lease)

    async def list_leases(self, prefix: str) -> list[Lease]:
        """See `LogStore.list_leases`."""
        return await self._read(sqlite_control.list_leases, prefix)
