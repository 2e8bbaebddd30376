"""Executing a recovery plan: each strategy, from the first step to the last."""

from __future__ import annotations

import asyncio

import msgspec

from perdure.client.parts import Parts
from perdure.engine.log.records import AgentName
from perdure.errors import Conflict, DeadlineExceeded, IntegrityError, InvalidInput, KeyUnavailable
from perdure.projections.quarantine import Quarantine
from perdure.recovery.assignments import assign
from perdure.recovery.ladder import Ladder
from perdure.recovery.nodes import list_nodes
from perdure.recovery.plan import Room, spread
from perdure.recovery.strategy import FailureReport, Strategy

__all__ = ["Recovering", "RecoveryPlan", "RecoveryResult", "ladder_of"]

TAKEN_TIMEOUT_S = 30.0


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


def ladder_of(engine: Parts) -> Ladder:
    """The ladder over the engine's copies."""
    shelf = engine.snapshots.shelf if engine.snapshots.base is not None else None
    return Ladder(engine.log.store, engine.log.vault, engine.cache, shelf.loader if shelf else None)


class Recovering:
    """One plan being executed."""

    def __init__(self, engine: Parts, plan: RecoveryPlan) -> None:
        self._engine = engine
        self._plan = plan
        self._name = AgentName(plan.tenant, plan.agent)
        self._store = engine.log.store
        self._vault = engine.log.vault

    async def run(self) -> RecoveryResult:
        """Do it. Raises what stands against it."""
        name, plan = self._name, self._plan
        match plan.strategy:
            case "none":
                return RecoveryResult(plan.id, plan.strategy, True, "nothing is wrong")
            case "wait_for_key":
                raise KeyUnavailable(plan.report.failures[0].evidence, tenant=name.tenant, agent=name.agent)
            case "migrate":
                return await self._migrate()
            case "restart":
                await self._engine.log.take_ownership(name, "")
                return RecoveryResult(plan.id, plan.strategy, True, "nobody owns it; the first node that is asked takes it")
            case "restore":
                return await self._restore()
            case "recreate":
                return await self._recreate()
            case other:
                raise InvalidInput(f"there is no strategy {other!r}")

    async def _migrate(self) -> RecoveryResult:
        name, plan = self._name, self._plan
        self._vault.forget(name)
        record = await self._vault.record(*name)
        alive = {node.name: node for node, alive in await list_nodes(self._store) if alive and node.name in plan.report.other_nodes}
        rooms = {node: Room(await self._store.count_owned(node), facts.agents_max) for node, facts in alive.items()}
        given, homeless = spread([record], rooms, plan.id)
        if homeless:
            raise Conflict("no other node has room", hint="start one with `perdure host`", tenant=name.tenant, agent=name.agent)
        ((node, assignments),) = given.items()
        await assign(self._store, node, assignments)
        await self._taken(node)
        return RecoveryResult(plan.id, plan.strategy, True, f"node {node!r} serves it", to=node)

    async def _taken(self, node: str) -> None:
        """Wait until the node has it."""
        try:
            async with asyncio.timeout(TAKEN_TIMEOUT_S):
                while True:
                    self._vault.forget(self._name)
                    if (await self._vault.record(*self._name)).owner == node:
                        return
                    await self._store.signal().wait(0.05)
        except TimeoutError as problem:
            raise DeadlineExceeded(
                f"node {node!r} did not take the agent within {TAKEN_TIMEOUT_S:.0f} s", tenant=self._plan.tenant, agent=self._plan.agent
            ) from problem

    async def _restore(self) -> RecoveryResult:
        """Replace the damaged copies from what is right."""
        name, plan = self._name, self._plan
        ladder = ladder_of(self._engine)
        await self._engine.cache.remove([name])
        state = await ladder.recover(name)
        valid = await ladder.validate(state)
        if not valid.ok:
            raise IntegrityError("; ".join(valid.problems), tenant=name.tenant, agent=name.agent)
        if any(failure.kind == "poisoned" for failure in plan.report.failures):
            await Quarantine(self._store).retry(self._engine.cache, self._vault, *name)
        # A strong read of what the cache does not have puts it there.
        await self._engine.states.get_current_state(name)
        if any(failure.kind == "snapshot_damaged" for failure in plan.report.failures):
            await self._engine.snapshots.create_snapshot(name, full=True, creator="recovery", reason=plan.id)
        return RecoveryResult(plan.id, plan.strategy, True, f"restored at version {state.version}", source=state.source)

    async def _recreate(self) -> RecoveryResult:
        """The log of the agent is damaged: what its newest sound snapshot holds goes on as a new agent; the damaged one stays for repair."""
        name, plan = self._name, self._plan
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
