"""Writing a snapshot: fold, pack, store, read back, register.

What always holds: a row of the registry names a manifest that was read back and opened, and every chunk of it was read back, or belongs to
the snapshot before it and was seen to be there. The row is the last thing written, so a crash at any step leaves objects that nobody names, and
the next attempt finds them and goes on.

Steps for fault tests: snapshot.folded, .chunk_put, .chunk_verified, .manifest_put, .manifest_verified, .registered.
"""

from __future__ import annotations

import asyncio
import time
from hashlib import sha256
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.contract import LogStore
from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.log.snapshot_rows import CHECKPOINT, FULL, SnapshotMark, SnapshotRow
from perdure.engine.log.versions import no_version
from perdure.engine.replay import Folded, fold_log
from perdure.engine.vault import Vault
from perdure.errors import Conflict, InvalidInput, Unavailable, VersionNotFound
from perdure.identifiers import uuid7
from perdure.projections.hot import HotStates
from perdure.snapshots.chunks import ChunkReference
from perdure.snapshots.contents import Contents, Stored
from perdure.snapshots.keys import SnapshotKeys
from perdure.snapshots.loader import Loaded, SnapshotLoader
from perdure.snapshots.manifest import Kind, Manifest, seal_manifest
from perdure.snapshots.order import SnapshotOrder, check_order
from perdure.snapshots.pack import pack
from perdure.snapshots.turns import Turn, Turns

__all__ = ["Created", "SnapshotWriter"]

ROWS_LOOKED_AT: Final = 8


class Created(NamedTuple):
    """already: it was there, nothing was written. new_chunks: that the store did not have. warnings: of the fold, and snapshots not used."""

    row: SnapshotRow
    already: bool
    new_chunks: int = 0
    warnings: tuple[str, ...] = ()


class _Base(msgspec.Struct):
    """A state at hand, and the snapshot that it was taken by."""

    folded: Folded
    row: SnapshotRow
    manifest: Manifest
    size_bytes: int


class _State(NamedTuple):
    """The state to be packed. cells: that differ from those of the base, None where there is none."""

    folded: Folded
    base: Loaded | _Base | None
    cells: set[bytes] | None
    warnings: tuple[str, ...]


class SnapshotWriter:
    """Writes snapshots of one log's agents. One at a time per agent in a process; between processes the first row wins."""

    def __init__(self, store: LogStore, vault: Vault, contents: Contents, loader: SnapshotLoader, turns: Turns) -> None:
        self._store = store
        self._vault = vault
        self._contents = contents
        self._loader = loader
        self._turns = turns
        self._busy: WeakValueDictionary[AgentName, asyncio.Lock] = WeakValueDictionary()
        self._bases: HotStates[_Base] = HotStates(bytes_max=limits.SNAPSHOT_BASES_BYTES_MAX)

    async def create(self, name: AgentName, order: SnapshotOrder | None = None, *, at_version: int | None = None) -> Created:
        """Make a snapshot of the agent's newest version, or a checkpoint of a named one; one that stands there already is returned.

        Raises AgentNotFound, VersionNotFound, InvalidInput (an agent without events, an unknown codec), Conflict (a newer one was made
        meanwhile), Unavailable (the store or the log is away), KeyUnavailable, IntegrityError. Nothing is registered then.
        """
        order = order or SnapshotOrder()
        check_names(name)
        check_order(order, at_version)
        busy = self._busy.setdefault(name, asyncio.Lock())
        async with busy:
            agent = await self._vault.record(*name)
            version = await self._version(agent, at_version)
            before = await self._store.snapshots(agent, to_version=version, limit=ROWS_LOOKED_AT)
            standing = next((row for row in before if row.version == version and not row.damage), None)
            if standing is not None:
                return await self._again(standing, order)
            async with self._turns.writing() as turn:
                return await self._write(agent, version, before, order, turn)

    async def keep(self, agent: AgentRecord, folded: Folded, order: SnapshotOrder) -> Created:
        """Make a whole snapshot of a state that was verified elsewhere, e.g. of an agent that comes from another engine. Raises as `create`."""
        async with self._turns.writing() as turn:
            keys = await self._contents.keys(agent.tenant, agent.agent)
            stored = await self._put(agent, _State(folded, None, None, ()), order, keys, None)
            sealed = await asyncio.to_thread(seal_manifest, stored.manifest, keys)
            row = _row(agent, stored, sealed, keys, order)
            await self._contents.put_manifest(row, sealed, stored.manifest)
            return await self._register(row, stored, turn, ())

    async def _version(self, agent: AgentRecord, at_version: int | None) -> int:
        (head,) = await self._store.heads([agent])
        if head.version == 0:
            raise InvalidInput("the agent has no events", hint="append one first", tenant=agent.tenant, agent=agent.agent)
        if at_version is not None and not 1 <= at_version <= head.version:
            raise no_version(agent, at_version, head.version, first=1)
        return head.version if at_version is None else at_version

    async def _again(self, row: SnapshotRow, order: SnapshotOrder) -> Created:
        marks = order.marks(row)
        if any(mark is not None for mark in marks):
            row = await self._store.mark_snapshot(row, marks) or row
        return Created(row, already=True)

    async def _write(self, agent: AgentRecord, version: int, before: list[SnapshotRow], order: SnapshotOrder, turn: Turn) -> Created:
        """before: the newest rows up to the version, damaged ones too."""
        state = await self._fold(agent, version, before)
        keys = await self._contents.keys(agent.tenant, agent.agent)
        previous = state.base if order.kind != FULL else None
        stored = await self._put(agent, state, order, keys, previous)
        if isinstance(previous, _Base) and not await self._contents.all_there(keys, _shared(stored, previous)):
            # Lost since the snapshot before; a load would have noticed.
            stored = await self._put(agent, state, order, keys, None)
        sealed = await asyncio.to_thread(seal_manifest, stored.manifest, keys)
        replaced = next((row.id for row in before if row.version == version), None)
        row = msgspec.structs.replace(_row(agent, stored, sealed, keys, order), replaces=replaced)
        await self._contents.put_manifest(row, sealed, stored.manifest)
        created = await self._register(row, stored, turn, state.warnings)
        if not created.already:
            await self._contents.book.see(agent.tenant, agent.type, agent.agent, state.folded.document)
            base = _Base(state.folded, row, stored.manifest, row.plain_bytes)
            self._bases.put((agent.tenant, agent.agent), base)
        return created

    async def _put(
        self, agent: AgentRecord, state: _State, order: SnapshotOrder, keys: SnapshotKeys, previous: Loaded | _Base | None
    ) -> Stored:
        packed = pack(
            state.folded,
            keys=keys,
            created_us=time.time_ns() // 1000,
            creator=order.creator,
            trigger=order.trigger,
            reason=order.reason,
            kind=_kind(order, previous),
            codec=order.codec,
            dictionary=await self._contents.book.newest(agent.tenant, agent.type),
            previous=previous.manifest if previous else None,
            previous_object=previous.row.manifest if previous else "",
            touched=state.cells,
            generation=self._store.generation,
            threads=limits.PACK_THREADS,
        )
        return await self._contents.put_chunks(packed, keys)

    async def _fold(self, agent: AgentRecord, version: int, before: list[SnapshotRow]) -> _State:
        skipped: list[str] = []
        base: Loaded | _Base | None = self._base(agent, version, before)
        if base is None and (before or agent.past):
            base = await self._loader.start(agent, version, skipped=skipped)
        start, cells = (base.folded, set[bytes]()) if base else (None, None)
        if base is not None and base.row.agent != agent.agent:
            base = cells = None  # a fork's past: a state to fold on from, but sealed for another agent
        folded = await fold_log(self._store, self._vault, agent, start=start, to_version=version, cells=cells)
        if folded.version != version:
            message = f"the log of agent {agent.agent!r} ends at version {folded.version}"
            raise VersionNotFound(message, tenant=agent.tenant, agent=agent.agent, version=version)
        steps.reach("snapshot.folded")
        return _State(folded, base, cells, (*skipped, *folded.warnings))

    def _base(self, agent: AgentRecord, version: int, before: list[SnapshotRow]) -> _Base | None:
        """The state of the newest snapshot, where it is at hand. It is folded on in place, and so no longer kept until it is a snapshot again."""
        name = (agent.tenant, agent.agent)
        base = self._bases.get(name)
        if base is None or base.row.version > version:
            return None
        self._bases.drop(name)
        newest = next((row for row in before if not row.damage), None)
        return base if newest is not None and newest.id == base.row.id else None

    async def _register(self, row: SnapshotRow, stored: Stored, turn: Turn, warnings: tuple[str, ...]) -> Created:
        if turn.lost:
            raise Unavailable("this process stood still while it wrote a snapshot", hint="try again", tenant=row.tenant, agent=row.agent)
        standing = await self._store.add_snapshot(row)
        steps.reach("snapshot.registered")
        if standing is not None and standing.version == row.version:
            return Created(standing, already=True, warnings=warnings)  # another process was faster
        if standing is not None:
            raise Conflict(
                f"agent {row.agent!r} has a newer snapshot, at version {standing.version}",
                hint="make a checkpoint to keep an earlier version",
                tenant=row.tenant,
                agent=row.agent,
                version=row.version,
            )
        if turn.lost:
            await self._check_again(row, stored)
        return Created(row, False, stored.new_chunks, warnings)

    async def _check_again(self, row: SnapshotRow, stored: Stored) -> None:
        """The process stood still around the commit, so a sweep may have deleted chunks that were old and only then became named."""
        keys = await self._contents.keys(row.tenant, row.agent)
        facts = await self._contents.objects.facts(row.manifest)
        if facts is None or not await self._contents.all_there(keys, stored.manifest.chunks):
            await self._store.mark_snapshot(row, SnapshotMark(damage="swept away while it was written"))
            message = "a snapshot was swept away while it was written"
            raise Unavailable(message, hint="try again", tenant=row.tenant, agent=row.agent, version=row.version)


def _shared(stored: Stored, previous: _Base) -> list[ChunkReference]:
    """The chunks that were taken over from the snapshot before, and not looked at."""
    known = {chunk.key for chunk in previous.manifest.chunks}
    return [chunk for chunk in stored.manifest.chunks if chunk.key in known]


def _kind(order: SnapshotOrder, previous: Loaded | _Base | None) -> Kind:
    if order.kind == CHECKPOINT:
        return "checkpoint"
    return "incremental" if previous is not None else "full"


def _row(agent: AgentRecord, stored: Stored, sealed: bytes, keys: SnapshotKeys, order: SnapshotOrder) -> SnapshotRow:
    manifest, digest = stored.manifest, sha256(sealed).digest()
    return SnapshotRow(
        id=uuid7(),
        tenant=agent.tenant,
        agent=agent.agent,
        tenant_key=agent.tenant_key,
        agent_key=agent.agent_key,
        version=manifest.version,
        epoch=manifest.epoch,
        generation=manifest.generation,
        time_us=manifest.time_us,
        created_us=manifest.created_us,
        kind=manifest.kind,
        trigger=manifest.trigger,
        creator=manifest.creator,
        codec=order.codec,
        manifest=keys.manifest_object(manifest.version, digest),
        manifest_digest=digest,
        chain=manifest.chain,
        state_digest=manifest.state_digest,
        plain_bytes=manifest.plain_bytes,
        stored_bytes=manifest.stored_bytes + len(sealed),
        written_bytes=stored.new_bytes + len(sealed),
        chunks=len(manifest.chunks),
        expires_us=order.expires_us,
        permanent=order.permanent,
        critical=order.critical,
        verified_us=manifest.created_us,
    )
