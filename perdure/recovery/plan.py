"""Which node takes which agents of a lost one. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from perdure.engine.log.records import AgentRecord
from perdure.recovery.assignments import Assignment

__all__ = ["Room", "hottest_first", "spread"]


class Room(NamedTuple):
    """What a node has and takes: agents it owns, and the most that it wants."""

    agents: int
    agents_max: int


def hottest_first(agents: Sequence[AgentRecord], heat: Mapping[int, int]) -> list[AgentRecord]:
    """Those with the most of the newest events first (heat: by agent key); among equals the order given."""
    return sorted(agents, key=lambda agent: -heat.get(agent.agent_key, 0))


def spread(
    agents: Sequence[AgentRecord], nodes: Mapping[str, Room], recovery: str
) -> tuple[dict[str, list[Assignment]], list[AgentRecord]]:
    """(assignments by node, agents that no node has room for). In the order given, each to the node that is fullest least."""
    heap = [(room.agents / room.agents_max, name, room.agents) for name, room in sorted(nodes.items()) if room.agents < room.agents_max]
    heapq.heapify(heap)
    given: dict[str, list[Assignment]] = {}
    for number, agent in enumerate(agents):
        if not heap:
            return given, list(agents[number:])
        _, name, count = heapq.heappop(heap)
        given.setdefault(name, []).append(Assignment(agent.tenant, agent.agent, agent.epoch, recovery))
        most = nodes[name].agents_max
        if count + 1 < most:
            heapq.heappush(heap, ((count + 1) / most, name, count + 1))
    return given, []
