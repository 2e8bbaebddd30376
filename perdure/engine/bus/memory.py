"""The in-process bus: what an embedded engine uses in place of Kafka.

It is bounded, and a log stands behind it, which decides what happens when a partition is full:

- Messages that every group with living members has committed are dropped first.
- Is it still full, `publish` waits for the slowest of these groups, for a bounded time, then raises `Overloaded`; the relay tries again. So a
  slow consumer slows the relay (never the appends), and memory stays flat.
- Groups without a living member hold nobody up: without any consumer the oldest messages are simply dropped.
- When a group comes whose position has been dropped, the partition starts a new *incarnation*, empty. The relay sees it and publishes from
  the log's beginning again. No consumer ever skips a message. Bus offsets go on from the old end, so a late commit can do no harm.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final
from uuid import uuid4

from perdure.engine.bus.contract import BusMark, Delivery
from perdure.engine.log.records import SealedEvent
from perdure.errors import ConfigurationError, Overloaded, Unavailable
from perdure.limits import MIB

__all__ = ["MemoryBus"]

RETAINED_MESSAGES_MAX: Final = 10_000
"""Messages kept per partition."""
RETAINED_BYTES_MAX: Final = 16 * MIB
"""Sealed bytes kept per partition; a single larger message stands alone."""
ROOM_TIMEOUT_S: Final = 1.0
"""How long `publish` waits for consumers to make room."""


class _Partition:
    """The retained messages start at the bus offset `base`."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.base = 0
        self.messages: deque[SealedEvent] = deque()
        self.bytes = 0

    @property
    def end(self) -> int:
        return self.base + len(self.messages)

    def append(self, event: SealedEvent) -> None:
        self.messages.append(event)
        self.bytes += len(event.payload)

    def drop_oldest(self) -> None:
        self.bytes -= len(self.messages.popleft().payload)
        self.base += 1

    def slice(self, after: int, limit: int) -> list[SealedEvent]:
        start = max(after, self.base) - self.base
        return list(islice(self.messages, start, start + limit))


class _Group:
    """Positions are bus offsets to go on from; a partition that is missing starts at 0."""

    def __init__(self) -> None:
        self.positions: dict[int, int] = {}
        self.members: list[MemoryConsumer] = []


class MemoryBus:
    """A `Bus` inside one event loop."""

    def __init__(self, *, retained_messages_max: int = RETAINED_MESSAGES_MAX, room_timeout_s: float = ROOM_TIMEOUT_S) -> None:
        self._retained_messages_max = retained_messages_max
        self._room_timeout_s = room_timeout_s
        self._partitions: list[_Partition] = []
        self._groups: dict[str, _Group] = {}
        self._room = asyncio.Event()
        self._closed = False

    async def ensure(self, partitions: int) -> None:
        """Make the partitions; ConfigurationError when there is another number of them."""
        if not self._partitions:
            self._partitions = [_Partition(uuid4().hex) for _ in range(partitions)]
            self._rebalance_all()
        if len(self._partitions) != partitions:
            raise ConfigurationError(f"the bus has {len(self._partitions)} partitions, not {partitions}")

    async def publish(self, partition: int, events: Sequence[SealedEvent]) -> BusMark:
        """Publish in order. Overloaded when living consumers do not make room in time."""
        target = self._partition(partition)
        for event in events:
            await self._make_room(partition, target, len(event.payload))
            target.append(event)
        self._wake_consumers()
        return BusMark(target.incarnation, target.end)

    async def mark(self, partition: int) -> BusMark:
        """How the partition stands."""
        target = self._partition(partition)
        return BusMark(target.incarnation, target.end)

    async def read(self, partition: int, after: int, limit: int) -> list[Delivery]:
        """Retained messages from bus offset `after` on."""
        target = self._partition(partition)
        start = max(after, target.base)
        return [Delivery(partition, start + index, event) for index, event in enumerate(target.slice(start, limit))]

    async def consumer(self, group: str) -> MemoryConsumer:
        """A new member of the group."""
        found = self._groups.setdefault(group, _Group())
        member = MemoryConsumer(self, found)
        found.members.append(member)
        self._restart_dropped(found)
        self._rebalance(found)
        return member

    async def close(self) -> None:
        """Everybody who waits is told that the bus is away."""
        self._closed = True
        self._room.set()
        self._wake_consumers()

    def _partition(self, partition: int) -> _Partition:
        if self._closed:
            raise Unavailable("the in-process bus is closed")
        if not 0 <= partition < len(self._partitions):
            raise ConfigurationError(f"the bus has no partition {partition}", hint="`ensure` makes the partitions")
        return self._partitions[partition]

    async def _make_room(self, partition: int, target: _Partition, size: int) -> None:
        deadline = asyncio.get_running_loop().time() + self._room_timeout_s
        while self._full(target, size):
            if target.base < self._floor(partition, target):
                target.drop_oldest()
                continue
            self._room.clear()
            self._wake_consumers()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._room.wait()
            except TimeoutError:
                raise Overloaded(
                    f"partition {partition} of the in-process bus is full of messages that nobody has committed",
                    hint="its consumers are slow or stand still; the relay tries again",
                ) from None
            self._partition(partition)

    def _full(self, target: _Partition, size: int) -> bool:
        too_many = len(target.messages) >= self._retained_messages_max
        return bool(target.messages) and (too_many or target.bytes + size > RETAINED_BYTES_MAX)

    def _floor(self, partition: int, target: _Partition) -> int:
        """Below this bus offset no living group needs anything."""
        return min((group.positions.get(partition, 0) for group in self._groups.values() if group.members), default=target.end)

    def _restart_dropped(self, group: _Group) -> None:
        for number, target in enumerate(self._partitions):
            if group.positions.get(number, 0) < target.base:
                self._restart(number, target)

    def _restart(self, number: int, target: _Partition) -> None:
        target.base = target.end
        target.messages.clear()
        target.bytes = 0
        target.incarnation = uuid4().hex
        for group in self._groups.values():
            group.positions[number] = target.base
            for member in group.members:
                if number in member.fetched:
                    member.fetched[number] = target.base
        self._room.set()

    def _committed(self) -> None:
        self._room.set()

    def _leave(self, group: _Group, member: MemoryConsumer) -> None:
        group.members.remove(member)
        self._room.set()
        self._rebalance(group)

    def _rebalance_all(self) -> None:
        for group in self._groups.values():
            self._rebalance(group)

    def _rebalance(self, group: _Group) -> None:
        """Every member gets its share; what moved is delivered from the committed position on."""
        for index, member in enumerate(group.members):
            share = range(index, len(self._partitions), len(group.members))
            member.fetched = {number: member.fetched.get(number, group.positions.get(number, 0)) for number in share}
            member.wake.set()

    def _wake_consumers(self) -> None:
        for group in self._groups.values():
            for member in group.members:
                member.wake.set()


class MemoryConsumer:
    """A member of a group of a `MemoryBus`. fetched: per assigned partition, the bus offset to deliver next."""

    def __init__(self, bus: MemoryBus, group: _Group) -> None:
        self._bus = bus
        self._group = group
        self._closed = False
        self.fetched: dict[int, int] = {}
        self.wake = asyncio.Event()

    async def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to `limit` messages of the partitions it has now; empty at the timeout."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            self.wake.clear()
            if deliveries := self._take(limit):
                return deliveries
            try:
                async with asyncio.timeout_at(deadline):
                    await self.wake.wait()
            except TimeoutError:
                return []

    async def commit(self, positions: Mapping[int, int]) -> None:
        """Keep the positions of partitions that it still has; others are somebody else's now and come again."""
        for number, position in positions.items():
            if number in self.fetched and position <= self.fetched[number]:
                self._group.positions[number] = max(position, self._group.positions.get(number, 0))
        self._bus._committed()

    async def lag(self) -> dict[int, int]:
        """Per assigned partition, messages published and not committed."""
        marks = {number: await self._bus.mark(number) for number in self.fetched}
        return {number: mark.end - self._group.positions.get(number, 0) for number, mark in marks.items()}

    async def close(self) -> None:
        """Leave the group."""
        if not self._closed:
            self._closed = True
            self.fetched = {}
            self._bus._leave(self._group, self)

    def _take(self, limit: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for number, after in list(self.fetched.items()):
            events = self._bus._partition(number).slice(after, limit - len(deliveries))
            deliveries += [Delivery(number, after + index, event) for index, event in enumerate(events)]
            if events:
                # Behind the others next time, so that a busy partition does not starve them.
                del self.fetched[number]
                self.fetched[number] = after + len(events)
            if len(deliveries) >= limit:
                break
        return deliveries
