"""Migrations, as people hold them: planning one, doing it, watching it, ending it, and moving many."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

import msgspec

from perdure.engine.digest import digest
from perdure.engine.log.contract import AgentName
from perdure.errors import KeyUnavailable, NotFound, PerdureError
from perdure.identifiers import uuid7
from perdure.migration.coordinator import Coordinator
from perdure.migration.planning import (
    ROLLBACK_STEPS,
    Facts,
    Impact,
    MigrationPlan,
    Obstacle,
    estimate,
    obstacles,
    phases_of,
    prerequisites_of,
    risks_of,
)
from perdure.migration.rates import read_rates
from perdure.migration.records import Migration, Strategy, Transfer
from perdure.recovery.nodes import list_nodes

if TYPE_CHECKING:
    from perdure.client.engine import Engine

__all__ = ["MigrationPlan", "Migrations"]


class Migrations:
    """Moving agents between nodes on this engine's log."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._log = engine.log
        self._store = engine.log.store
        self._vault = engine.log.vault
        self._coordinator = Coordinator(engine.log)
        self._ledger = self._coordinator.ledger

    # --- planning ---
    async def plan_migration(
        self,
        name: AgentName,
        target: str,
        *,
        strategy: Strategy = "live",
        transfer: Transfer = "streaming",
        reason: str = "",
        actor: str = "",
        group: str = "",
    ) -> MigrationPlan:
        """What would be done, and what it would cost; nothing is changed. Raises AgentNotFound, KeyUnavailable."""
        self._vault.forget(name)
        record = await self._vault.record(*name)
        state = await self._engine.states.get_current_state(name)
        size = len(msgspec.msgpack.encode(state.document))
        return MigrationPlan(
            uuid7().hex,
            name.tenant,
            name.agent,
            record.owner,
            target,
            record.epoch,
            state.version,
            digest(state.document).hex(),
            strategy,
            transfer,
            phases_of(strategy),
            prerequisites_of(target),
            risks_of(strategy, size),
            ROLLBACK_STEPS,
            estimate(size, 0, await read_rates(self._store), strategy),
            reason,
            actor,
            group,
        )

    async def validate_migration_plan(self, plan: MigrationPlan) -> list[Obstacle]:
        """Everything that speaks against it now; empty: nothing."""
        self._vault.forget(plan.name)
        problem: PerdureError | None = None
        owner, epoch = plan.source, plan.epoch
        try:
            record = await self._vault.record(*plan.name)
            owner, epoch = record.owner, record.epoch
        except KeyUnavailable as missing:
            problem = missing
        kept = await self._ledger.get(plan.name)
        facts = Facts(
            plan.name,
            owner,
            epoch,
            await list_nodes(self._store),
            await self._store.count_owned(plan.target),
            version_of("perdure"),
            kept.migration if kept else None,
            problem,
        )
        return obstacles(plan.target, facts, strategy=plan.strategy, epoch=plan.epoch)

    async def estimate_migration_impact(self, plan: MigrationPlan) -> Impact:
        """What it will cost, from what migrations of this log took."""
        return estimate(plan.impact.bytes, plan.impact.events, await read_rates(self._store), plan.strategy)

    # --- doing ---
    async def execute_migration(self, plan: MigrationPlan, *, seen: Callable[[Migration], None] | None = None) -> Migration:
        """Do it, to its end: the record says `committed`, or `aborted` and why. Raises what speaks against it; then nothing was begun.

        seen: is told of every change of the record. When the caller dies the migration goes on, or is settled by whoever is left.
        """
        begun = await self._begin(plan, wait=False)
        return await self._coordinator.watch(plan.name, begun.id, seen=seen)

    async def _begin(self, plan: MigrationPlan, *, wait: bool) -> Migration:
        for obstacle in await self.validate_migration_plan(plan):
            raise obstacle.problem
        addresses = {node.name: node.address for node, alive in await list_nodes(self._store) if alive}
        kept = await self._coordinator.begin(
            plan, wait=wait, source_address=addresses.get(plan.source, ""), target_address=addresses.get(plan.target, "")
        )
        return kept.migration

    async def monitor_migration(self, migration: str) -> Migration:
        """As it stands, or as it ended. Raises NotFound."""
        told = await self._coordinator.journal.find(migration)
        if told is None:
            raise NotFound(f"there is no migration {migration!r}", hint="`perdure migrate list` lists them")
        kept = await self._ledger.get(told.name) if told.open else None
        return kept.migration if kept is not None and kept.migration.id == migration else told
