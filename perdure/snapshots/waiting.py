"""Agents that are due for a snapshot, in the order in which they became due, and the positions that this holds back. Pure.

A partition's position is kept no further than where the first agent became due that has no snapshot yet. So whatever a process that dies had
not finished is found again by whoever reads on from there.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from perdure.engine.log.records import AgentName
from perdure.snapshots.cadence import Trigger

__all__ = ["Due", "Waiting"]


class Due(NamedTuple):
    """An agent to snapshot, and why. weight_bytes: about what its state takes in memory."""

    name: AgentName
    agent_key: int
    partition: int
    trigger: Trigger
    weight_bytes: int


class Waiting:
    """`add` what is due, `take` the next, `done` with it. An agent is there once, whether it waits or is being worked on."""

    def __init__(self) -> None:
        self._held: dict[int, OrderedDict[int, int]] = {}
        self._queue: deque[Due] = deque()

    def __len__(self) -> int:
        return sum(len(agents) for agents in self._held.values())

    @property
    def queued(self) -> int:
        """Those that nobody works on yet."""
        return len(self._queue)

    def add(self, due: Due, after: int) -> bool:
        """Let it wait; False when it does already. after: the offset before the page in which it became due."""
        held = self._held.setdefault(due.partition, OrderedDict())
        if due.agent_key in held:
            return False
        held[due.agent_key] = after
        self._queue.append(due)
        return True

    def take(self) -> Due | None:
        """The one that waits longest."""
        return self._queue.popleft() if self._queue else None

    def done(self, due: Due) -> None:
        """It has its snapshot, or will not get one."""
        self._held.get(due.partition, OrderedDict()).pop(due.agent_key, None)

    def position(self, partition: int, read: int) -> int:
        """How far the partition is done when it is read up to `read`."""
        held = self._held.get(partition)
        return next(iter(held.values())) if held else read

    def drop(self, partition: int) -> None:
        """Another process has the partition now."""
        self._held.pop(partition, None)
        self._queue = deque(due for due in self._queue if due.partition != partition)
