"""Who asks for a migration and waits for its end. It drives nothing: when it dies, the target goes on, or whoever is left settles it.

Invariant: an open record is in its target's list from before it was written until after its end was told, so that it is always found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from perdure.engine import steps
from perdure.engine.log.contract import LogStore
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName
from perdure.errors import NotFound
from perdure.migration.keeping import Keeper
from perdure.migration.ledger import Entry, Kept
from perdure.migration.planning import MigrationPlan
from perdure.migration.records import Migration
from perdure.migration.settling import Settler, now_us

__all__ = ["Coordinator"]

LOOK_S: Final = 0.02
KEEP_S: Final = 0.25
"""Pause between two looks at whether somebody has to settle it."""


class Coordinator:
    """Begins, watches and ends migrations."""

    def __init__(self, log: EventLog) -> None:
        self._store: LogStore = log.store
        self.settler = Settler(log)
        self.ledger = self.settler.ledger
        self.journal = self.settler.journal
        self._keeper = Keeper(log)
        self._kept_at = 0.0

    async def begin(
        self, plan: MigrationPlan, *, wait: bool = False, distrusted: bool = False, source_address: str = "", target_address: str = ""
    ) -> Kept:
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
            distrusted=distrusted,
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
        revision, began_at = -1, time.monotonic()
        while True:
            kept = await self.ledger.get(name)
            if kept is None or kept.migration.id != id:
                return await self._told(name, id)
            if kept.revision != revision:
                revision = kept.revision
                if seen is not None:
                    seen(kept.migration)
            if not kept.migration.open or (until is not None and until(kept.migration)):
                steps.reach("migration.coordinator.watched")
                return kept.migration
            if time.monotonic() - max(self._kept_at, began_at) > KEEP_S:
                self._kept_at = time.monotonic()  # of all that watch through this coordinator, one looks
                await self._keeper.look()
            await asyncio.sleep(LOOK_S - time.monotonic() % LOOK_S)  # all that watch look at the same moments, and so together

    async def _told(self, name: AgentName, id: str) -> Migration:
        """How one ended that is not its agent's newest any more."""
        told = await self.journal.find(id)
        if told is None or told.open:
            raise NotFound(f"there is no migration {id} of this agent", tenant=name.tenant, agent=name.agent)
        steps.reach("migration.coordinator.watched")
        return told

    async def keep(self) -> int:
        """One look at what nobody drives any more; how many were settled."""
        return await self._keeper.look()

    async def tell_go(self, migration: Migration) -> None:
        """Let a migration that waits go on to its flip."""
        await self.ledger.amend(migration.name, migration.id, lambda now: replace(now, go=True, wait=now.wait) if now.open else None)
