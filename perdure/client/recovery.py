"""Recovery, as people hold it: what is wrong with an agent, what to do about it, doing it, and watching over nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from perdure.client.filters import event_filter
from perdure.engine.event import RecordedEvent
from perdure.engine.log.contract import AgentName
from perdure.errors import Conflict, IntegrityError, InvalidInput, KeyUnavailable, NotFound
from perdure.identifiers import uuid7
from perdure.projections.quarantine import Quarantine
from perdure.recovery.assignments import assign
from perdure.recovery.diagnosis import Diagnosis
from perdure.recovery.host import AGENTS_MAX_DEFAULT, AgentHost
from perdure.recovery.journal import Entry, Journal
from perdure.recovery.ladder import Ladder, RecoveredState, Validation
from perdure.recovery.leases import LEASE_S
from perdure.recovery.nodes import NodeState, list_nodes
from perdure.recovery.plan import Room, spread
from perdure.recovery.policy import Policy, get_policy, set_policy
from perdure.recovery.strategy import Failure, FailureReport, Strategy, select_recovery_strategy, steps_of
from perdure.recovery.supervisor import Supervisor
from perdure.recovery.timeline import Pace, timeline
from perdure.recovery.travel import Arrived, Into, Traveller

if TYPE_CHECKING:
    from perdure.client.engine import Engine
    from perdure.recovery.commands import Handler

__all__ = ["Recovery", "RecoveryPlan", "RecoveryResult"]


class RecoveryPlan(msgspec.Struct, frozen=True):
    """What will be done about an agent. id: under which the journal tells of it. report: on which it was decided."""

    id: str
    tenant: str
    agent: str
    strategy: Strategy
    steps: tuple[str, ...]
    report: FailureReport


class RecoveryResult(msgspec.Struct, frozen=True):
    """What was done. source: of the recovered state, where one was. to: the node or the agent that goes on, where there is one."""

    id: str
    strategy: Strategy
    done: bool
    detail: str
    source: str = ""
    to: str = ""


class Recovery:
    """Failure detection and recovery of one engine's agents."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._log = engine.log
        self._store = engine.log.store
        self._vault = engine.log.vault
        self._diagnosis = Diagnosis(self._store, self._vault, engine.cache, engine.snapshots.base)
        assert engine.log.reader is not None
        self._reader = engine.log.reader
        self._journal = Journal(engine.log, self._reader)
        self._traveller = Traveller(engine.log, self._reader, engine.snapshots.base)

    # --- nodes ---
    def host(
        self, node: str, handler: Handler, *, address: str = "", agents_max: int = AGENTS_MAX_DEFAULT, lease_s: float = LEASE_S
    ) -> AgentHost:
        """A node that serves agents with `handler(state, command) -> events`; `async with` it. See `AgentHost`."""
        return AgentHost(self._log, self._reader, node, handler, address=address, agents_max=agents_max, lease_s=lease_s)

    async def nodes(self) -> list[NodeState]:
        """Every node that has announced itself."""
        return await list_nodes(self._store)

    async def watch(self, stop: asyncio.Event) -> None:
        """Give the agents of lost nodes to others until `stop` is set; several may watch, one leads."""
        await Supervisor(self._log, self._reader).run(stop)

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
        name = AgentName(plan.tenant, plan.agent)
        await self._check_fresh(plan)
        facts = {"tenant": plan.tenant, "agent": plan.agent, "strategy": plan.strategy}
        await self._journal.begun(plan.id, {**facts, "failures": [f"{each.kind}: {each.evidence}" for each in plan.report.failures]})
        try:
            result = await self._do(name, plan)
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
        return await self._ladder().recover(name)

    async def validate_recovered_state(self, state: RecoveredState) -> Validation:
        """Compare with the fold of the whole log."""
        return await self._ladder().validate(state)

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
    ) -> Arrived:
        """Make a new agent that begins with the state at a version or a moment, the newest where none is named. Raises AlreadyExists."""
        if version is None and time is None:
            version = await self._log.version(name)
        return await self.replay_to(name, version=version, time=time, into="fork", new_agent=new_agent, actor=actor, reason=reason)

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

    def _ladder(self) -> Ladder:
        shelf = self._engine.snapshots.shelf if self._engine.snapshots.base is not None else None
        return Ladder(self._store, self._vault, self._engine.cache, shelf.loader if shelf else None)

    # --- doing it ---
    async def _check_fresh(self, plan: RecoveryPlan) -> None:
        name = AgentName(plan.tenant, plan.agent)
        now = await self.analyze_failure(name)
        if (now.owner, [each.kind for each in now.failures]) != (plan.report.owner, [each.kind for each in plan.report.failures]):
            raise Conflict(
                f"agent {plan.agent!r} is not as it was when the plan was made", hint="plan anew", tenant=plan.tenant, agent=plan.agent
            )

    async def _do(self, name: AgentName, plan: RecoveryPlan) -> RecoveryResult:
        match plan.strategy:
            case "none":
                return RecoveryResult(plan.id, plan.strategy, True, "nothing is wrong")
            case "wait_for_key":
                raise KeyUnavailable(plan.report.failures[0].evidence, tenant=name.tenant, agent=name.agent)
            case "migrate":
                return await self._migrate(name, plan)
            case "restart":
                await self._log.take_ownership(name, "")
                return RecoveryResult(plan.id, plan.strategy, True, "nobody owns it; the first node that is asked takes it")
            case "restore":
                return await self._restore(name, plan)
            case "recreate":
                return await self._recreate(name, plan)
            case other:
                raise InvalidInput(f"there is no strategy {other!r}")

    async def _migrate(self, name: AgentName, plan: RecoveryPlan) -> RecoveryResult:
        self._vault.forget(name)
        record = await self._vault.record(*name)
        alive = {node.name: node for node, alive in await self.nodes() if alive and node.name in plan.report.other_nodes}
        rooms = {node: Room(await self._store.count_owned(node), facts.agents_max) for node, facts in alive.items()}
        given, homeless = spread([record], rooms, plan.id)
        if homeless:
            raise Conflict("no other node has room", hint="start one with `perdure host`", tenant=name.tenant, agent=name.agent)
        ((node, assignments),) = given.items()
        await assign(self._store, node, assignments)
        await self._taken(name, node)
        return RecoveryResult(plan.id, plan.strategy, True, f"node {node!r} serves it", to=node)

    async def _taken(self, name: AgentName, node: str) -> None:
        """Wait until the node has it."""
        async with asyncio.timeout(30):
            while True:
                self._vault.forget(name)
                if (await self._vault.record(*name)).owner == node:
                    return
                await self._store.signal().wait(0.05)

    async def _restore(self, name: AgentName, plan: RecoveryPlan) -> RecoveryResult:
        """Replace the damaged copies from what is right."""
        await self._engine.cache.remove([name])
        state = await self.recover_agent_state(name)
        valid = await self.validate_recovered_state(state)
        if not valid.ok:
            raise IntegrityError("; ".join(valid.problems), tenant=name.tenant, agent=name.agent)
        if any(failure.kind == "poisoned" for failure in plan.report.failures):
            await Quarantine(self._store).retry(self._engine.cache, self._vault, *name)
        # A strong read of what the cache does not have puts it there.
        await self._engine.states.get_current_state(name)
        if any(failure.kind == "snapshot_damaged" for failure in plan.report.failures):
            await self._engine.snapshots.create_snapshot(name, full=True, creator="recovery", reason=plan.id)
        return RecoveryResult(plan.id, plan.strategy, True, f"restored at version {state.version}", source=state.source)

    async def _recreate(self, name: AgentName, plan: RecoveryPlan) -> RecoveryResult:
        """The log of the agent is damaged: what its newest sound snapshot holds goes on as a new agent; the damaged one stays for repair."""
        shelf = self._engine.snapshots.shelf
        self._vault.forget(name)
        loaded = await shelf.loader.load(await self._vault.record(*name))
        if loaded is None:
            raise IntegrityError(
                "the log is damaged and there is no sound snapshot",
                hint="`perdure repair` looks for the events in the topic",
                tenant=name.tenant,
                agent=name.agent,
            )
        target = f"{name.agent}-recovered-{plan.id[-8:]}"
        await self._engine.snapshots.restore_snapshot(
            name, snapshot=loaded.row.id, into="fork", new_agent=target, actor="recovery", reason=plan.id
        )
        return RecoveryResult(
            plan.id, plan.strategy, True, f"version {loaded.row.version} goes on as {target!r}", source="snapshot", to=target
        )
