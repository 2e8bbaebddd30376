"""The supervisor: watches the nodes, and gives the agents of a lost one to others. Several may run; one leads.

It decides and writes assignments; the nodes that get them take the agents over by themselves, under the log's own epochs. So a supervisor may die
between any two steps: what it wrote stands, and the next leader looks at who owns what and goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final, NamedTuple

from perdure.engine import steps
from perdure.engine.log.contract import LogStore
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.stopping import rest
from perdure.errors import Unavailable
from perdure.identifiers import uuid7
from perdure.projections.reader import StateReader
from perdure.recovery.assignments import assign
from perdure.recovery.detection import Detector
from perdure.recovery.journal import Journal
from perdure.recovery.leases import LEASE_S, KeptLease
from perdure.recovery.nodes import NodeState, list_nodes
from perdure.recovery.plan import Room, hottest_first, spread
from perdure.recovery.policy import Policy, list_policies, policy_of

__all__ = ["LEASE_NAME", "Supervisor"]

LEASE_NAME: Final = "supervisor"
IDLE_S: Final = 1.0
"""The pause where there is no node."""
LOOK_S: Final = 0.25
"""Pause between two looks at the nodes' leases."""
SUSPECTED_LOOK_S: Final = 0.1
"""The same while a node is suspected. Its holder stopped acting on the lease before it ran out, so that little speaks for waiting longer."""
TAKE_S: Final = 2.0
"""How long a node may take to pick up what it was given, before the wait for the next try begins."""
AGENTS_AT_ONCE_MAX: Final = 1_000
"""Agents of a lost node that are given away before it is looked again who has them: it limits what hits the nodes that are left."""
OWNED_LOOKED_AT_MAX: Final = 10_000
"""Agents of a lost node among which the hottest are looked for."""
HEAT_OFFSETS: Final = 2_000
"""Newest offsets of a partition by which it is judged who is hot: who was written to most, most lately."""


class _Given(NamedTuple):
    """An agent that a node was told to take. tries: how often it was given to any."""

    node: str
    at: float
    tries: int


class _Recovery:
    """One lost node being emptied."""

    def __init__(self, node: str, id: str | None = None) -> None:
        self.id = id or uuid7().hex
        self.node = node
        self.began_at = time.monotonic()
        self.agents = 0
        self.heat: dict[int, int] | None = None
        self.given: dict[tuple[str, str, int], _Given] = {}  # by (tenant, agent, epoch that it is to be taken from)


class Supervisor:
    """Run it with `run`."""

    def __init__(
        self, log: EventLog, reader: StateReader, *, holder: str | None = None, look_s: float = LOOK_S, lease_s: float = LEASE_S
    ) -> None:
        self._store: LogStore = log.store
        self._journal = Journal(log, reader)
        self._holder = holder or uuid7().hex
        self._look_s = look_s
        self._lease_s = lease_s
        self._detector = Detector()
        self._suspects = False
        self._recoveries: dict[str, _Recovery] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Lead when nobody else does, until `stop` is set. The log being away is waited out."""
        while not stop.is_set():
            with contextlib.suppress(Unavailable):
                lease = await KeptLease.acquire(self._store, LEASE_NAME, self._holder, self._lease_s)
                if lease is not None:
                    await self._lead(lease, stop)
            await rest(stop, self._look_s)

    async def _lead(self, lease: KeptLease, stop: asyncio.Event) -> None:
        # What was seen by an earlier leadership says nothing about now; what it began is gone on with.
        self._detector = Detector()
        begun = [(id, facts.get("node")) for id, facts in (await self._journal.open()).items()]
        self._recoveries = {node: _Recovery(node, id) for id, node in begun if node}
        try:
            while lease.holds() and not stop.is_set():
                nodes = await self.look()
                pause_s = min(self._look_s, SUSPECTED_LOOK_S) if self._suspects else self._look_s
                await rest(stop, pause_s if nodes else IDLE_S)
        finally:
            await lease.close()

    async def look(self) -> int:
        """One look at all nodes, and the next step of every recovery; how many nodes there are."""
        states = await list_nodes(self._store)
        verdict = self._detector.look(states)
        self._suspects = bool(verdict.suspected)
        for name in sorted(self._detector.lost()):
            await self._empty(name, states)
        for name in verdict.returned:
            recovery = self._recoveries.pop(name, None)
            if recovery is not None:
                await self._journal.ended(recovery.id, "void", {"node": name, "reason": "the node came back"})
        return len(states)

    async def _empty(self, lost: str, states: list[NodeState]) -> None:
        """Give away what the lost node still owns and may be given away; end its recovery when that is nothing."""
        policies = await list_policies(self._store)
        agents = await self._owned(lost, policies)
        recovery = self._recoveries.get(lost)
        if not agents:
            if recovery is not None:
                del self._recoveries[lost]
                await self._journal.ended(recovery.id, "completed", self._summary(recovery))
            return
        if recovery is None:
            recovery = self._recoveries[lost] = _Recovery(lost)
            await self._journal.begun(recovery.id, {"node": lost, "agents": len(agents), "strategy": "migrate"})
            steps.reach("supervisor.began")
        if recovery.heat is None:
            recovery.heat = await self._heat()
        agents = hottest_first(agents, recovery.heat)[:AGENTS_AT_ONCE_MAX]
        waiting = [agent for agent in agents if self._due(recovery, agent, states, policies)]
        if waiting:
            await self._give(recovery, waiting, states)

    async def _owned(self, lost: str, policies: dict[str, Policy]) -> list[AgentRecord]:
        """Of its agents, those that auto-recovery may act on."""
        found: list[AgentRecord] = []
        after = 0
        while page := await self._store.list_owned(lost, after=after, limit=AGENTS_AT_ONCE_MAX):
            after = page[-1].agent_key
            found += [agent for agent in page if policy_of(policies, AgentName(agent.tenant, agent.agent)).enabled]
            if len(found) >= OWNED_LOOKED_AT_MAX or len(page) < AGENTS_AT_ONCE_MAX:
                break
        return found

    async def _heat(self) -> dict[int, int]:
        """How many of the newest events are whose, by agent key."""
        heat: dict[int, int] = {}
        for partition, position in (await self._store.positions()).items():
            after = max(0, position.offset - HEAT_OFFSETS)
            for written in await self._store.written(partition, after, position.offset - after) if position.offset else ():
                heat[written.agent_key] = heat.get(written.agent_key, 0) + written.events
        return heat

    async def _give(self, recovery: _Recovery, waiting: list[AgentRecord], states: list[NodeState]) -> None:
        alive = {node.name: node for node, alive in states if alive}
        rooms = {name: Room(await self._store.count_owned(name), node.agents_max) for name, node in alive.items()}
        given, homeless = spread(waiting, rooms, recovery.id)
        now = time.monotonic()
        for name, assignments in given.items():
            await assign(self._store, name, assignments)
            steps.reach("supervisor.assigned")
            for each in assignments:
                key = (each.tenant, each.agent, each.epoch)
                before = recovery.given.get(key)
                recovery.given[key] = _Given(name, now, before.tries + 1 if before else 1)
                recovery.agents += before is None
        if given:
            facts = {
                "node": recovery.node,
                "to": {name: len(assignments) for name, assignments in given.items()},
                "homeless": len(homeless),
            }
            await self._journal.went_on(recovery.id, "assigned", facts)

    def _due(self, recovery: _Recovery, agent: AgentRecord, states: list[NodeState], policies: dict[str, Policy]) -> bool:
        """Whether the agent is to be given to a node now: not again before its backoff, and only so often."""
        given = recovery.given.get(_key(agent))
        if given is None or not any(alive and node.name == given.node for node, alive in states):
            return True
        policy = policy_of(policies, AgentName(agent.tenant, agent.agent))
        return given.tries <= policy.retries and time.monotonic() - given.at > TAKE_S + policy.wait_s(given.tries)

    def _summary(self, recovery: _Recovery) -> dict[str, Any]:
        return {"node": recovery.node, "agents": recovery.agents, "duration_s": round(time.monotonic() - recovery.began_at, 3)}


def _key(agent: AgentRecord) -> tuple[str, str, int]:
    return agent.tenant, agent.agent, agent.epoch
