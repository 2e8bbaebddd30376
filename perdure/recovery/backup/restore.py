"""Putting a backup into a new place.

Never over a log that holds anything of its own: the target must be empty, or be this very restore, interrupted; then it goes on where it
stopped. A mark says that the log is not whole yet; it goes with the last step, which begins a new generation, so that whoever still lives in the
old world is fenced in the new one.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.contract import LogStore
from perdure.engine.log.marks import RESERVED
from perdure.engine.log.records import AgentName, AgentRecord, to_microseconds
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.errors import AlreadyExists, ConfigurationError, IntegrityError, InvalidInput, ObjectNotFound
from perdure.limits import STORE_OBJECT_BYTES_MAX
from perdure.recovery.backup.manifest import BackupManifest, Part
from perdure.recovery.backup.objects import Vessel, blob_object
from perdure.recovery.backup.records import BlobEntry, DocumentEntry, FloorEntry, KeyEntry, StoredEvent

__all__ = ["PROMOTION_MARK", "RESTORE_SCOPE", "Restored", "Restorer", "check_whole"]

RESTORE_SCOPE: Final = "restore"
_SCOPE: Final = RESTORE_SCOPE
_MARK: Final = "under-way"
PROMOTION_MARK: Final = "promotion"
LOAD_EVENTS: Final = 5_000
CREATE_AGENTS: Final = 1_000

Progress = Callable[[int, int], None]
T = TypeVar("T")


class Restored(msgspec.Struct, frozen=True):
    """What is in the log now. generation: the new one. resumed: an interrupted restore was gone on with."""

    backup: str
    events: int
    agents: int
    generation: int
    resumed: bool


async def check_whole(store: LogStore) -> None:
    """Raise IntegrityError when the log is a restore, or a promotion, that has not ended."""
    marks = {document.name for document in await store.list_documents(_SCOPE)}
    if PROMOTION_MARK in marks:
        raise IntegrityError(
            "this log is being promoted, or a promotion was interrupted", hint="run `perdure recover promote --yes` again: it goes on"
        )
    if _MARK in marks:
        raise IntegrityError(
            "this log is being restored, or a restore was interrupted", hint="run `perdure backup restore` again: it goes on"
        )


class Restorer:
    """Restores one backup into one store. to_time: only what the log had at that moment."""

    def __init__(
        self,
        vessel: Vessel,
        manifest: BackupManifest,
        store: LogStore,
        *,
        to_time: datetime | None = None,
        progress: Progress | None = None,
    ) -> None:
        if to_time is not None and to_time.tzinfo is None:
            raise InvalidInput("the time has no zone", hint="give an aware datetime, e.g. in UTC")
        self._vessel = vessel
        self._manifest = manifest
        self._store = store
        self._until_us = None if to_time is None else to_microseconds(to_time)
        self._progress = progress
        self._agents: dict[tuple[str, str], AgentRecord] = {}
        self._left_out: set[AgentName] = set()
        self._events = 0

    async def run(self) -> Restored:
        """Raises AlreadyExists (the target holds something else), IntegrityError (something is missing or was changed; before anything is
        written where it is missing), ConfigurationError, Unavailable."""
        self._check_time()
        await self._check_there()
        resumed = await self._begin()
        await self._documents()
        await self._make_agents()
        steps.reach("restore.agents")
        await self._blobs()
        await self._partitions()
        steps.reach("restore.events")
        await self._floors()
        await self._snapshots()
        generation = self._manifest.generation + 1
        if self._store.generation < generation:
            await self._store.set_generation(generation)
        steps.reach("restore.generation")
        await self._store.delete_document(_SCOPE, _MARK)
        return Restored(self._manifest.id, self._events, len(self._agents), generation, resumed)

    def _check_time(self) -> None:
        if self._until_us is None:
            return
        newest = max((time_us for _, time_us in self._manifest.positions.values()), default=0)
        if self._until_us > max(newest, self._manifest.created_us):
            raise InvalidInput("that moment is after this backup", hint="take a later backup, or restore all of this one")

    async def _check_there(self) -> None:
        """Every object must be there before anything is written."""
        sizes: dict[str, int | None] = {each.name: each.stored_bytes for each in self._manifest.objects}
        async for blob in self._all("blobs", BlobEntry):
            sizes[blob_object(blob.tenant, blob.name)] = None  # its digest is compared when it is read
        for name, size in sizes.items():
            facts = await self._vessel.store.facts(name)
            if facts is None or size not in (None, facts.size_bytes):
                raise IntegrityError(f"the backup's object {name} is missing or has another size", object=name)

    async def _begin(self) -> bool:
        if self._store.partitions != self._manifest.partitions:
            raise ConfigurationError(
                f"the target has {self._store.partitions} partitions, the backup {self._manifest.partitions}",
                hint="a log is made with its partitions: restore into a place where there is none",
            )
        wanted = msgspec.msgpack.encode([self._manifest.id, self._until_us])
        mark = await self._store.get_document(_SCOPE, _MARK)
        if mark is not None and mark.value == wanted:
            return True
        if mark is not None:
            raise AlreadyExists("another backup was being restored here", hint="go on with that one, or restore into an empty place")
        if await self._store.tenants() or any(position.offset for position in (await self._store.positions()).values()):
            raise AlreadyExists("the target holds a log", hint="restore into an empty place, then point PERDURE_LOG at it")
        await self._store.put_document(_SCOPE, _MARK, wanted, expected=0)
        return False

    async def _documents(self) -> None:
        for kind in ("tenant-keys", "documents"):
            for part in self._manifest.of(kind):
                for scope, name, value in await self._records(part, DocumentEntry):
                    await self._store.put_document(scope, name, value, expected=0)

    async def _make_agents(self) -> None:
        keys = {AgentName(key.tenant, key.agent): key.data_key async for key in self._all("keys", KeyEntry)}
        rows: list[AgentRecord] = []
        forks: list[AgentRecord] = []
        async for agent in self._all("agents", AgentRecord):
            # Nodes of the old world own nothing here; but what says that an agent is moving to another engine, or has, holds.
            wrapped = keys.get(AgentName(agent.tenant, agent.agent), b"")
            owner = agent.owner if agent.owner.startswith(RESERVED) else ""
            row = msgspec.structs.replace(agent, tenant_key=0, agent_key=0, data_key=wrapped, owner=owner)
            if row.parent is not None:
                forks.append(row)
                continue
            rows.append(row)
            if len(rows) >= CREATE_AGENTS:
                await self._create(rows)
                rows = []
        await self._create(rows)
        await self._fork(forks)

    async def _create(self, rows: list[AgentRecord]) -> None:
        self._know(await self._store.create_agents(rows) if rows else [])

    def _know(self, records: list[AgentRecord]) -> None:
        for record in records:
            self._agents[record.tenant, record.agent] = record

    async def _fork(self, rows: list[AgentRecord]) -> None:
        """Make forks, each after what it was forked from. Left out is what did not exist at the moment: it goes on from a later event."""
        waiting = {AgentName(row.tenant, row.agent): row for row in rows}
        self._left_out = {name for name, row in waiting.items() if not self._existed(row)}
        for name in self._left_out:
            del waiting[name]
        while waiting:
            ready = [row for row in waiting.values() if row.parent and AgentName(row.tenant, row.parent.agent) not in waiting]
            for start in range(0, len(ready), CREATE_AGENTS):
                placed = [self._placed(row) for row in ready[start : start + CREATE_AGENTS]]
                await self._create([row for row in placed if row.parent is None])
                self._know(await self._store.load_forks([row for row in placed if row.parent is not None]))
            for row in ready:
                del waiting[AgentName(row.tenant, row.agent)]
            if not ready:
                raise IntegrityError("the backup's forks go on from one another in a ring")

    def _existed(self, row: AgentRecord) -> bool:
        return self._until_us is None or row.parent is None or row.parent.time_us <= self._until_us

    def _placed(self, row: AgentRecord) -> AgentRecord:
        """A fork of one that is left out goes on from the agent whose event it is; from version 0 it is none."""
        if row.parent is None or AgentName(row.tenant, row.parent.agent) in self._agents:
            return row
        parent = msgspec.structs.replace(row.parent, agent=row.past[0].agent) if row.past else None
        return msgspec.structs.replace(row, parent=parent)

    async def _blobs(self) -> None:
        async for blob in self._all("blobs", BlobEntry):
            name = blob_object(blob.tenant, blob.name)
            try:
                content = await self._vessel.store.get(name, bytes_max=STORE_OBJECT_BYTES_MAX)
            except ObjectNotFound as problem:
                raise IntegrityError(f"the backup's object {name} is not there", object=name) from problem
            if hashlib.sha256(content).digest() != blob.digest:
                raise IntegrityError(f"the backup's object {name} is not the one that was written", object=name)
            await self._store.put_blob(blob.tenant, blob.name, content)

    async def _partitions(self) -> None:
        """Several partitions at once: each has a connection of its own, and the server's processors share the work."""
        places = asyncio.Semaphore(limits.RESTORE_PARTITIONS_AT_ONCE)

        async def one(partition: int, stands: int) -> None:
            async with places:
                await self._partition(partition, stands)

        try:
            async with asyncio.TaskGroup() as group:
                for partition, position in (await self._store.positions()).items():
                    group.create_task(one(partition, position.offset))
        except ExceptionGroup as problems:
            first = problems.exceptions[0]
            raise first from first.__cause__

    async def _partition(self, partition: int, stands: int) -> None:
        """Events in order, after the offset where an interrupted restore stopped, up to the moment."""
        for segment in self._manifest.segments:
            if segment.partition != partition:
                continue
            if segment.last <= stands:
                self._advance(segment.events)
                continue
            stored = await self._vessel.get(segment.name, list[StoredEvent], segment.digest)
            # Up to the first event after the moment: offsets stay without a hole where agents came from elsewhere with older times.
            told = [event for event in stored if event.offset > stands]
            wanted = list(itertools.takewhile(lambda event: self._until_us is None or event.time_us <= self._until_us, told))
            for start in range(0, len(wanted), LOAD_EVENTS):
                page = wanted[start : start + LOAD_EVENTS]
                await self._store.load_events(partition, [event.sealed(self._agent(event.tenant, event.agent)) for event in page])
                self._advance(len(page))
                steps.reach("restore.page")
            if len(wanted) < len(told):
                return

    def _agent(self, tenant: str, agent: str) -> AgentRecord:
        record = self._agents.get((tenant, agent))
        if record is None:
            raise IntegrityError(f"the backup has an event of agent {agent!r}, and not the agent", tenant=tenant, agent=agent)
        return record

    async def _floors(self) -> None:
        async for entry in self._all("floors", FloorEntry):
            if AgentName(entry.tenant, entry.agent) in self._left_out:
                continue
            agent = self._agent(entry.tenant, entry.agent)
            (standing,) = await self._store.floors([agent])
            if standing.version < entry.floor.version:
                await self._store.load_floor(agent, entry.floor, entry.removed)

    async def _snapshots(self) -> None:
        """Registered snapshots of states that are in the log now; their objects are in the store of snapshots, which is not part of a backup."""
        by_agent: dict[AgentName, list[SnapshotRow]] = {}
        async for row in self._all("snapshots", SnapshotRow):
            by_agent.setdefault(AgentName(row.tenant, row.agent), []).append(row)
        for name, rows in by_agent.items():
            agent = self._agents.get(name)
            if agent is None:
                continue  # made after the moment, or after the agents were listed: none of its events is here
            (head,) = await self._store.heads([agent])
            for row in sorted(rows, key=lambda row: row.version):  # the registry takes them forward only
                if row.version <= head.version:
                    await self._store.add_snapshot(msgspec.structs.replace(row, tenant_key=agent.tenant_key, agent_key=agent.agent_key))

    async def _all(self, kind: str, of: type[T]) -> AsyncIterator[T]:
        for part in self._manifest.of(kind):
            for record in await self._records(part, of):
                yield record

    async def _records(self, part: Part, of: type[T]) -> list[T]:
        records: list[T] = await self._vessel.get(part.name, _list_of(of), part.digest)
        return records

    def _advance(self, events: int) -> None:
        self._events += events
        if self._progress is not None:
            self._progress(self._events, self._manifest.events)


def _list_of(of: Any) -> Any:
    return list[of]
