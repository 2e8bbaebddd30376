"""The supervisor: watches the nodes, and gives the agents of a lost one to others. Several may run; one leads.

It decides and writes assignments; the nodes that get them take the agents over by themselves, under the log's own epochs. So a supervisor may die
between any two steps: what it wrote stands, and the next leader looks at who owns what and goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from perdure.engine import steps
from perdure.engine.log.contract import AgentRecord, LogStore
from perdure.engine.log.log import EventLog
from perdure.errors import Unavailable
from perdure.identifiers import uuid7
from perdure.recovery.assignments import assign
from perdure.recovery.detection import Detector
from perdure.recovery.journal import Journal
from perdure.recovery.leases import LEASE_S, KeptLease
from perdure.recovery.nodes import NodeState, list_nodes
from perdure.recovery.plan import Room, spread

__all__ = ["LEASE_NAME", "Supervisor"]

LEASE_NAME: Final = "supervisor"
LOOK_S: Final = 0.25
"""Pause between two looks at the nodes' leases."""
AGENTS_AT_ONCE_MAX: Final = 1_000
"""Agents of a lost node that are given away before it is looked again who has them: it limits what hits the nodes that are left."""


class _Recovery:
    """One lost node being emptied."""

    def __init__(self, node: str) -> None:
        self.id = uuid7().hex
        self.node = node
        self.began_at = time.monotonic()
        self.agents = 0
        self.given: dict[tuple[str, str, int], str] = {}  # (tenant, agent, epoch it was taken at) → node


class Supervisor:
    """Run it with `run`. leads: whether this one leads at the moment."""

    def __init__(self, log: EventLog, *, holder: str | None = None, look_s: float = LOOK_S, lease_s: float = LEASE_S) -> None:
        self.leads = False
        self._store: LogStore = log.store
        self._journal = Journal(log)
        self._holder = holder or uuid7().hex
        self._look_s = look_s
        self._lease_s = lease_s
        self._detector = Detector()
        self._recoveries: dict[str, _Recovery] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Lead when nobody else does, until `stop` is set. The log being away is waited out."""
        while not stop.is_set():
            try:
                lease = await KeptLease.acquire(self._store, LEASE_NAME, self._holder, self._lease_s)
                if lease is not None:
                    await self._lead(lease, stop)
            except Unavailable:
                self.leads = False
            await _pause(stop, self._look_s)

    async def _lead(self, lease: KeptLease, stop: asyncio.Event) -> None:
        # What was seen by an earlier leadership says nothing about now.
        self._detector, self._recoveries = Detector(), {}
        self.leads = True
        try:
            while lease.holds() and not stop.is_set():
                await self.look()
                await _pause(stop, self._look_s)
        finally:
            self.leads = False
            await lease.close()

    async def look(self) -> None:
        """One look at all nodes, and the next step of every recovery."""
        states = await list_nodes(self._store)
        verdict = self._detector.look(states)
        for name in sorted(self._detector.lost()):
            await self._empty(name, states)
        for name in verdict.returned:
            recovery = self._recoveries.pop(name, None)
            if recovery is not None:
                await self._journal.ended(recovery.id, "void", {"node": name, "reason": "the node came back"})

    async def _empty(self, lost: str, states: list[NodeState]) -> None:
        """Give away what the lost node still owns; end its recovery when that is nothing."""
        agents = await self._store.list_owned(lost, limit=AGENTS_AT_ONCE_MAX)
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
        await self._give(recovery, agents, states)

    async def _give(self, recovery: _Recovery, agents: list[AgentRecord], states: list[NodeState]) -> None:
        alive = {node.name: node for node, alive in states if alive and not node.draining}
        waiting = [agent for agent in agents if recovery.given.get(_key(agent)) not in alive]
        if not waiting:
            return
        rooms = {name: Room(await self._store.count_owned(name), node.agents_max) for name, node in alive.items()}
        given, homeless = spread(waiting, rooms, recovery.id)
        for name, assignments in given.items():
            await assign(self._store, name, assignments)
            steps.reach("supervisor.assigned")
            recovery.given.update(((each.tenant, each.agent, each.epoch), name) for each in assignments)
            recovery.agents += len(assignments)
        if given:
            facts = {
                "node": recovery.node,
                "to": {name: len(assignments) for name, assignments in given.items()},
                "homeless": len(homeless),
            }
            await self._journal.went_on(recovery.id, "assigned", facts)

    def _summary(self, recovery: _Recovery) -> dict[str, Any]:
        return {"node": recovery.node, "agents": recovery.agents, "duration_s": round(time.monotonic() - recovery.began_at, 3)}


def _key(agent: AgentRecord) -> tuple[str, str, int]:
    return agent.tenant, agent.agent, agent.epoch


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
