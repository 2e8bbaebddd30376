"""Retention at work: snapshots that no rule keeps are forgotten. Their objects are swept away later."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentRecord
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.limits import SNAPSHOTS_PER_AGENT_MAX
from perdure.snapshots.holds import compacting, held_versions
from perdure.snapshots.retention import Decision, RetentionPolicy, decide

__all__ = ["Cleaned", "clean_up"]


WAIT_S: Final = 2.0
"""How long a clean-up waits for its turn; there will be another one."""


class Cleaned(msgspec.Struct, frozen=True):
    """kept: with the reason of each. gone: forgotten now, or, in a dry run, what would be."""

    agent: AgentRecord
    kept: tuple[tuple[SnapshotRow, str], ...]
    gone: tuple[SnapshotRow, ...]


async def clean_up(store: LogStore, agent: AgentRecord, policy: RetentionPolicy, *, dry_run: bool = False) -> Cleaned:
    """Forget an agent's snapshots that no rule keeps (`retention.decide`). Raises Conflict while the agent is compacted or cleaned elsewhere.

    Whoever begins to hold a version meanwhile waits, and the registry lets nobody take the newest, or what a floor stands on.
    """
    decision = await _decide(store, agent, policy)
    if decision.go and not dry_run:
        async with compacting(store, agent, wait_s=WAIT_S):
            decision = await _decide(store, agent, policy)
            ids = [row.id for row in decision.go]
            deleted = set(await store.delete_snapshots(agent, ids, keep_newest=policy.newest) if ids else ())
            return Cleaned(agent, tuple(decision.stay), tuple(row for row in decision.go if row.id in deleted))
    return Cleaned(agent, tuple(decision.stay), tuple(decision.go))


async def _decide(store: LogStore, agent: AgentRecord, policy: RetentionPolicy) -> Decision[SnapshotRow]:
    rows = await store.snapshots(agent, limit=SNAPSHOTS_PER_AGENT_MAX)
    (floor,) = await store.floors([agent])
    held = await held_versions(store, agent)
    return decide(rows, policy, now_us=time.time_ns() // 1000, floor=floor.version, held_versions=held)
