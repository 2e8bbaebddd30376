"""What a writer knows of the log: where partitions and agents stand.

Partitions are dense, so a writer whose known position is still the newest one knows that every head it remembers is exact; otherwise the events
between make it exact again. Nothing here is ever trusted without that check, which the store makes under the partition's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from perdure import limits
from perdure.engine.log.chain import EMPTY_CHAIN
from perdure.engine.log.decide import head_after
from perdure.engine.log.records import AgentRecord, Head, Position, TailEvent
from perdure.engine.remembering import forget_oldest

__all__ = ["NOTHING", "KnownHeads", "first_head"]

NOTHING = Head(0, 0, EMPTY_CHAIN)
"""Where an agent stands before its first event."""


def first_head(agent: AgentRecord) -> Head:
    """Where an agent stands before its first own event: a fork at what it goes on from."""
    parent = agent.parent
    return NOTHING if parent is None else Head(parent.version, parent.epoch, parent.chain)


class KnownHeads:
    """Heads of at most `limit` agents, and positions of partitions."""

    def __init__(self, limit: int = limits.WRITER_HEADS_MAX) -> None:
        self._limit = limit
        self._heads: dict[int, Head] = {}
        self._partition: dict[int, int] = {}
        self.positions: dict[int, Position] = {}
        self._forgotten = 0
        self._passed: dict[int, int] = {}
        self._awaited: Counter[int] = Counter()

    def missing(self, agents: Iterable[int]) -> set[int]:
        """Which of these agents' heads are not known."""
        heads = self._heads
        return {agent for agent in agents if agent not in heads}

    def head(self, agent: int) -> Head | None:
        """Where one agent stands; None where it is not known."""
        return self._heads.get(agent)

    def view(self, agents: Iterable[int]) -> dict[int, Head]:
        """The heads of these agents, for one batch."""
        heads = self._heads
        return {agent: heads[agent] for agent in agents}

    @contextmanager
    def reading(self, agents: Collection[int]) -> Iterator[Callable[[Iterable[tuple[int, int, Head]]], bool]]:
        """While the heads of these agents are read: what others wrote to them meanwhile is kept, too, for the reading may be older than that.

        The block gets a function that takes over what was read, (agent, partition, head) each; False, and nothing is taken over, where everything of
        a partition was forgotten in between: its position may be read anew, and be newer than these heads."""
        forgotten = self._forgotten
        self._awaited.update(agents)

        def learn(found: Iterable[tuple[int, int, Head]]) -> bool:
            if forgotten != self._forgotten:
                return False
            for agent, partition, head in found:
                self._set(agent, partition, head)
            return True

        try:
            yield learn
        finally:
            self._awaited -= Counter(agents)

    def _set(self, agent: int, partition: int, head: Head) -> None:
        """One that is known to be newer stays."""
        known = self._heads.get(agent)
        if known is None or head.version > known.version:
            self._heads[agent] = head
            self._partition[agent] = partition

    def before_birth(self) -> tuple[dict[int, int], int]:
        """Take this before agents are made, and give it to `born` after."""
        return {partition: self._passed.get(partition, 0) for partition in self.positions}, self._forgotten

    def born(self, before: tuple[dict[int, int], int], agents: Iterable[tuple[int, int]], head: Head = NOTHING) -> None:
        """Agents (key, partition) that this process has just made: it is known where they stand, and they need not be asked for.

        It holds where the partition's position was known before they were made, and nothing of agents that are not known has passed since: whatever
        others write to them from then on comes in a tail.
        """
        passed, forgotten = before
        if forgotten == self._forgotten:
            for agent, partition in agents:
                if passed.get(partition) == self._passed.get(partition, 0):
                    self._heads.setdefault(agent, head)
                    self._partition.setdefault(agent, partition)

    def absorb(self, tail: Sequence[TailEvent]) -> None:
        """Events of others, in offset order within each partition."""
        for event in tail:
            # Of an agent that is not known nothing is remembered: whoever needs its head asks the log, which knows of this event, unless it is
            # being asked just now.
            head = self._heads.get(event.agent_key)
            if head is not None or event.agent_key in self._awaited:
                self._set(event.agent_key, event.partition, head_after(event.version, event.epoch, event.type, event.chain))
            else:
                self._passed[event.partition] = self._passed.get(event.partition, 0) + 1
        for event in {event.partition: event for event in tail}.values():
            self.positions[event.partition] = Position(event.offset, event.time_us)

    def commit(self, heads: Mapping[int, Head], partitions: Mapping[int, int], positions: Mapping[int, Position]) -> None:
        """What stands after a batch of our own."""
        known = self._heads
        for agent, head in heads.items():
            # Taken out and put back, so that the dictionary's order is the order of use.
            if known.pop(agent, None) is None:
                self._partition[agent] = partitions[agent]
            known[agent] = head
        self.positions.update(positions)
        for agent in forget_oldest(known, self._limit):
            del self._partition[agent]

    def forget(self, partitions: Iterable[int]) -> None:
        """Drop all that is known of these partitions."""
        gone = set(partitions)
        self._forgotten += 1
        for partition in gone:
            self.positions.pop(partition, None)
        for agent in [agent for agent, partition in self._partition.items() if partition in gone]:
            del self._heads[agent], self._partition[agent]
