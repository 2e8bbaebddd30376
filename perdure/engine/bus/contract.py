"""The contract of a bus: what the relay publishes to and projectors consume from.

- A bus has as many partitions as the log; an event is published to the partition that it has in the log.
- Per partition, messages come out in the order in which they were published. The same message may come twice; consumers drop it by version.
- `publish` returns when every message is acknowledged by the bus (Kafka: all in-sync replicas). It may raise `Unavailable` half-way; the
  relay then publishes from its last kept position again.
- A bus may lose everything (a topic recreated); `end` tells, and the relay rewinds from the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from perdure.engine.log.records import SealedEvent

__all__ = ["TOPIC_MISSING", "Bus", "BusMark", "Consumer", "Delivery"]

TOPIC_MISSING: Final = "topic_missing"
"""`details["reason"]` of the Unavailable that a bus raises which can be reached and has no topic: `ensure` makes it."""


class BusMark(NamedTuple):
    """How a bus's partition stands. incarnation: changes when the topic was deleted and made anew. end: messages ever published to it."""

    incarnation: str
    end: int


class Delivery(NamedTuple):
    """One message: the event, or None with the reason when its bytes are not an event, and its place on the bus."""

    partition: int
    bus_offset: int
    event: SealedEvent | None
    problem: str = ""


class Consumer(Protocol):
    """One member of a consumer group."""

    async def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to `limit` messages from the partitions that this member has now; empty at the timeout."""
        ...

    async def commit(self, positions: Mapping[int, int]) -> None:
        """Keep, per partition, the bus offset to go on from (the last handled + 1)."""
        ...

    async def lag(self) -> dict[int, int]:
        """Per assigned partition, messages published and not yet committed by the group."""
        ...

    async def close(self) -> None: ...


class Bus(Protocol):
    """A bus: Kafka, or in-process."""

    async def ensure(self, partitions: int) -> None:
        """Make the topic when it is missing; a topic with another number of partitions raises ConfigurationError."""
        ...

    async def publish(self, partition: int, events: Sequence[SealedEvent]) -> BusMark:
        """Publish in order; return how the partition stands after it."""
        ...

    async def mark(self, partition: int) -> BusMark:
        """How the partition stands."""
        ...

    async def read(self, partition: int, after: int, limit: int) -> list[Delivery]:
        """Messages from bus offset `after` on, outside any group (for verify)."""
        ...

    async def consumer(self, group: str) -> Consumer: ...

    async def close(self) -> None: ...
