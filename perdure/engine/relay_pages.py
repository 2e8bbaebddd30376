"""A partition's next events, for its relay.

Near the end of the log one look at all partitions brings them (`feed`): a question for each of sixteen partitions, every few milliseconds,
would cost more than publishing. Further back the partition reads pages of its own, and while one is published the next is being read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Position, SealedEvent
from perdure.engine.steps import reach
from perdure.errors import Compacted, IntegrityError
from perdure.limits import KIB, MIB

__all__ = ["TAIL_EVENTS", "Pages"]

PAGE_BYTES: Final = MIB
"""What a page should hold at most: the next page's number of events follows from the last one's bytes."""
FIRST_EVENTS: Final = 256
"""Events of the first page, when it is not known yet how large they are."""
TAIL_EVENTS: Final = 64
"""So close to its end a partition is fed, and with so many events at once."""
TAIL_EVENT_BYTES: Final = 64 * KIB
"""A partition whose events are larger on average reads them itself, page by page."""


class Pages:
    """Events of one partition, each handed out once, dense from where it was asked for. target: where the log stands."""

    def __init__(self, store: LogStore, partition: int, page_events: int) -> None:
        self.target = Position(0, 0)
        self.oldest_us = 0
        self._store = store
        self._partition = partition
        self._page_events = page_events
        self._limit = min(page_events, FIRST_EVENTS)
        self._dense_after = 0
        self._read_to: int | None = None
        self._fed: list[SealedEvent] = []
        self._mean_bytes = 0
        self._torn = False
        self._ahead: asyncio.Task[list[SealedEvent]] | None = None

    @property
    def tail_after(self) -> int | None:
        """After which offset the common look shall bring events; None: this partition reads by itself."""
        full = len(self._fed) >= self._page_events or self._mean_bytes > TAIL_EVENT_BYTES
        if self._read_to is None or self._ahead is not None or full or self._torn:
            return None
        return self._read_to if self.target.offset - self._read_to <= TAIL_EVENTS else None

    def ready(self, after: int) -> bool:
        """Whether `next` has something to give, or to read."""
        return bool(self._fed) or (self.target.offset > after and self.tail_after is None)

    def tell(self, target: Position) -> None:
        """The log stands here."""
        if target.offset > self.target.offset:
            self.target = target

    def feed(self, events: Sequence[SealedEvent]) -> None:
        """Events of a common look. They are left when another read was faster, and where offsets are missing: `next` finds out why."""
        self.tell(Position(events[-1].offset, events[-1].time_us))
        if self.tail_after is None or events[0].offset <= self.tail_after:
            return
        if events[-1].offset != self.tail_after + len(events):
            self._torn = True
            return
        self._fed += events
        self._read_to = events[-1].offset
        self._measure(events)

    async def next(self, after: int, *, alone: bool = False) -> list[SealedEvent]:
        """Events from offset after+1 on, or none yet. alone: do not wait for the common look."""
        if self._fed and self._fed[0].offset != after + 1:
            await self.forget()
        if self._fed:
            events, self._fed = self._fed[: self._page_events], self._fed[self._page_events :]
        else:
            events = await self._page(after, alone)
        self._check_dense(after, events)
        self.oldest_us = events[0].time_us if events else 0
        if events:
            reach("relay.read")
        return events

    async def forget(self) -> None:
        """Drop what was read and not handed out."""
        self._fed, self._read_to = [], None
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()

    async def _page(self, after: int, alone: bool) -> list[SealedEvent]:
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            self._read_to = after
            if self.target.offset <= after or (self.tail_after is not None and not alone):
                return []
            ahead = self._read(after)
        try:
            events = await asyncio.shield(ahead)
        except asyncio.CancelledError:
            ahead.cancel()
            raise
        except Compacted as removed:
            # What is left of them is published; for the others, consumers have the agents' states.
            self._dense_after = int(removed.details["first_offset"]) - 1
            events = await self._read(after)
        self._fed, self._torn = [], False  # read by both: the page is as good
        if events:
            self._read_on(events)
        return events

    def _read_on(self, events: Sequence[SealedEvent]) -> None:
        self._read_to = events[-1].offset
        self._measure(events)
        if self.target.offset > self._read_to and self.tail_after is None:
            self._ahead = self._read(self._read_to)

    def _measure(self, events: Sequence[SealedEvent]) -> None:
        self._mean_bytes = max(1, sum(len(event.payload) for event in events) // len(events))
        self._limit = max(1, min(self._page_events, PAGE_BYTES // self._mean_bytes))

    def _read(self, after: int) -> asyncio.Task[list[SealedEvent]]:
        return asyncio.ensure_future(self._store.read(self._partition, after, self._limit, sparse=after < self._dense_after))

    def _check_dense(self, before: int, events: Sequence[SealedEvent]) -> None:
        for event in events:
            expected, before = max(before, min(self._dense_after, event.offset - 1)) + 1, event.offset
            if event.offset != expected or event.partition != self._partition:
                raise IntegrityError(f"partition {self._partition} of the log has offset {event.offset} where {expected} should be")
