"""Where agents are that this node does not serve, as it tells their callers."""

from __future__ import annotations

import time
from typing import Final

from perdure.engine.log.contract import AgentName, AgentRecord, LogStore
from perdure.errors import NotServed
from perdure.recovery.handover import again
from perdure.recovery.nodes import NodeState, list_nodes

__all__ = ["NODES_FRESH_S", "Whereabouts"]

NODES_FRESH_S: Final = 0.2
"""How long it is believed, in a storm of commands for agents that are elsewhere, where they are: it then costs no more than a look."""


class Whereabouts:
    """agents_max: how many agents it remembers the whereabouts of."""

    def __init__(self, store: LogStore, agents_max: int) -> None:
        self._store = store
        self._agents_max = agents_max
        self._nodes: tuple[float, list[NodeState]] = (0.0, [])
        self._told: dict[AgentName, tuple[float, NotServed]] = {}

    def told(self, name: AgentName) -> NotServed | None:
        """What callers were told a moment ago; None when that may be old."""
        told = self._told.get(name)
        return again(told[1]) if told is not None and time.monotonic() - told[0] < NODES_FRESH_S else None

    async def tell(self, record: AgentRecord) -> NotServed:
        """What callers are told of an agent that belongs to another node."""
        now = time.monotonic()
        if now - self._nodes[0] >= NODES_FRESH_S:
            self._nodes = (now, await list_nodes(self._store))
        for node, alive in self._nodes[1]:
            if node.name == record.owner and alive:
                message = f"agent {record.agent!r} is served by node {node.name!r}"
                hint = f"send the command to {node.address}"
                problem = NotServed(message, hint=hint, tenant=record.tenant, agent=record.agent, address=node.address)
                break
        else:
            message = f"agent {record.agent!r} belongs to node {record.owner!r}, which does not answer"
            hint = "recovery gives it to another node; ask again soon"
            problem = NotServed(message, hint=hint, tenant=record.tenant, agent=record.agent)
        if len(self._told) >= self._agents_max:
            self._told.clear()
        self._told[AgentName(record.tenant, record.agent)] = (now, problem)
        return problem
