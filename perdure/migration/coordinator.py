"""Who asks for a migration and waits for its end. It drives nothing: when it dies, the target goes on, or whoever is left settles it.

Invariant: an open record is in its target's list from before it was written until after its end was told, so that it is always found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from perdure.engine import steps
from perdure.engine.log.contract import AgentName, LogStore
from perdure.engine.log.log import EventLog
from perdure.errors import NotFound
from perdure.migration.journal import MigrationJournal
from perdure.migration.ledger import Entry, Kept, Ledger
from perdure.migration.planning import MigrationPlan
from perdure.migration.records import Migration
from perdure.migration.settling import Settler, now_us
from perdure.recovery.nodes import list_nodes

__all__ = ["STALLED_S", "Coordinator", "lost_target"]

LOOK_S: Final = 0.02
STALLED_S: Final = 30.0
"""An open migration whose record nobody has changed for so long, by the watcher's own clock, is settled."""


class Coordinator:
    """Begins, watches and ends migrations."""

    def __init__(self, log: EventLog) -> None:
        self._store: LogStore = log.store
        self.ledger = Ledger(log.store)
        self.journal = MigrationJournal(log)
        self.settler = Settler(log, self.ledger, self.journal)

    async def begin(self, plan: MigrationPlan, *, wait: bool = False, source_address: str = "", target_address: str = "") -> Kept:
        """Write it down, and tell the target. Raises AlreadyExists while another one of the agent is open."""
        migration = Migration(
            plan.id,
            plan.tenant,
            plan.agent,
            plan.source,
            plan.target,
            plan.epoch,
            strategy=plan.strategy,
            transfer=plan.transfer,
            kind="rollback" if plan.rollback_of else "emergency" if plan.strategy == "emergency" else "planned",
            reason=plan.reason,
            actor=plan.actor,
            group=plan.group,
            source_address=source_address,
            target_address=target_address,
            wait=wait,
            go=not wait,
            created_us=now_us(),
            witness_version=plan.version,
            witness_digest=plan.digest,
            bytes=plan.impact.bytes,
            rollback_of=plan.rollback_of,
        )
        entry = Entry(plan.tenant, plan.agent, plan.id)
        await self.ledger.tell(plan.target, [entry])
        steps.reach("migration.coordinator.told")
        try:
            kept = await self.ledger.begin(migration)
        except Exception:
            await self.ledger.untell(plan.target, [entry])
            raise
        await self.journal.begun(migration)
        steps.reach("migration.coordinator.recorded")
        return kept

    async def watch(
        self, name: AgentName, id: str, *, until: Callable[[Migration], bool] | None = None, seen: Callable[[Migration], None] | None = None
    ) -> Migration:
        """Wait for its end (or until it is as wanted), settling it when its target is gone. seen: is told of every change."""
        revision, since, looked_at = -1, time.monotonic(), 0.0
        while True:
            kept = await self.ledger.get(name)
            if kept is None or kept.migration.id != id:
                raise NotFound(f"migration {id} is not the agent's newest any more", tenant=name.tenant, agent=name.agent)
            now = time.monotonic()
            if kept.revision != revision:
                revision, since = kept.revision, now
                if seen is not None:
                    seen(kept.migration)
            if not kept.migration.open or (until is not None and until(kept.migration)):
                steps.reach("migration.coordinator.watched")
                return kept.migration
            if now - looked_at > 1.0:
                looked_at = now
                if await lost_target(self._store, kept.migration) or (now - since > STALLED_S and not kept.migration.wait):
                    await self.settler.settle(kept, "the target does not live, or has not gone on")
                    continue
            await self._store.signal().wait(LOOK_S)

    async def tell_go(self, migration: Migration) -> None:
        """Let a migration that waits go on to its flip."""
        await self.ledger.amend(migration.name, migration.id, lambda now: replace(now, go=True, wait=now.wait) if now.open else None)


async def lost_target(store: LogStore, migration: Migration) -> bool:
    """Whether the target does not live, or is another session than the one that took the migration on."""
    for node, alive in await list_nodes(store):
        if node.name == migration.target:
            # One that was started again settles its earlier session's migrations by itself, too.
            return not alive
    return True
