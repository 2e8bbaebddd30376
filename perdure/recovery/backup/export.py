"""Taking a backup: what is new since the last one, and the small rest whole.

Order is what makes it consistent without stopping anybody: first it is noted where every partition stands, then the events up to there are
taken, and only then agents, keys and documents. Whatever an event up to there needs existed before it, so it is in what is taken afterwards.
The manifest is written last: without it there is no backup.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from perdure.engine import steps
from perdure.engine.log.contract import LogStore
from perdure.engine.log.floor_rows import NO_FLOOR
from perdure.engine.log.fork_rows import has_own_floor
from perdure.engine.log.paging import agent_pages
from perdure.engine.log.records import AgentRecord, Position, SealedEvent
from perdure.errors import IntegrityError
from perdure.identifiers import uuid7
from perdure.recovery.backup.manifest import FORMAT, BackupManifest, Part, Segment, manifest_object
from perdure.recovery.backup.objects import PREFIX, Vessel, blob_object
from perdure.recovery.backup.records import BlobEntry, DocumentEntry, FloorEntry, KeyEntry, StoredEvent
from perdure.security.ring import TENANT_KEYS_SCOPE

__all__ = ["BACKUP_SCOPE", "LOG_ID", "VOLATILE_SCOPES", "Exporter", "log_id"]

SEGMENT_EVENTS: Final = 5_000
SEGMENT_BYTES: Final = 16 * 1024 * 1024
SMALL_SEGMENTS_MAX: Final = 16
"""Small segments at the end of a partition before they are taken again as one."""
PAGE: Final = 1_000
PART_RECORDS: Final = 10_000
VOLATILE_SCOPES: Final = frozenset({"relay", "nodes", "assignments", "snapshotter", "backup", "restore"})
"""Documents about running processes: another world's are of no use."""
BACKUP_SCOPE: Final = "backup"
LOG_ID: Final = "log"

Progress = Callable[[int, int], None]


async def log_id(store: LogStore) -> str:
    """The id of a log, made when it is first backed up."""
    document = await store.get_document(BACKUP_SCOPE, LOG_ID)
    if document is None:
        await store.put_document(BACKUP_SCOPE, LOG_ID, uuid7().hex.encode(), expected=0)
        document = await store.get_document(BACKUP_SCOPE, LOG_ID)
    assert document is not None
    return document.value.decode()


def _is_whole(agent: AgentRecord, positions: Mapping[int, Position]) -> bool:
    """Whether the backup has what a fork goes on from. One that was made since the positions were noted may lack it, and has no event in it."""
    parent = agent.parent
    return parent is None or not parent.version or parent.offset <= positions[parent.partition].offset


class Exporter:
    """Takes one backup of a log."""

    def __init__(self, store: LogStore, vessel: Vessel, previous: BackupManifest | None, progress: Progress | None = None) -> None:
        self._store = store
        self._vessel = vessel
        self._previous = previous
        self._progress = progress
        self._id = uuid7().hex
        self._written_bytes = 0
        self._done = 0

    async def run(self) -> BackupManifest:
        """The manifest of the backup, which stands in the store when this returns. Raises IntegrityError, Unavailable."""
        created_us = time.time_ns() // 1000
        identity = await log_id(self._store)
        positions = await self._store.positions()
        total = sum(position.offset for position in positions.values())
        segments = []
        for partition, position in sorted(positions.items()):
            segments += await self._partition(partition, position, self._kept(identity, partition, position), total)
        steps.reach("backup.segments")
        parts = [part async for part in self._parts(positions)]
        steps.reach("backup.parts")
        manifest = BackupManifest(
            FORMAT,
            self._id,
            identity,
            self._store.generation,
            self._store.partitions,
            created_us,
            self._previous.id if self._previous else "",
            segments,
            parts,
            {partition: (position.offset, position.time_us) for partition, position in positions.items()},
            self._written_bytes,
        )
        await self._vessel.put(manifest_object(self._id), manifest)
        return manifest

    # --- events ---
    def _kept(self, identity: str, partition: int, position: Position) -> list[Segment]:
        """Segments of the backup before that go on being used."""
        previous = self._previous
        if previous is None or (previous.log, previous.generation) != (identity, self._store.generation):
            return []
        kept = [segment for segment in previous.segments if segment.partition == partition]
        if kept and kept[-1].last > position.offset:
            raise IntegrityError(
                f"partition {partition} stands at offset {position.offset}, a backup holds {kept[-1].last}",
                hint="an older copy of the log was put in its place: give it a new generation",
                partition=partition,
            )
        small = 0
        while small < len(kept) and kept[-1 - small].events < SEGMENT_EVENTS // 4:
            small += 1
        return kept[: len(kept) - small] if small > SMALL_SEGMENTS_MAX else kept

    async def _partition(self, partition: int, position: Position, kept: list[Segment], total: int) -> list[Segment]:
        after = kept[-1].last if kept else 0
        self._advance(after, total)
        segments = list(kept)
        events: list[SealedEvent] = []
        size = 0
        async for event in self._events(partition, after, position.offset):
            events.append(event)
            size += len(event.payload)
            if len(events) >= SEGMENT_EVENTS or size >= SEGMENT_BYTES:
                segments.append(await self._segment(partition, events, total))
                events, size = [], 0
        if events:
            segments.append(await self._segment(partition, events, total))
        return segments

    async def _events(self, partition: int, after: int, last: int) -> AsyncIterator[SealedEvent]:
        """Events in order of offset. Only where events were removed there may be holes."""
        floor = (await self._store.partition_floors()).get(partition, 0)
        expected = after + 1
        while after < last:
            page = await self._store.read(partition, after, PAGE, sparse=True)
            for event in page:
                if event.offset > last:
                    return
                if event.offset != expected and expected > floor:
                    raise IntegrityError(f"offset {expected} of partition {partition} is not there", partition=partition)
                expected = event.offset + 1
                yield event
            if not page:
                return
            after = page[-1].offset

    async def _segment(self, partition: int, events: Sequence[SealedEvent], total: int) -> Segment:
        first, last = events[0].offset, events[-1].offset
        name = f"{PREFIX}segments/{partition:03d}/{first:020d}-{last:020d}-{self._id}"
        digest, size = await self._put(name, [StoredEvent.of(event) for event in events])
        self._advance(len(events), total)
        steps.reach("backup.segment")
        return Segment(partition, first, last, len(events), events[-1].time_us, name, digest, size)

    # --- everything else ---
    async def _parts(self, positions: Mapping[int, Position]) -> AsyncIterator[Part]:
        agents: list[AgentRecord] = []
        async for page in agent_pages(self._store):
            agents += [agent for agent in page if _is_whole(agent, positions)]
            if len(agents) >= PART_RECORDS:
                for part in await self._agents(agents):
                    yield part
                agents = []
        for part in await self._agents(agents):
            yield part
        for tenant in await self._store.tenants():
            after_id: UUID | None = None
            while rows := await self._store.list_snapshots(tenant, after=after_id, limit=PART_RECORDS):
                after_id = rows[-1].id
                yield await self._part("snapshots", [row for row in rows if not row.damage])
        documents, keys = await self._documents()
        yield await self._part("documents", documents)
        yield await self._part("tenant-keys", keys)
        yield await self._part("blobs", await self._blobs())

    async def _agents(self, agents: list[AgentRecord]) -> list[Part]:
        """A page of agents: facts, keys (apart) and floors."""
        if not agents:
            return []
        facts = [msgspec.structs.replace(agent, data_key=b"") for agent in agents]
        keys = [KeyEntry(agent.tenant, agent.agent, agent.data_key) for agent in agents]
        floors = []
        for agent, floor in zip(agents, await self._store.floors(agents), strict=True):
            if floor != NO_FLOOR and has_own_floor(agent, floor):
                floors.append(FloorEntry(agent.tenant, agent.agent, floor, await self._store.removed_ids(agent)))
        parts = [await self._part("agents", facts), await self._part("keys", keys)]
        if floors:
            parts.append(await self._part("floors", floors))
        return parts

    async def _documents(self) -> tuple[list[DocumentEntry], list[DocumentEntry]]:
        documents, keys = [], []
        for scope in await self._store.scopes():
            if scope in VOLATILE_SCOPES:
                continue
            found = [DocumentEntry(document.scope, document.name, document.value) for document in await self._store.list_documents(scope)]
            if scope == TENANT_KEYS_SCOPE:
                keys += found
            else:
                documents += found
        return documents, keys

    async def _blobs(self) -> list[BlobEntry]:
        """Every large value; those that no backup has yet are put beside it."""
        known: dict[tuple[str, bytes], bytes] = {}
        if self._previous is not None:
            for part in self._previous.of("blobs"):
                listed = await self._vessel.get(part.name, list[BlobEntry], part.digest)
                known.update({(tenant, name): digest for tenant, name, digest in listed})
        found: list[BlobEntry] = []
        after: tuple[str, bytes] | None = None
        while page := await self._store.list_blobs(after, PAGE):
            after = page[-1]
            for tenant, name in page:
                digest = known.get((tenant, name)) or await self._blob(tenant, name)
                if digest is not None:
                    found.append(BlobEntry(tenant, name, digest))
        return found

    async def _blob(self, tenant: str, name: bytes) -> bytes | None:
        content = await self._store.get_blob(tenant, name)
        if content is None:
            return None  # taken away since it was listed
        await self._vessel.store.put(blob_object(tenant, name), content)
        self._written_bytes += len(content)
        return hashlib.sha256(content).digest()

    async def _part(self, kind: str, records: Sequence[Any]) -> Part:
        folder = "keys" if kind in ("keys", "tenant-keys") else "base"
        name = f"{PREFIX}{folder}/{self._id}-{kind}-{uuid7().hex[-12:]}"
        digest, size = await self._put(name, records)
        return Part(kind, name, digest, size, len(records))

    async def _put(self, name: str, value: Any) -> tuple[bytes, int]:
        digest, size = await self._vessel.put(name, value)
        self._written_bytes += size
        return digest, size

    def _advance(self, events: int, total: int) -> None:
        self._done += events
        if self._progress is not None:
            self._progress(self._done, total)
