"""The backups of a store: which there are, whether they read, how fresh they are, and which go."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from perdure.engine.log.chain import EMPTY_CHAIN, check_chain
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.errors import IntegrityError, InvalidInput, NotFound, ObjectNotFound, PerdureError
from perdure.limits import STORE_OBJECT_BYTES_MAX
from perdure.recovery.backup.manifest import BackupManifest, Proof, Segment, manifest_object, proof_object
from perdure.recovery.backup.objects import PREFIX, Vessel, blob_object
from perdure.recovery.backup.records import BlobEntry, FloorEntry, StoredEvent

__all__ = ["ALARM_S", "Catalog", "Checked", "Freshness", "Listed", "Pruned"]

ALARM_S: Final = 600.0
"""An event that is older than this and in no backup is told as an alarm: well before the quarter of an hour that may be lost at most."""
PROBLEMS_MAX: Final = 100
GRACE_S: Final = 3_600.0
"""Objects younger than this are never swept: a backup that is being taken has not named them yet."""

Progress = Callable[[int, int], None]
T = TypeVar("T")


class Listed(msgspec.Struct, frozen=True):
    """A backup in a list. proven: a restore of it was compared; else it is a promise."""

    id: str
    created_us: int
    events: int
    stored_bytes: int
    written_bytes: int
    generation: int
    proven: bool
    previous: str


class Checked(msgspec.Struct, frozen=True):
    """What reading a whole backup came to."""

    id: str
    ok: bool
    objects: int
    events: int
    agents: int
    bytes_read: int
    problems: tuple[str, ...]


class Freshness(msgspec.Struct, frozen=True):
    """How much would be lost if the log were lost now. lag_events: not in the newest backup; lag_s: its age (None: there is none). rpo_s: how
    far back what would be lost reaches, from now to the oldest event that is in no backup (0: nothing would be). ahead_events: of the backup that
    the log does not have, which only an older copy of a log lacks. A backup of another generation of the log counts for nothing."""

    newest: str
    lag_events: int
    lag_s: float | None
    rpo_s: float
    ahead_events: int
    alarm: bool
    unproven: bool


class Pruned(msgspec.Struct, frozen=True):
    """Which backups went (or would go), and the objects that nothing needs any more."""

    backups: tuple[str, ...]
    objects: int
    bytes: int
    dry_run: bool


class Catalog:
    """Backups in one store."""

    def __init__(self, vessel: Vessel) -> None:
        self._vessel = vessel

    async def ids(self) -> list[str]:
        """Newest first."""
        folder = f"{PREFIX}manifests/"
        names = [facts.name.removeprefix(folder) async for facts in self._vessel.store.list(folder)]
        return sorted(names, reverse=True)

    async def get(self, id: str) -> BackupManifest:
        """The manifest; `latest` is the newest. Raises NotFound, IntegrityError."""
        ids = await self.ids()
        if id == "latest" and ids:
            id = ids[0]
        if id not in ids:
            raise NotFound(f"there is no backup {id!r}", hint="`perdure backup list` shows those there are")
        return await self._vessel.get(manifest_object(id), BackupManifest)

    async def newest(self) -> BackupManifest | None:
        """The newest that reads; None: there is none. One that was damaged is passed over, the next is taken whole from an older one."""
        for id in await self.ids():
            try:
                return await self._vessel.get(manifest_object(id), BackupManifest)
            except IntegrityError:
                continue
        return None

    async def list(self) -> list[Listed]:
        """Newest first."""
        proven = await self._proven()
        found = []
        for id in await self.ids():
            each = await self._vessel.get(manifest_object(id), BackupManifest)
            facts = (each.created_us, each.events, each.stored_bytes, each.written_bytes, each.generation)
            found.append(Listed(id, *facts, id in proven, each.previous))
        return found

    async def freshness(self, store: LogStore) -> Freshness:
        """What the newest backup lacks of the log."""
        newest = await self.newest()
        positions = await store.positions()
        counts = newest is not None and newest.generation == store.generation
        ends = {partition: offset for partition, (offset, _) in newest.positions.items()} if newest and counts else {}
        oldest_us = None
        lag = ahead = 0
        for partition, position in positions.items():
            end = ends.get(partition, 0)
            ahead += max(0, end - position.offset)
            if position.offset > end:
                lag += position.offset - end
                first = (await store.read(partition, end, 1, sparse=True))[0]
                oldest_us = min(first.time_us, oldest_us or first.time_us)
        rpo_s = 0.0 if oldest_us is None else max(0.0, time.time() - oldest_us / 1e6)
        age_s = time.time() - newest.created_us / 1e6 if newest else None
        unproven = newest is None or newest.id not in await self._proven()
        return Freshness(newest.id if newest else "", lag, age_s, rpo_s, ahead, rpo_s > ALARM_S or bool(ahead), unproven)

    async def prove(self, proof: Proof) -> None:
        """Note that a restore was compared."""
        await self._vessel.put(proof_object(f"{proof.backup}-{proof.proven_us}"), proof)

    async def _proven(self) -> set[str]:
        folder = f"{PREFIX}proofs/"
        return {facts.name.removeprefix(folder).split("-")[0] async for facts in self._vessel.store.list(folder)}

    # --- verify ---
    async def verify(self, id: str, progress: Progress | None = None) -> Checked:
        """Read everything: every object is the one that was written, offsets have no unknown hole, every chain holds. Raises NotFound."""
        manifest = await self.get(id)
        check = _Check(self._vessel, manifest, progress)
        await check.run()
        return Checked(
            manifest.id, not check.problems, check.objects, check.events, len(check.heads), check.bytes_read, tuple(check.problems)
        )

    # --- prune ---
    async def prune(self, keep: int, *, dry_run: bool, grace_s: float = GRACE_S) -> Pruned:
        """Forget all but the newest `keep` backups and the newest proven one, and sweep what nothing needs. Raises InvalidInput."""
        if keep < 1:
            raise InvalidInput(f"keep is {keep}", hint="at least 1 backup stays")
        ids, proven = await self.ids(), await self._proven()
        stay = {*ids[:keep], *[id for id in ids if id in proven][:1]}
        go = [id for id in ids if id not in stay]
        needed = {manifest_object(id) for id in stay}
        for id in stay:
            manifest = await self._vessel.get(manifest_object(id), BackupManifest)
            needed |= {each.name for each in manifest.objects}
            for part in manifest.of("blobs"):
                needed |= {blob_object(blob.tenant, blob.name) for blob in await self._vessel.get(part.name, list[BlobEntry], part.digest)}
        objects = size = 0
        for id in go if not dry_run else ():
            await self._vessel.store.delete(manifest_object(id))
        now_us = time.time() * 1e6
        for folder in ("segments/", "base/", "keys/", "blobs/"):
            async for facts in self._vessel.store.list(PREFIX + folder):
                if facts.name in needed or facts.modified_us > now_us - grace_s * 1e6:
                    continue
                objects, size = objects + 1, size + facts.size_bytes
                if not dry_run:
                    await self._vessel.store.delete(facts.name)
        return Pruned(tuple(go), objects, size, dry_run)


def _before(agent: AgentRecord) -> tuple[int, bytes]:
    """What an agent's own first event follows."""
    return (0, EMPTY_CHAIN) if agent.parent is None else (agent.parent.version, agent.parent.chain)


class _Check:
    """One backup being read."""

    def __init__(self, vessel: Vessel, manifest: BackupManifest, progress: Progress | None) -> None:
        self._vessel = vessel
        self._manifest = manifest
        self._progress = progress
        self._floors: dict[AgentName, tuple[int, bytes]] = {}
        self._agents: dict[AgentName, AgentRecord] = {}
        self.heads: dict[AgentName, tuple[int, bytes]] = {}
        self.problems: list[str] = []
        self.objects = self.events = self.bytes_read = 0

    async def run(self) -> None:
        for part in self._manifest.parts:
            if part.kind == "agents":
                for agent in await self._read(part.name, list[AgentRecord], part.digest, part.stored_bytes) or ():
                    self._agents[AgentName(agent.tenant, agent.agent)] = agent
            elif part.kind == "floors":
                for entry in await self._read(part.name, list[FloorEntry], part.digest, part.stored_bytes) or ():
                    self._floors[AgentName(entry.tenant, entry.agent)] = (entry.floor.version - 1, entry.floor.chain)
            elif part.kind == "blobs":
                await self._blobs(await self._read(part.name, list[BlobEntry], part.digest, part.stored_bytes) or [])
            else:
                await self._read(part.name, list, part.digest, part.stored_bytes)
        ends: dict[int, int] = {}
        for segment in self._manifest.segments:
            await self._segment(segment, ends)
        for partition, (offset, _) in self._manifest.positions.items():
            if ends.get(partition, 0) != offset:
                self._tell(f"partition {partition} ends at offset {ends.get(partition, 0)}, not at {offset}")

    async def _segment(self, segment: Segment, ends: dict[int, int]) -> None:
        events = await self._read(segment.name, list[StoredEvent], segment.digest, segment.stored_bytes)
        if events is None:
            return
        for event in events:
            if event.offset != ends.get(segment.partition, 0) + 1 and not self._floors:
                self._tell(f"offset {event.offset} of partition {segment.partition} follows {ends.get(segment.partition, 0)}")
            ends[segment.partition] = event.offset
            self._chain(event)
        self.events += len(events)
        if self._progress is not None:
            self._progress(self.events, self._manifest.events)

    def _chain(self, event: StoredEvent) -> None:
        name = AgentName(event.tenant, event.agent)
        agent = self._agents.get(name)
        if agent is None:
            self._tell(f"agent {event.agent!r} of tenant {event.tenant!r} is not in the backup")
            return
        version, chain = self.heads.get(name) or self._floors.get(name) or _before(agent)
        try:
            self.heads[name] = check_chain([event.sealed(agent)], version=version, chain=chain)
        except IntegrityError as problem:
            self._tell(f"agent {event.agent!r} of tenant {event.tenant!r}: {problem}")
            self.heads[name] = (event.version, event.chain)

    async def _blobs(self, blobs: list[BlobEntry]) -> None:
        for blob in blobs:
            name = blob_object(blob.tenant, blob.name)
            try:
                content = await self._vessel.store.get(name, bytes_max=STORE_OBJECT_BYTES_MAX)
            except ObjectNotFound:
                self._tell(f"the object {name} is not there")
                continue
            self.objects, self.bytes_read = self.objects + 1, self.bytes_read + len(content)
            if hashlib.sha256(content).digest() != blob.digest:
                self._tell(f"the object {name} is not the one that was written")

    async def _read(self, name: str, kind: type[T], digest: bytes, size: int) -> T | None:
        try:
            value = await self._vessel.get(name, kind, digest)
        except PerdureError as problem:
            if problem.retryable:
                raise
            self._tell(problem.message)
            return None
        self.objects, self.bytes_read = self.objects + 1, self.bytes_read + size
        return value

    def _tell(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
