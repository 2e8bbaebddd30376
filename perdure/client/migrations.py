"""Migrations, as people hold them: planning one, doing it, watching it, ending it, undoing it, and moving many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from perdure.client.migration_looks import MigrationLooks
from perdure.client.parts import Parts
from perdure.engine.log.records import AgentName
from perdure.errors import Conflict, NotFound
from perdure.identifiers import uuid7
from perdure.migration.coordinator import Coordinator
from perdure.migration.fleet import AT_ONCE_DEFAULT, MOVES_DEFAULT, FleetReport
from perdure.migration.leveling import By, Level
from perdure.migration.planning import (
    ROLLBACK_STEPS,
    Impact,
    MigrationPlan,
    Obstacle,
    RollbackCheck,
    check_rollback,
    estimate,
    obstacles,
    phases_of,
    prerequisites_of,
    risks_of,
)
from perdure.migration.rates import read_rates
from perdure.migration.records import Migration, Strategy, Transfer
from perdure.recovery.journal import Entry
from perdure.recovery.nodes import NodeState

if TYPE_CHECKING:
    from perdure.client.migration_fleet import MigrationFleet

__all__ = ["MigrationPlan", "Migrations"]

Seen = Callable[[Migration], None]


class Migrations:
    """Moving agents between nodes on this engine's log.

    One in steps: `prepare_live_migration`, `synchronize_live_state`, `complete_live_migration`; at once: `execute_migration`.
    Many: `fleet` (rolling, drain, rebalance, pins).
    """

    def __init__(self, engine: Parts) -> None:
        self._engine = engine
        self._store = engine.log.store
        self._vault = engine.log.vault
        self._coordinator = Coordinator(engine.log)
        self._ledger = self._coordinator.ledger
        self._journal = self._coordinator.journal
        self._looks = MigrationLooks(engine, self._ledger)

    @cached_property
    def fleet(self) -> MigrationFleet:
        """Many agents at once."""
        from perdure.client.migration_fleet import MigrationFleet

        return MigrationFleet(self._engine, self._ledger, self._move)

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
        rollback_of: str = "",
    ) -> MigrationPlan:
        """What would be done, and what it would cost; nothing is changed. Raises AgentNotFound, KeyUnavailable."""
        stands = await self._looks.standing(name)
        return MigrationPlan(
            uuid7().hex,
            name.tenant,
            name.agent,
            stands.record.owner,
            target,
            stands.record.epoch,
            stands.version,
            stands.digest,
            strategy,
            transfer,
            phases_of(strategy),
            prerequisites_of(target),
            risks_of(strategy, stands.size),
            ROLLBACK_STEPS,
            estimate(stands.size, stands.events, stands.rates, strategy),
            reason,
            actor,
            group,
            rollback_of,
        )

    async def validate_migration_plan(self, plan: MigrationPlan) -> list[Obstacle]:
        """Everything that speaks against it now; empty: nothing."""
        return (await self._obstacles(plan))[0]

    async def estimate_migration_impact(self, plan: MigrationPlan) -> Impact:
        """What it will cost, from what migrations of this log took."""
        return estimate(plan.impact.bytes, plan.impact.events, await read_rates(self._store), plan.strategy)

    # --- doing ---
    async def execute_migration(self, plan: MigrationPlan, *, seen: Seen | None = None) -> Migration:
        """Do it, to its end: the record says `committed`, or `aborted` and why. Raises what speaks against it; then nothing was begun.

        seen: is told of every change of the record. When the caller dies the migration goes on, or is settled by whoever is left.
        """
        begun = await self._begin(plan, wait=False)
        return await self._coordinator.watch(plan.name, begun.id, seen=seen)

    async def prepare_live_migration(self, plan: MigrationPlan, *, seen: Seen | None = None) -> Migration:
        """Have the target copy the agent and follow it, until it is told to take it; returns when the copy stands and was compared."""
        begun = await self._begin(plan, wait=True)
        return await self._coordinator.watch(
            plan.name, begun.id, until=lambda now: now.copied_version > 0 and now.phase == "pre_copy", seen=seen
        )

    async def initiate_live_migration(self, plan: MigrationPlan) -> Migration:
        """Begin it, and return at once: it goes on by itself to its end."""
        return await self._begin(plan, wait=False)

    async def synchronize_live_state(self, migration: str) -> Migration:
        """Return when the copy of a prepared migration stands where the agent stands now, or later. Raises NotFound, Conflict."""
        now = await self._open(migration)
        self._vault.forget(now.name)
        (head,) = await self._store.heads([await self._vault.record(*now.name)])
        return await self._coordinator.watch(now.name, migration, until=lambda seen: seen.copied_version >= head.version)

    async def complete_live_migration(self, migration: str, *, seen: Seen | None = None) -> Migration:
        """Let the target take the agent; to the end. Raises NotFound, Conflict."""
        now = await self._open(migration)
        await self._coordinator.tell_go(now)
        return await self._coordinator.watch(now.name, migration, seen=seen)

    async def monitor_migration(self, migration: str) -> Migration:
        """As it stands, or as it ended. Raises NotFound."""
        told = await self._journal.find(migration)
        if told is None:  # its coordinator may have died before it told of it
            told = next((each for each in await self._ledger.newest() if each.id == migration), None)
        if told is None:
            raise NotFound(f"there is no migration {migration!r}", hint="`perdure migrate list` lists them")
        kept = await self._ledger.get(told.name)  # whoever told of its end may have died before it was written down
        return kept.migration if kept is not None and kept.migration.id == migration else told

    async def watch_migration(self, migration: str, *, seen: Seen | None = None) -> Migration:
        """Follow one that others have begun, to its end; one that lost its target is settled on the way. Raises NotFound."""
        now = await self.monitor_migration(migration)
        return await self._coordinator.watch(now.name, migration, seen=seen) if now.open else now

    async def abort_migration(self, migration: str, *, reason: str = "aborted by an operator") -> Migration:
        """End it before its commit: the source goes on. Raises NotFound, and Conflict when it is committed, now or in the meantime."""
        now = await self._open(migration)
        kept = await self._ledger.get(now.name)
        if kept is None or kept.migration.id != migration:
            raise NotFound(f"migration {migration!r} is not the agent's newest any more")
        ended = await self._coordinator.settler.settle(kept, reason)
        if ended.phase != "aborted":
            raise Conflict(f"migration {migration} is {ended.phase}", hint="roll it back", tenant=ended.tenant, agent=ended.agent)
        return ended

    # --- undoing ---
    async def validate_rollback(self, migration: str) -> RollbackCheck:
        """Whether a completed migration can be undone now, and what speaks against it. Raises NotFound."""
        done = await self.monitor_migration(migration)
        self._vault.forget(done.name)
        record = await self._vault.record(*done.name)
        against = [Obstacle("rollback", problem) for problem in check_rollback(done, record.owner, record.epoch, time.time_ns() // 1000)]
        if not against:
            plan = await self._rollback_plan(done)
            against, _ = await self._obstacles(plan)
        return RollbackCheck(migration, done.source, not against, tuple(str(each.problem.message) for each in against))

    async def rollback_migration(self, migration: str, *, reason: str = "", actor: str = "", seen: Seen | None = None) -> Migration:
        """Bring the agent back to where it came from, by a migration of its own; what was written since stays. Raises NotFound, Conflict."""
        done = await self.monitor_migration(migration)
        check = await self.validate_rollback(migration)
        if not check.ok:
            raise Conflict(f"migration {migration} cannot be rolled back: {check.against[0]}", tenant=done.tenant, agent=done.agent)
        plan = await self._rollback_plan(done, reason=reason, actor=actor)
        return await self.execute_migration(plan, seen=seen)

    # --- looking ---
    async def list_migrations(self, *, open_only: bool = False, limit: int = 100) -> list[Migration]:
        """Every agent's newest migration, newest first."""
        return [each for each in await self._ledger.newest() if each.open or not open_only][:limit]

    async def journal(self, *, limit: int = 100, migration: str | None = None) -> list[Entry]:
        """The newest entries of the journal of migrations, newest first."""
        return await self._journal.entries(limit=limit, migration=migration)

    async def settle(self) -> int:
        """One look at migrations that nobody drives any more, and their end; how many were ended."""
        return await self._coordinator.keep()

    # --- parts ---
    async def _move(self, name: AgentName, target: str, strategy: Strategy, reason: str, group: str) -> Migration:
        return await self.execute_migration(await self.plan_migration(name, target, strategy=strategy, reason=reason, group=group))

    async def _begin(self, plan: MigrationPlan, *, wait: bool) -> Migration:
        against, nodes = await self._obstacles(plan)
        for obstacle in against:
            raise obstacle.problem
        addresses = {node.name: node.address for node, alive in nodes if alive}
        kept = await self._coordinator.begin(
            plan, wait=wait, source_address=addresses.get(plan.source, ""), target_address=addresses.get(plan.target, "")
        )
        return kept.migration

    async def _obstacles(self, plan: MigrationPlan) -> tuple[list[Obstacle], Sequence[NodeState]]:
        """What speaks against it now, and the nodes as they are."""
        facts = await self._looks.around(plan.name, plan.target, plan.source, plan.epoch)
        return obstacles(plan.target, facts, strategy=plan.strategy, epoch=plan.epoch), facts.nodes

    async def _open(self, migration: str) -> Migration:
        now = await self.monitor_migration(migration)
        if not now.open:
            raise Conflict(f"migration {migration} is {now.phase}", tenant=now.tenant, agent=now.agent)
        return now

    async def _rollback_plan(self, done: Migration, *, reason: str = "", actor: str = "") -> MigrationPlan:
        return await self.plan_migration(done.name, done.source, reason=reason, actor=actor, rollback_of=done.id)

    # --- many ---
    async def drain_node(
        self, node: str, *, at_once: int = AT_ONCE_DEFAULT, pinned_too: bool = False, strategy: Strategy = "live", seen: Seen | None = None
    ) -> FleetReport:
        """Move every agent of a node to others; see `MigrationFleet.drain_node`."""
        return await self.fleet.drain_node(node, at_once=at_once, pinned_too=pinned_too, strategy=strategy, seen=seen)

    async def rebalance(
        self, *, by: By = "agents", moves_max: int = MOVES_DEFAULT, at_once: int = AT_ONCE_DEFAULT, seen: Seen | None = None
    ) -> tuple[Level, FleetReport]:
        """Bring the living nodes to carry alike; see `MigrationFleet.rebalance`."""
        return await self.fleet.rebalance(by=by, moves_max=moves_max, at_once=at_once, seen=seen)
