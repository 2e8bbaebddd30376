"""Retention at work: snapshots that no rule keeps are forgotten. Their objects are swept away later."""

from __future__ import annotations

import time

import msgspec

from perdure.engine.log.contract import AgentRecord, LogStore
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.limits import SNAPSHOTS_PER_AGENT_MAX
from perdure.snapshots.holds import held_versions
from perdure.snapshots.retention import RetentionPolicy, decide

__all__ = ["Cleaned", "clean_up"]


class Cleaned(msgspec.Struct, frozen=True):
    """kept: with the reason of each. gone: forgotten now, or, in a dry run, what would be."""

    agent: AgentRecord
    kept: tuple[tuple[SnapshotRow, str], ...]
    gone: tuple[SnapshotRow, ...]


async def clean_up(store: LogStore, agent: AgentRecord, policy: RetentionPolicy, *, dry_run: bool = False) -> Cleaned:
    """Forget an agent's snapshots that no rule keeps (`retention.decide`).

    What a compaction or another clean-up does meanwhile is settled by the registry: it lets nobody take the newest, or what a floor stands on.
    """
    rows = await store.snapshots(agent, limit=SNAPSHOTS_PER_AGENT_MAX)
    (floor,) = await store.floors([agent])
    held = await held_versions(store, agent)
    decision = decide(rows, policy, now_us=time.time_ns() // 1000, floor=floor.version, held_versions=held)
    gone = decision.go
    if gone and not dry_run:
        deleted = set(await store.delete_snapshots(agent, [row.id for row in gone], keep_newest=policy.newest))
        gone = [row for row in gone if row.id in deleted]
    return Cleaned(agent, tuple(decision.stay), tuple(gone))
