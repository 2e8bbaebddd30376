"""Recovery, as people hold it: what is wrong with an agent, what to do about it, doing it, and watching over nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from perdure.client.filters import event_filter
from perdure.client.parts import Parts
from perdure.client.rebuilds import Rebuilds
from perdure.client.recovering import Recovering, RecoveryPlan, RecoveryResult, ladder_of
from perdure.engine.event import RecordedEvent
from perdure.engine.log.records import AgentName
from perdure.errors import Conflict, NotFound
from perdure.identifiers import uuid7
from perdure.migration.arrivals import arrivals
from perdure.migration.copy import Copying
from perdure.migration.keeping import Keeper
from perdure.recovery.diagnosis import Diagnosis
from perdure.recovery.forks import FORKS_PAGE, Fork, Forked, Origin, list_forks, origin_of
from perdure.recovery.host import AGENTS_MAX_DEFAULT, AgentHost
from perdure.recovery.journal import Entry, Journal
from perdure.recovery.ladder import RecoveredState, Validation
from perdure.recovery.leases import LEASE_S
from perdure.recovery.nodes import NodeState, list_nodes
from perdure.recovery.policy import Policy, get_policy, set_policy
from perdure.recovery.strategy import Failure, FailureReport, Strategy, select_recovery_strategy, steps_of
from perdure.recovery.supervisor import Supervisor
from perdure.recovery.timeline import Pace, timeline
from perdure.recovery.travel import Arrived, Into, Traveller

if TYPE_CHECKING:
    from perdure.recovery.commands import Handler

__all__ = ["Recovery", "RecoveryPlan", "RecoveryResult"]


class Recovery:
    """Failure detection and recovery of one engine's agents."""

    def __init__(self, engine: Parts) -> None:
        self._engine = engine
        self._log = engine.log
        self._store = engine.log.store
        self._vault = engine.log.vault
        self._diagnosis = Diagnosis(self._store, self._vault, engine.cache, engine.snapshots.base)
        self._reader = engine.states.reader
        self._journal = Journal(engine.log, self._reader)
        self._traveller = Traveller(engine.log, self._reader, engine.snapshots.base)

    # --- nodes ---
    def host(
        self, node: str, handler: Handler, *, address: str = "", agents_max: int = AGENTS_MAX_DEFAULT, lease_s: float = LEASE_S
    ) -> AgentHost:
        """A node that serves agents with `handler(state, command) -> events`; `async with` it. See `AgentHost`."""
        companions = (arrivals(Copying(self._log, self._engine.snapshots.base, self._engine.cache)),)
        return AgentHost(
            self._log, self._reader, node, handler, address=address, agents_max=agents_max, lease_s=lease_s, companions=companions
        )

    async def nodes(self) -> list[NodeState]:
        """Every node that has announced itself."""
        return await list_nodes(self._store)

    async def watch(self, stop: asyncio.Event) -> None:
        """Give the agents of lost nodes to others, and end migrations that lost their target, until `stop` is set; several may watch, one leads."""
        await asyncio.gather(Supervisor(self._log, self._reader).run(stop), Keeper(self._log).run(stop))

    # --- one agent ---
    async def detect_agent_failure(self, name: AgentName) -> Failure | None:
        """A quick look at whether it can be served; None: nothing is seen. Raises AgentNotFound."""
        return await self._diagnosis.detect(name)

    async def analyze_failure(self, name: AgentName) -> FailureReport:
        """Everything that is wrong with it, with evidence; reads its whole log."""
        return await self._diagnosis.analyze(name)

    def select_recovery_strategy(self, report: FailureReport) -> Strategy:
        """What to do about the gravest of it."""
        return select_recovery_strategy(report)

    async def plan_recovery(self, name: AgentName) -> RecoveryPlan:
        """Look, and say what would be done; nothing is changed."""
        report = await self.analyze_failure(name)
        strategy = select_recovery_strategy(report)
        return RecoveryPlan(uuid7().hex, name.tenant, name.agent, strategy, tuple(steps_of(strategy)), report)

    async def execute_recovery(self, plan: RecoveryPlan) -> RecoveryResult:
        """Do it, and tell in the journal. Raises what stands against it; then nothing of the agent was changed by halves.

        A plan that was made on a state of things which is over (another owner, another failure) is refused with Conflict.
        """
        await self._check_fresh(plan)
        facts = {"tenant": plan.tenant, "agent": plan.agent, "strategy": plan.strategy}
        await self._journal.begun(plan.id, {**facts, "failures": [f"{each.kind}: {each.evidence}" for each in plan.report.failures]})
        try:
            result = await Recovering(self._engine, plan).run()
        except BaseException as problem:
            await self._journal.ended(plan.id, "failed", {**facts, "problem": f"{type(problem).__name__}: {problem}"})
            raise
        await self._journal.ended(plan.id, "completed", {**facts, "detail": result.detail, "source": result.source, "to": result.to})
        return result

    async def monitor_recovery(self, recovery: str) -> list[Entry]:
        """What the journal tells of one recovery, newest first. Raises NotFound."""
        entries = await self._journal.entries(recovery=recovery, limit=1_000)
        if not entries:
            raise NotFound(f"there is no recovery {recovery!r}", hint="`perdure recover list` lists them")
        return entries

    async def journal(self, *, limit: int = 100) -> list[Entry]:
        """The newest entries of all recoveries."""
        return await self._journal.entries(limit=limit)

    async def recover_agent_state(self, name: AgentName) -> RecoveredState:
        """Its newest state from the nearest copy that is right, every step down told."""
        return await ladder_of(self._engine).recover(name)

    async def validate_recovered_state(self, state: RecoveredState) -> Validation:
        """Compare with the fold of the whole log."""
        return await ladder_of(self._engine).validate(state)

    # --- time travel ---
    async def replay_to(
        self,
        name: AgentName,
        *,
        version: int | None = None,
        time: datetime | None = None,
        into: Into = "view",
        new_agent: str | None = None,
        actor: str = "",
        reason: str = "",
        epoch: int | None = None,
    ) -> Arrived:
        """The agent's state at a version or a moment: to look at, as a new agent, or as an event that leads it back. See `Traveller.go`."""
        return await self._traveller.go(
            name, version=version, time=time, into=into, new_agent=new_agent, actor=actor, reason=reason, epoch=epoch
        )

    async def rollback_to_version(
        self, name: AgentName, version: int, *, actor: str = "", reason: str = "", epoch: int | None = None
    ) -> Arrived:
        """Append the event that leads the agent back to a version; history stays. Raises VersionNotFound, Conflict, Fenced."""
        return await self.replay_to(name, version=version, into="rollback", actor=actor, reason=reason, epoch=epoch)

    async def fork(
        self,
        name: AgentName,
        new_agent: str,
        *,
        version: int | None = None,
        time: datetime | None = None,
        actor: str = "",
        reason: str = "",
    ) -> Forked:
        """Make a new agent that goes on from a version or a moment, the newest where none is named, whatever the length of the history.

        Raises AlreadyExists, VersionNotFound, LimitExceeded (a fork of forks too deep).
        """
        await self._log.settle(name)
        return await self._traveller.fork(name, new_agent, version=version, time=time, actor=actor, reason=reason)

    async def forks(self, name: AgentName, *, after: str = "", limit: int = FORKS_PAGE) -> list[Fork]:
        """A page of the agents that were forked from this one, in order of their names, after the name `after`. Raises AgentNotFound."""
        return await list_forks(self._log, await self._vault.record(*name), after=after, limit=limit)

    async def origin(self, name: AgentName) -> Origin | None:
        """What the agent goes on from; None where it is no fork. Raises AgentNotFound."""
        return origin_of(await self._vault.record(*name))

    async def timeline(
        self,
        tenant: str | None = None,
        *,
        types: Sequence[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        correlation_id: str | None = None,
        trace_id: str | None = None,
        speed: float = 0.0,
    ) -> AsyncIterator[RecordedEvent]:
        """Events of a tenant (None: of all) as they happened, merged by time; speed 1 takes as long as it took, 10 a tenth, 0 no time."""
        where = event_filter(types=types, since=since, until=until, correlation_id=correlation_id, trace_id=trace_id)
        pace = Pace(speed)
        async for event in timeline(self._store, self._vault, tenant, where):
            await pace.wait_for(event)
            yield event

    async def rebuild_state(self, name: AgentName) -> int:
        """Put the agent's state into the cache anew, from snapshot and log; its version. Reads go on, from what is there until then.

        Raises AgentNotFound, and what stands against folding it; then nothing has changed.
        """
        return await Rebuilds(self._engine).agent(name)

    # --- policy ---
    async def enable_auto_recovery(self, name: AgentName, *, retries: int = 5, backoff_s: float = 1.0) -> Policy:
        """The supervisor recovers it by itself. Raises AgentNotFound, InvalidInput."""
        return await self._set_policy(name, Policy(True, retries, backoff_s))

    async def disable_auto_recovery(self, name: AgentName) -> Policy:
        """The supervisor leaves it with its lost node until somebody acts."""
        return await self._set_policy(name, msgspec.structs.replace(await get_policy(self._store, name), enabled=False))

    async def auto_recovery(self, name: AgentName) -> Policy:
        """The policy in force."""
        return await get_policy(self._store, name)

    async def _set_policy(self, name: AgentName, policy: Policy) -> Policy:
        await self._vault.record(*name)
        await set_policy(self._store, name, policy)
        return policy

    async def _check_fresh(self, plan: RecoveryPlan) -> None:
        name = AgentName(plan.tenant, plan.agent)
        now = await self.analyze_failure(name)
        if (now.owner, [each.kind for each in now.failures]) != (plan.report.owner, [each.kind for each in plan.report.failures]):
            raise Conflict(
                f"agent {plan.agent!r} is not as it was when the plan was made", hint="plan anew", tenant=plan.tenant, agent=plan.agent
            )
