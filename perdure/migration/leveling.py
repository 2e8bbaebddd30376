"""Where agents are put: which node takes which when one is drained, and which agents move so that nodes carry alike. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple

from perdure.engine.log.records import AgentName

__all__ = ["By", "Carried", "Level", "Move", "level"]

By = Literal["agents", "bytes", "load"]
"""What nodes carry: agents, bytes of their states, or events a second."""
TOLERANCE: Final = 0.1
"""Nodes that differ by no more than this part of the mean carry alike."""


class Carried(NamedTuple):
    """An agent and what it weighs."""

    name: AgentName
    weight: float


class Move(NamedTuple):
    """An agent that shall go from one node to another."""

    name: AgentName
    source: str
    target: str
    weight: float


class Level(NamedTuple):
    """What the nodes carry before and after the moves. resting: agents that stay because they were moved a moment ago, or are being moved;
    rest_until: when all of them may be moved again, roughly; None where none rests."""

    moves: list[Move]
    before: dict[str, float]
    after: dict[str, float]
    resting: int = 0
    rest_until: datetime | None = None


def level(
    nodes: Mapping[str, Sequence[Carried]],
    rooms: Mapping[str, int],
    fixed: Mapping[str, float],
    *,
    moves_max: int,
    tolerance: float = TOLERANCE,
) -> Level:
    """The moves that bring the nodes together.

    nodes: by node, the agents that may be moved. rooms: by node, how many more agents it takes. fixed: what each carries besides. Each move goes
    from the node that carries most to the one that carries least and has room, and takes the agent that brings the two closest; it ends where no
    move brings two nodes closer, or they carry alike.
    """
    movable = {node: sorted(agents, key=lambda agent: (agent.weight, agent.name)) for node, agents in nodes.items()}
    carried = {node: fixed.get(node, 0.0) + sum(agent.weight for agent in agents) for node, agents in movable.items()}
    left = dict(rooms)
    before = dict(carried)
    moves: list[Move] = []
    mean = sum(carried.values()) / max(len(carried), 1)
    while len(moves) < moves_max and len(carried) > 1:
        lightest = min((node for node in carried if left[node] > 0), key=lambda node: (carried[node], node), default=None)
        heaviest = max((node for node in carried if movable[node]), key=lambda node: (carried[node], node), default=None)
        if lightest is None or heaviest is None or heaviest == lightest:
            break
        gap = carried[heaviest] - carried[lightest]
        if gap <= tolerance * mean:
            break
        best = min(movable[heaviest], key=lambda agent: (abs(gap - 2 * agent.weight), agent.name))
        if not 0 < best.weight < gap:
            break
        movable[heaviest].remove(best)
        carried[heaviest] -= best.weight
        carried[lightest] += best.weight
        left[lightest] -= 1
        left[heaviest] += 1
        moves.append(Move(best.name, heaviest, lightest, best.weight))
    return Level(moves, before, carried)
