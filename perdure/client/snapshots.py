"""Snapshots of agents: make, list, verify, delete and restore them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from perdure.client.snapshot_facts import Made, Restored, Snapshot, Verification, moment, snapshot_of
from perdure.client.state import State
from perdure.engine.log.log import EventLog
from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName, AgentRecord, from_microseconds, to_microseconds
from perdure.engine.log.snapshot_rows import CHECKPOINT, INCREMENTAL, SnapshotRow
from perdure.errors import ConfigurationError, Conflict, InvalidInput, SnapshotNotFound
from perdure.limits import SNAPSHOTS_NEWEST_MIN, SNAPSHOTS_PER_AGENT_MAX
from perdure.projections.fill import Base
from perdure.snapshots.compression import Goal, Measured, benchmark_compression_algorithms, select_optimal_compression
from perdure.snapshots.holds import held_versions, holding
from perdure.snapshots.measuring import measure_agent
from perdure.snapshots.order import SnapshotOrder
from perdure.snapshots.restore import Into, RestoredState, check_into
from perdure.snapshots.retention import base_of
from perdure.snapshots.shelf import SnapshotShelf
from perdure.snapshots.store.contract import SnapshotStore
from perdure.snapshots.training import TrainedChunks, train_chunks
from perdure.snapshots.writer import Created
from perdure.snapshots.zstd import ChunkDictionary

__all__ = ["Snapshots"]

PAGE_SNAPSHOTS = 200
T = TypeVar("T")


class Snapshots:
    """The snapshots of one engine. Every method raises ConfigurationError where no store is configured."""

    def __init__(self, log: EventLog, objects: SnapshotStore | None, *, learns: bool = True) -> None:
        self._log = log
        self._shelf = SnapshotShelf(log, objects, learns=learns) if objects is not None else None

    @property
    def shelf(self) -> SnapshotShelf:
        """What works on the store, for the engine's own processes."""
        if self._shelf is None:
            raise ConfigurationError(
                "no store for snapshots is configured", hint="set PERDURE_STORE to file:///folder or s3://bucket/prefix"
            )
        return self._shelf

    @property
    def base(self) -> Base | None:
        """What reads and the projector fold on from, None where there is no store."""
        return self._shelf.loader.base if self._shelf is not None else None

    async def close(self) -> None:
        """Leave the store."""
        if self._shelf is not None:
            await self._shelf.close()

    async def create_snapshot(
        self,
        name: AgentName,
        *,
        full: bool = False,
        codec: str = "zstd",
        trigger: str = "manual",
        creator: str = "",
        reason: str = "",
        expires: datetime | None = None,
        permanent: bool = False,
        critical: bool = False,
    ) -> Made:
        """Snapshot the agent's newest version, sharing what did not change with the one before it (full: nothing).

        Durable and read back when it returns. Raises AgentNotFound, InvalidInput, Conflict, Unavailable, KeyUnavailable, IntegrityError.
        """
        order = SnapshotOrder(
            kind="full" if full else INCREMENTAL,
            trigger=trigger,
            creator=creator,
            reason=reason,
            codec=codec,
            expires_us=_expiry(expires),
            permanent=permanent,
            critical=critical,
        )
        return _made(await self.shelf.writer.create(name, order))

    async def create_checkpoint(
        self, name: AgentName, *, version: int | None = None, creator: str = "", reason: str = "", codec: str = "zstd"
    ) -> Made:
        """Snapshot a version, the newest where none is named, that stays until it is deleted by name. Raises VersionNotFound and as above."""
        order = SnapshotOrder(kind=CHECKPOINT, creator=creator, reason=reason, codec=codec)
        return _made(await self.shelf.writer.create(name, order, at_version=version))

    async def train(self, tenant: str, agent_type: str = "") -> TrainedChunks:
        """Make a compression dictionary from the states of the tenant's agents of a type; it serves their snapshots from the next one on.

        A type gets its first one by itself (with `training=auto`). Raises NotFound, InvalidInput (too little to learn from), KeyUnavailable.
        """
        shelf = self.shelf
        return await train_chunks(self._log, shelf.loader, shelf.dictionaries, tenant, agent_type)

    async def benchmark_compression_algorithms(self, name: AgentName) -> list[Measured]:
        """What each codec saves of the agent's state, and how fast; zstd with its type's dictionary, too. Raises AgentNotFound, InvalidInput."""
        return await self._measure(name, lambda chunks, dictionary: benchmark_compression_algorithms(chunks, dictionary=dictionary))

    async def select_optimal_compression(self, name: AgentName, *, goal: Goal = "balanced") -> Measured:
        """The codec for the agent's snapshots: `size`, `speed`, or `balanced` between them. Raises AgentNotFound, InvalidInput."""
        return await self._measure(name, lambda chunks, dictionary: select_optimal_compression(chunks, goal=goal, dictionary=dictionary))

    async def _measure(self, name: AgentName, measure: Callable[[list[bytes], ChunkDictionary], T]) -> T:
        shelf = self.shelf
        record = await self._log.vault.record(*name)
        return await measure_agent(self._log, shelf.loader, shelf.dictionaries, record, measure)

    async def list_snapshots(self, name: AgentName, *, limit: int = PAGE_SNAPSHOTS) -> list[Snapshot]:
        """The agent's snapshots, newest version first, damaged ones too. Raises AgentNotFound."""
        check_names(name)
        agent = await self._log.vault.record(*name)
        return [snapshot_of(row) for row in await self._log.store.snapshots(agent, limit=limit)]

    async def all_snapshots(self, tenant: str) -> AsyncIterator[Snapshot]:
        """Every snapshot of a tenant, about in the order in which they were made."""
        check_names(AgentName(tenant, "any"))
        after: UUID | None = None
        while page := await self._log.store.list_snapshots(tenant, after=after, limit=PAGE_SNAPSHOTS):
            after = page[-1].id
            for row in page:
                yield snapshot_of(row)

    async def get_snapshot(self, tenant: str, id: UUID) -> Snapshot:
        """What is registered of a snapshot. Raises SnapshotNotFound."""
        return snapshot_of(await self._row(tenant, id))

    async def verify_snapshot(self, tenant: str, id: UUID, *, replay: bool = False) -> Verification:
        """Read it as a whole and compare it with the log (replay: also with the fold of the whole log); see `SnapshotVerifier.verify`."""
        found = await self.shelf.verifier.verify(await self._row(tenant, id), replay=replay)
        return Verification(snapshot_of(found.row), found.ok, found.problem, found.bytes_read, found.replayed)

    async def delete_snapshot(self, tenant: str, id: UUID, *, even_permanent: bool = False) -> None:
        """Forget a snapshot; its objects are swept away later. even_permanent: also one that is permanent, or promised for longer.

        Raises SnapshotNotFound; Conflict for what has to stay: the newest three, what the log begins after, what a fork or a restore needs.
        """
        row = await self._row(tenant, id)
        agent = await self._log.vault.record(row.tenant, row.agent)
        if reason := await self._needed(agent, row, even_permanent):
            raise Conflict(f"snapshot {id} stays: {reason}", tenant=tenant, agent=row.agent, version=row.version)
        gone = await self._log.store.delete_snapshots(agent, [id], keep_newest=SNAPSHOTS_NEWEST_MIN, even_permanent=even_permanent)
        if not gone:
            row = await self._row(tenant, id)
            reason = f"it is one of the newest {SNAPSHOTS_NEWEST_MIN}, or the log begins after it"
            raise Conflict(f"snapshot {id} stays: {reason}", tenant=tenant, agent=row.agent, version=row.version)

    async def _needed(self, agent: AgentRecord, row: SnapshotRow, even_permanent: bool) -> str:
        """Why a snapshot stays, beyond what the registry sees to by itself; '' where nothing speaks against deleting it."""
        if row.permanent and not even_permanent:
            return "it is permanent"
        if row.expires_us > time.time_ns() // 1000 and not even_permanent:
            return f"it was promised until {from_microseconds(row.expires_us)}"
        rows = await self._log.store.snapshots(agent, limit=SNAPSHOTS_PER_AGENT_MAX)
        (floor,) = await self._log.store.floors([agent])
        for version in await held_versions(self._log.store, agent):
            base = base_of(rows, version, floor.version)
            if base is not None and base.id == row.id:
                return f"a fork or a restore needs version {version}"
        return ""

    async def restore_snapshot(
        self,
        name: AgentName,
        *,
        snapshot: UUID | None = None,
        version: int | None = None,
        into: Into = "view",
        new_agent: str | None = None,
        actor: str = "",
        reason: str = "",
        epoch: int | None = None,
    ) -> Restored:
        """Restore a snapshot, or a version by the nearest whole one, or (neither named) the newest whole snapshot.

        into: view (nothing is changed), fork (`new_agent` begins with the state), rollback (an event leads the agent back; epoch: the
        ownership that is held). Raises SnapshotNotFound, VersionNotFound, AlreadyExists, Conflict, Fenced, IntegrityError (a named snapshot
        is damaged), Unavailable, KeyUnavailable; nothing is appended then.
        """
        check_into(into, new_agent)
        check_names(name)
        agent, appended = name.agent, None
        restorer = self.shelf.restorer
        async with holding(self._log.store, await self._log.vault.record(*name), await self._wanted(name, snapshot, version)):
            restored = await self._restored(name, snapshot, version)
            if new_agent is not None:
                agent, appended, _ = await restorer.fork(restored, new_agent, actor=actor, reason=reason)
            elif into == "rollback":
                agent, appended, _ = await restorer.rollback(restored, actor=actor, reason=reason, epoch=epoch)
        used = restored.snapshot.id if restored.snapshot else None
        state = _state(name, restored)
        return Restored(into, state.version, True, used, restored.warnings, state, agent, appended)

    async def _wanted(self, name: AgentName, snapshot: UUID | None, version: int | None) -> int:
        """The version that a restore will need."""
        if version is not None:
            return version
        if snapshot is not None:
            return (await self._row(name.tenant, snapshot)).version
        (row,) = await self._log.store.newest_snapshots([await self._log.vault.record(*name)])
        return row.version if row is not None else 0

    async def _restored(self, name: AgentName, snapshot: UUID | None, version: int | None) -> RestoredState:
        if snapshot is None:
            return await self.shelf.restorer.state(name, version=version)
        if version is not None:
            raise InvalidInput("a snapshot and a version exclude each other")
        row = await self._row(name.tenant, snapshot)
        if row.agent != name.agent:
            raise _not_found(name.tenant, snapshot)
        return await self.shelf.restorer.snapshot(row)

    async def _row(self, tenant: str, id: UUID) -> SnapshotRow:
        check_names(AgentName(tenant, "any"))
        row = await self._log.store.get_snapshot(tenant, id)
        if row is None:
            raise _not_found(tenant, id)
        return row


def _not_found(tenant: str, id: UUID) -> SnapshotNotFound:
    return SnapshotNotFound(f"there is no snapshot {id}", hint="perdure snapshot list shows those there are", tenant=tenant)


def _expiry(expires: datetime | None) -> int:
    if expires is not None and expires.tzinfo is None:
        raise InvalidInput("the time has no zone", hint="give an aware datetime, e.g. in UTC")
    return 0 if expires is None else to_microseconds(expires)


def _made(created: Created) -> Made:
    return Made(snapshot_of(created.row), created.already, created.warnings)


def _state(name: AgentName, restored: RestoredState) -> State:
    folded = restored.folded
    return State(*name, folded.version, folded.epoch, moment(folded.time_us), folded.document, tuple(folded.warnings))
