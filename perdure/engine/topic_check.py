"""Whether log and topic agree, event by event.

Both are streamed in offset order with bounded memory. A topic may hold an event several times (a relay that was replaced, a rewind), and a
late duplicate may stand anywhere; so every message is compared with the log's own event at its offset, and what is missing is kept as ranges.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import msgspec

from perdure.engine.bus.contract import TOPIC_MISSING, Bus, BusMark, Delivery
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Position, SealedEvent
from perdure.engine.relay_partition import SCOPE, Kept, decode_kept
from perdure.errors import IntegrityError, Unavailable
from perdure.limits import READ_PAGE_EVENTS

__all__ = ["PartitionReport", "Progress", "TopicReport", "check_topic"]

PAGES_REMEMBERED: Final = 4
"""Pages of the log kept per partition, so that a rewound topic does not read it message by message."""
RANGES_MAX: Final = 10_000
"""Separate missing ranges remembered per partition; a topic with more is too broken to go on."""
PROBLEMS_MAX: Final = 20
"""Problems told in words per partition; the counts go on."""

Progress = Callable[[int, int], None]
"""progress(partition, messages compared so far in it)"""
Read = Callable[[int], Awaitable[None]]


class PartitionReport(msgspec.Struct):
    """One partition, compared up to where log and topic stood when it began.

    events: in the log. messages: on the topic. duplicates: messages of events that stood there before. missing: ranges of log offsets
    (first, last) that the topic lacks. behind: the last of them that the relay has not published yet. expired: of the oldest, how many the
    topic's retention has removed. extra: messages without an event in the log. altered: not as in the log. unreadable: no events at all.
    """

    partition: int
    events: int
    messages: int = 0
    duplicates: int = 0
    missing: list[tuple[int, int]] = []
    behind: int = 0
    expired: int = 0
    extra: int = 0
    altered: int = 0
    unreadable: int = 0
    problems: list[str] = []

    @property
    def sound(self) -> bool:
        """What was published, and retention has left, stands on the topic as in the log, and nothing else does."""
        return not (self.missing or self.extra or self.altered or self.unreadable)

    @property
    def agrees(self) -> bool:
        """It is sound, and everything has been published."""
        return self.sound and not self.behind


class TopicReport(msgspec.Struct):
    """All partitions."""

    partitions: list[PartitionReport]

    @property
    def sound(self) -> bool:
        """Nothing on the topic contradicts the log; the relay may be behind."""
        return all(each.sound for each in self.partitions)

    @property
    def agrees(self) -> bool:
        """Every partition agrees."""
        return all(each.agrees for each in self.partitions)

    @property
    def behind(self) -> int:
        """Events that the relay has not published yet."""
        return sum(each.behind for each in self.partitions)

    @property
    def events(self) -> int:
        """Events in the log."""
        return sum(each.events for each in self.partitions)


async def check_topic(
    store: LogStore,
    bus: Bus,
    *,
    partitions: Iterable[int] | None = None,
    progress: Progress | None = None,
    read: Read | None = None,
) -> TopicReport:
    """Compare every event of the log with the topic. A difference is reported, not raised; servers that are away raise Unavailable.

    A topic that was never made is one that the relay is behind with. partitions: only these; read(messages) is awaited after every page.
    """
    positions = await store.positions()
    floors = await store.partition_floors()
    kept = {int(document.name): decode_kept(document.value) for document in await store.list_documents(SCOPE)}
    reports = []
    for partition in range(store.partitions) if partitions is None else partitions:
        mark = await _mark(bus, partition)
        position = positions.get(partition, Position(0, 0))
        comparison = _Comparison(store, bus, partition, position.offset, floors[partition])
        reports.append(await comparison.run(mark, kept.get(partition), progress, read))
    return TopicReport(reports)


async def _mark(bus: Bus, partition: int) -> BusMark:
    try:
        return await bus.mark(partition)
    except Unavailable as problem:
        if problem.details.get("reason") != TOPIC_MISSING:
            raise
        return BusMark("", 0)


class _Comparison:
    def __init__(self, store: LogStore, bus: Bus, partition: int, events: int, floor: int) -> None:
        self._store = store
        self._bus = bus
        self._partition = partition
        self._report = PartitionReport(partition, events)
        # Up to the floor events may have been removed from the log, and may be missing on the topic with them.
        self._floor = floor
        self._next = floor + 1
        self._missing: list[tuple[int, int]] = []
        self._pages: OrderedDict[int, dict[int, SealedEvent]] = OrderedDict()

    async def run(self, mark: BusMark, kept: Kept | None, progress: Progress | None, read: Read | None) -> PartitionReport:
        after = 0
        while after < mark.end:
            page = await self._bus.read(self._partition, after, READ_PAGE_EVENTS)
            if not page:
                break
            for delivery in page:
                if delivery.bus_offset < mark.end:
                    await self._compare(delivery)
            after = page[-1].bus_offset + 1
            if progress is not None:
                progress(self._partition, self._report.messages)
            if read is not None:
                await read(len(page))
        if not self._report.messages and mark.end and kept is not None and kept.incarnation == mark.incarnation:
            # All that was published has expired: how much that was, only the relay knows.
            self._report.expired = kept.offset
            self._next = max(self._next, kept.offset + 1)
        self._finish()
        return self._report

    async def _compare(self, delivery: Delivery) -> None:
        report = self._report
        report.messages += 1
        event = delivery.event
        if event is None:
            report.unreadable += 1
            self._tell(delivery, delivery.problem)
            return
        expected = await self._expected(event.offset)
        if expected is None and event.offset <= self._floor:
            return
        if expected is None:
            report.extra += 1
            self._tell(delivery, f"the log has no offset {event.offset}")
            return
        # A bus need not carry the log's interned keys.
        if event != msgspec.structs.replace(expected, agent_key=event.agent_key, tenant_key=event.tenant_key):
            report.altered += 1
            self._tell(delivery, f"offset {event.offset} is not as in the log")
            return
        if report.messages == 1 and delivery.bus_offset > 0:
            report.expired = event.offset - 1
            self._next = max(self._next, event.offset)
        if event.offset > self._floor:
            self._seen(event.offset)

    def _tell(self, delivery: Delivery, problem: str) -> None:
        if len(self._report.problems) < PROBLEMS_MAX:
            self._report.problems.append(f"message {delivery.bus_offset}: {problem}")

    def _seen(self, offset: int) -> None:
        if offset >= self._next:
            if offset > self._next:
                self._missing.append((self._next, offset - 1))
            if len(self._missing) > RANGES_MAX:
                raise IntegrityError(f"partition {self._partition} of the topic lacks more than {RANGES_MAX} ranges of the log")
            self._next = offset + 1
        elif not self._fill(offset):
            self._report.duplicates += 1

    def _fill(self, offset: int) -> bool:
        """Take an offset out of what is missing; False when it was not missing."""
        for index, (first, last) in enumerate(self._missing):
            if first <= offset <= last:
                parts = [(first, offset - 1), (offset + 1, last)]
                self._missing[index : index + 1] = [part for part in parts if part[0] <= part[1]]
                return True
        return False

    def _finish(self) -> None:
        report = self._report
        report.missing = self._missing
        report.behind = max(0, report.events - self._next + 1)

    async def _expected(self, offset: int) -> SealedEvent | None:
        start = (offset - 1) // READ_PAGE_EVENTS * READ_PAGE_EVENTS
        page = self._pages.pop(start, None)
        if page is None or (offset not in page and len(page) < READ_PAGE_EVENTS):  # a page at the log's end may have grown
            page = {event.offset: event for event in await self._store.read(self._partition, start, READ_PAGE_EVENTS, sparse=True)}
        self._pages[start] = page
        if len(self._pages) > PAGES_REMEMBERED:
            self._pages.popitem(last=False)
        return page.get(offset)
