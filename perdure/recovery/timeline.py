"""Events of many agents as they happened: the partitions of the log, merged by time, and the pace at which they are shown again."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from perdure.engine.event import RecordedEvent
from perdure.engine.log.contract import LogStore
from perdure.engine.log.marks import HIDDEN, mark_of
from perdure.engine.log.records import AgentName, EventFilter, SealedEvent, to_microseconds
from perdure.engine.moves import arrived
from perdure.engine.vault import Vault
from perdure.errors import InvalidInput

__all__ = ["PAUSE_MAX_S", "Pace", "parse_speed", "timeline"]

PAGE: Final = 500
PAUSE_MAX_S: Final = 3_600.0
"""No pause between two events is shown longer than this."""
AGENTS_KNOWN_MAX: Final = 100_000
LOOK_UP_MAX: Final = 100
_SPEED_MAX: Final = 1e9


async def timeline(store: LogStore, vault: Vault, tenant: str | None, where: EventFilter) -> AsyncIterator[RecordedEvent]:
    """Events of a tenant (None: of every tenant) that pass the filter, in the order of their times; within an agent in order of version.

    Events of an agent that came from another engine come when it did. Those of agents whose key was destroyed cannot be had, and those of agents that
    are not here, or not yet (a transfer to here was broken off, or is on its way), are not shown. Of each partition one page is held. Ends where the
    log stood when it began.
    """
    shown = _Shown(store)
    ends = {partition: position.offset for partition, position in (await store.positions()).items()}
    streams = [_partition(store, shown, tenant, partition, end, where) for partition, end in ends.items() if end]
    heap: list[tuple[int, int, int, SealedEvent]] = []
    for number, stream in enumerate(streams):
        async for event in stream:
            heap.append((event.time_us, number, event.offset, event))
            break
    heapq.heapify(heap)
    while heap:
        _, number, _, event = heap[0]
        (opened,) = await vault.open_all([event])
        yield opened
        following = await anext(streams[number], None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following.time_us, number, following.offset, following))


class _Shown:
    """Which agents' events are shown; each is looked up once, but for what so many agents take in memory."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._known: dict[AgentName, bool] = {}

    async def of(self, page: Sequence[SealedEvent]) -> list[SealedEvent]:
        """The events of a page that are shown."""
        if len(self._known) > AGENTS_KNOWN_MAX:
            self._known.clear()
        names = list({AgentName(event.tenant, event.agent) for event in page} - self._known.keys())
        for start in range(0, len(names), LOOK_UP_MAX):
            few = names[start : start + LOOK_UP_MAX]
            for name, record in zip(few, await self._store.agents(few), strict=True):
                mark = None if record is None else mark_of(record.owner)
                self._known[name] = record is not None and bool(record.data_key) and (mark is None or mark.kind not in HIDDEN)
        return [event for event in page if self._known[AgentName(event.tenant, event.agent)]]


async def _partition(
    store: LogStore, shown: _Shown, tenant: str | None, partition: int, end: int, where: EventFilter
) -> AsyncIterator[SealedEvent]:
    after = (await store.partition_floors()).get(partition, 0)
    in_order = not await arrived(store)
    while after < end:
        if tenant is None:
            page = await store.read(partition, after, PAGE)
        else:
            page = await store.read_tenant(tenant, partition, after, where, PAGE)
        for event in await shown.of(page):
            late = where.until_us is not None and event.time_us > where.until_us
            if event.offset > end or (late and in_order):
                return
            if late:
                continue
            if tenant is not None or _passes(event, where):
                yield event
        if not page:
            return
        after = page[-1].offset


def _passes(event: SealedEvent, where: EventFilter) -> bool:
    return (
        (not where.types or event.type in where.types)
        and (where.since_us is None or event.time_us >= where.since_us)
        and (where.correlation_id is None or event.correlation_id == where.correlation_id)
        and (where.trace_id is None or event.trace_id == where.trace_id)
    )


def parse_speed(text: str) -> float:
    """`1x` is as it happened, `10x` ten times as fast, `max` without a pause (0). Raises InvalidInput."""
    if text == "max":
        return 0.0
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed <= _SPEED_MAX:
        raise InvalidInput(f"{text!r} is no speed", hint="write 1x, 10x, 0.5x or max")
    return speed


class Pace:
    """Waits between events as long as they were apart, divided by the speed (0: never)."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._began: tuple[float, int] | None = None

    async def wait_for(self, event: RecordedEvent) -> None:
        """Return when it is this event's turn. Being late once does not slow down what follows."""
        if not self._speed:
            return
        at_us = to_microseconds(event.time)
        now = time.monotonic()
        if self._began is None:
            self._began = (now, at_us)
        began_at, first_us = self._began
        due = began_at + (at_us - first_us) / 1e6 / self._speed
        if due - now > PAUSE_MAX_S:
            self._began = (now + PAUSE_MAX_S, at_us)
            due = now + PAUSE_MAX_S
        if due > now:
            await asyncio.sleep(due - now)
