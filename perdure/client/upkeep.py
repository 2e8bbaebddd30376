"""Keeping snapshots and logs in shape: retention, compaction, sweep, scrub, and the process that makes snapshots by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from perdure.client.snapshot_facts import Snapshot, snapshot_of
from perdure.client.snapshots import Snapshots
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.errors import Conflict
from perdure.snapshots.cadence import Cadence, Trigger
from perdure.snapshots.cleaner import clean_up
from perdure.snapshots.compaction import Strategy
from perdure.snapshots.compactor import Compactor, Keep
from perdure.snapshots.order import SnapshotOrder
from perdure.snapshots.recompress import recompress
from perdure.snapshots.retention import RetentionPolicy
from perdure.snapshots.scrub import Scrubber
from perdure.snapshots.snapshotter import PARALLEL_DEFAULT, Snapshotter
from perdure.snapshots.sweep import GRACE_DEFAULT_S, Sweeper, Swept

__all__ = ["Cleanup", "Compaction", "Compression", "DamagedSnapshot", "Scrub", "Upkeep"]

Progress = Callable[[int, int], None]


class Cleanup(msgspec.Struct, frozen=True):
    """kept: with the reason of each, newest first. deleted: forgotten now; in a dry run, what would be."""

    tenant: str
    agent: str
    kept: tuple[tuple[Snapshot, str], ...]
    deleted: tuple[Snapshot, ...]
    dry_run: bool


class Compaction(msgspec.Struct, frozen=True):
    """first_version: at which the agent's events begin now (in a dry run: would). events: that go. removed: whose rows are gone. checkpoints:
    versions that were made checkpoints of. limited_by: why fewer went than were asked for, or ''."""

    tenant: str
    agent: str
    first_version: int
    events: int
    removed: int
    checkpoints: tuple[int, ...]
    limited_by: str
    dry_run: bool


class Compression(msgspec.Struct, frozen=True):
    """snapshots: that were looked at. rewritten: that were made otherwise (in a dry run: would be). bytes_before, bytes_after: of their objects."""

    tenant: str
    agent: str
    codec: str
    snapshots: int
    rewritten: int
    bytes_before: int
    bytes_after: int
    dry_run: bool


class DamagedSnapshot(msgspec.Struct, frozen=True):
    """outcome: what became of it. rebuilt: the snapshot in its place."""

    snapshot: Snapshot
    problem: str
    rebuilt: UUID | None
    outcome: str


class Scrub(msgspec.Struct, frozen=True):
    """snapshots: there are. read: in this run. unreadable: not read for another reason than damage, each with it."""

    ok: bool
    snapshots: int
    read: int
    bytes_read: int
    damaged: tuple[DamagedSnapshot, ...]
    unreadable: tuple[str, ...]


class Upkeep:
    """Upkeep of one engine's snapshots and logs. Every method raises ConfigurationError where no store is configured."""

    def __init__(self, log: EventLog, snapshots: Snapshots) -> None:
        self._log = log
        self._snapshots = snapshots

    def snapshotter(
        self, cadence: Cadence | None = None, *, retention: RetentionPolicy | None = None, parallel: int = PARALLEL_DEFAULT
    ) -> Snapshotter:
        """What makes snapshots of agents that are due, and forgets those that no rule keeps; see `perdure.snapshots.snapshotter`."""
        shelf, policy = self._snapshots.shelf, retention or RetentionPolicy()

        async def make(name: AgentName, trigger: Trigger) -> SnapshotRow:
            made = await shelf.writer.create(name, SnapshotOrder(trigger=trigger, creator="snapshotter"))
            if not made.already:
                with suppress(Conflict):  # somebody compacts or cleans the agent; the next snapshot cleans, too
                    await clean_up(self._log.store, await self._log.vault.record(*name), policy)
            return made.row

        return Snapshotter(self._log.store, make, cadence=cadence, parallel=parallel)

    async def cleanup_old_states(self, name: AgentName, retention: RetentionPolicy | None = None, *, dry_run: bool = False) -> Cleanup:
        """Forget an agent's snapshots that neither a rule nor the policy keeps. Raises AgentNotFound, Unavailable."""
        agent = await self._record(name)
        done = await clean_up(self._log.store, agent, retention or RetentionPolicy(), dry_run=dry_run)
        kept = tuple((snapshot_of(row), reason) for row, reason in done.kept)
        return Cleanup(*name, kept, tuple(snapshot_of(row) for row in done.gone), dry_run)

    async def compress_states(self, name: AgentName, *, codec: str = "zstd", dry_run: bool = False) -> Compression:
        """Rewrite an agent's stored states that were made with another codec, an older dictionary or an older key.

        Raises AgentNotFound, InvalidInput, IntegrityError (one is damaged), Unavailable; see `perdure.snapshots.recompress`.
        """
        agent = await self._record(name)
        done = await recompress(self._log.store, self._snapshots.shelf, agent, codec, dry_run=dry_run)
        return Compression(*name, codec, done.snapshots, done.rewritten, done.bytes_before, done.bytes_after, dry_run)

    async def compact_events(
        self,
        name: AgentName,
        *,
        strategy: Strategy = "snapshot",
        keep_last: int | None = None,
        keep_since: datetime | None = None,
        critical_only: bool = False,
        step_versions: int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Compaction:
        """Remove an agent's first events, never what a retained snapshot, a fork or a running restore needs.

        strategy: snapshot (a checkpoint is made where the kept events begin), merge (besides, one at the end of every step of `step_versions`
        versions: the steps stay readable, the versions between do not), delete (nothing is made). Which events stay: the last so many, those
        since a time, or only what the snapshots that must stay need (critical_only). See `perdure.snapshots.compactor` for what it raises.
        """
        keep = Keep(last=keep_last, since=keep_since, critical_only=critical_only)
        return await self._compact(name, keep, strategy=strategy, step_versions=step_versions, dry_run=dry_run, progress=progress)

    async def delete_events(
        self, name: AgentName, before_version: int, *, dry_run: bool = False, progress: Progress | None = None
    ) -> Compaction:
        """Remove an agent's events before a version, as far as the snapshots that stand allow: none is made for it."""
        keep = Keep(before_version=before_version)
        return await self._compact(name, keep, strategy="delete", dry_run=dry_run, progress=progress)

    async def sweep(self, *, grace_s: float = GRACE_DEFAULT_S, dry_run: bool = False, progress: Progress | None = None) -> Swept:
        """Delete objects of the store that no snapshot names and that are older than the grace. See `perdure.snapshots.sweep`."""
        return await Sweeper(self._log, self._snapshots.shelf).sweep(grace_s=grace_s, dry_run=dry_run, progress=progress)

    async def scrub(self, fraction: float = 1.0, *, rebuild: bool = True, progress: Progress | None = None) -> Scrub:
        """Read this part of all snapshots as a whole, those first that were not read for longest; make damaged ones anew (rebuild)."""
        done = await Scrubber(self._log, self._snapshots.shelf).scrub(fraction, rebuild=rebuild, progress=progress)
        damaged = tuple(DamagedSnapshot(snapshot_of(each.row), each.problem, each.rebuilt, each.outcome) for each in done.damaged)
        return Scrub(done.ok, done.snapshots, done.read, done.bytes_read, damaged, tuple(done.unreadable))

    async def _compact(self, name: AgentName, keep: Keep, **options: Any) -> Compaction:
        done = await Compactor(self._log, self._snapshots.shelf).compact(name, keep, **options)
        plan = done.plan
        return Compaction(*name, plan.floor, plan.events, done.removed, plan.checkpoints, plan.limited_by, done.dry_run)

    async def _record(self, name: AgentName) -> AgentRecord:
        self._snapshots.shelf  # noqa: B018 - raises where there is no store
        return await self._log.vault.record(*name)
