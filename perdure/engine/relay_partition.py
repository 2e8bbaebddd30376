"""One partition's way from the log to the bus, for as long as its lease lasts.

The position is kept beside the log under compare-and-set. Who loses that comparison has been replaced and stops. What a replaced relay may
still publish are messages that its successor publishes too; consumers drop the second of them by version.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from perdure.engine.bus.contract import Bus, BusMark
from perdure.engine.log.contract import LogStore, Position, SealedEvent
from perdure.engine.steps import reach
from perdure.errors import Compacted, IntegrityError, PerdureError, Unavailable
from perdure.limits import MIB

__all__ = ["SCOPE", "Kept", "PartitionRelay", "decode_kept"]

SCOPE: Final = "relay"
"""Scope of the documents that hold positions; their names are the partitions' numbers."""
PAGE_BYTES: Final = 4 * MIB
"""What a page should hold at most: the next page's number of events follows from the last one's bytes."""
KEEP_EVENTS_MAX: Final = 10_000
KEEP_INTERVAL_S: Final = 0.2
"""The position is written after so many events or so much time: what a successor publishes twice at most."""
MARK_INTERVAL_S: Final = 1.0
"""How often the bus is asked whether it is still the one that we published to."""
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
PROBLEM_PAUSE_S: Final = 5.0
"""Between two tries when the log or the settings are wrong, which no quick retry heals."""

_log = logging.getLogger(__name__)


class Kept(msgspec.Struct, frozen=True):
    """A kept position: log offsets up to `offset` are on the bus of this incarnation, whose partition then ended at `end`."""

    offset: int
    incarnation: str
    end: int


class Replaced(Exception):
    """Another relay has this partition now, or may have it."""


def decode_kept(value: bytes) -> Kept:
    """A position as it is stored; IntegrityError when it is not one."""
    try:
        return msgspec.msgpack.decode(value, type=Kept)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"a relay's position cannot be read: {error}", hint="delete it: everything is then published again") from error


class PartitionRelay:
    """Publishes one partition; `run` returns when it is stopped or replaced.

    lease_until: on the monotonic clock; renewed from outside. target: where the log stands, told from outside by `tell`.
    """

    def __init__(self, store: LogStore, bus: Bus, partition: int, *, lease_epoch: int, lease_until: float, page_events: int) -> None:
        self.partition = partition
        self.lease_epoch = lease_epoch
        self.lease_until = lease_until
        self.target = Position(0, 0)
        self.position = Kept(0, "", 0)
        self.problem: PerdureError | None = None
        self._store = store
        self._bus = bus
        self._limit = self._page_events = page_events
        self._revision = 0
        self._written = Kept(0, "", 0)
        self._written_at = 0.0
        self._marked_at = 0.0
        self._oldest_us = 0
        self._dense_after = 0
        self._ahead: asyncio.Task[list[SealedEvent]] | None = None
        self._stopping = False
        self._wake = asyncio.Event()

    def tell(self, target: Position) -> None:
        """The log's partition stands here now."""
        if target.offset != self.target.offset:
            self.target = target
            self._wake.set()

    def stop(self) -> None:
        """End after what is on its way."""
        self._stopping = True
        self._wake.set()

    @property
    def lag_events(self) -> int:
        """Events of the log that are not on the bus."""
        return max(0, self.target.offset - self.position.offset)

    @property
    def lag_s(self) -> float:
        """Age of the oldest event that is not on the bus (by this machine's clock)."""
        oldest_us = self._oldest_us or self.target.time_us
        return max(0.0, time.time() - oldest_us / 1e6) if self.lag_events else 0.0

    async def run(self) -> None:
        """Publish until stopped or replaced. Servers that are away are waited for."""
        retry_s = RETRY_FIRST_S
        loaded = False
        try:
            while not self._stopping:
                try:
                    if not loaded:
                        await self._load()
                        loaded = True
                    await self._check_mark()
                    self.problem = None
                    retry_s = RETRY_FIRST_S
                    await self._work()
                except Unavailable as error:
                    await self._failed(error, retry_s)
                    retry_s = min(RETRY_MAX_S, retry_s * 2)
                except PerdureError as error:
                    _log.exception("the relay of partition %d stands still", self.partition)
                    await self._failed(error, PROBLEM_PAUSE_S)
            await self._keep()
        except Replaced as reason:
            _log.info("partition %d is left to another relay: %s", self.partition, reason)
        except Unavailable as error:
            _log.warning("the position of partition %d could not be kept at the end: %s", self.partition, error)
        finally:
            await self._forget_page()

    async def _work(self) -> None:
        while not self._stopping:
            self._check_lease()
            if time.monotonic() - self._marked_at >= MARK_INTERVAL_S:
                await self._check_mark()
            events = await self._page()
            if not events:
                await self._keep()
                await self._wait()
                continue
            await self._publish(events)
            unkept = self.position.offset - self._written.offset
            if unkept >= KEEP_EVENTS_MAX or time.monotonic() - self._written_at >= KEEP_INTERVAL_S:
                await self._keep()

    async def _load(self) -> None:
        document = await self._store.get_document(SCOPE, str(self.partition))
        self._revision = 0 if document is None else document.revision
        self.position = self._written = Kept(0, "", 0) if document is None else decode_kept(document.value)

    async def _check_mark(self) -> None:
        self._marked_at = time.monotonic()
        mark = await self._bus.mark(self.partition)
        if mark.incarnation != self.position.incarnation or mark.end < self.position.end:
            await self._rewind(mark)

    async def _rewind(self, mark: BusMark) -> None:
        """The bus has lost what we published: from the beginning again."""
        if self.position.offset:
            _log.warning("the bus lost partition %d; it is published again from the log", self.partition)
        await self._forget_page()
        self.position = Kept(0, mark.incarnation, mark.end)
        await self._keep()
        reach("relay.rewound")

    async def _page(self) -> list[SealedEvent]:
        """The next events, dense from the position on; the page after them is being read already."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            if self.target.offset <= self.position.offset:
                self._oldest_us = 0
                return []
            ahead = self._read(self.position.offset)
        try:
            events = await asyncio.shield(ahead)
        except asyncio.CancelledError:
            ahead.cancel()
            raise
        except Compacted as removed:
            # What is left of them is published; for the others, consumers have the agents' states.
            self._dense_after = int(removed.details["first_offset"]) - 1
            events = await self._read(self.position.offset)
        self._check_dense(events)
        if not events:
            return events
        self._oldest_us = events[0].time_us
        size = sum(len(event.payload) for event in events)
        self._limit = max(1, min(self._page_events, PAGE_BYTES * len(events) // max(1, size)))
        if self.target.offset > events[-1].offset:
            self._ahead = self._read(events[-1].offset)
        reach("relay.read")
        return events

    def _read(self, after: int) -> asyncio.Task[list[SealedEvent]]:
        return asyncio.ensure_future(self._store.read(self.partition, after, self._limit, sparse=after < self._dense_after))

    def _check_dense(self, events: Sequence[SealedEvent]) -> None:
        before = self.position.offset
        for event in events:
            expected, before = max(before, min(self._dense_after, event.offset - 1)) + 1, event.offset
            if event.offset != expected or event.partition != self.partition:
                raise IntegrityError(f"partition {self.partition} of the log has offset {event.offset} where {expected} should be")

    async def _publish(self, events: Sequence[SealedEvent]) -> None:
        self._check_lease()
        mark = await self._bus.publish(self.partition, events)
        reach("relay.published")
        if mark.incarnation != self.position.incarnation or mark.end < self.position.end + len(events):
            await self._rewind(mark)
            return
        self.position = Kept(events[-1].offset, mark.incarnation, mark.end)

    async def _keep(self) -> None:
        """Write the position when it has moved; Replaced when somebody else wrote it since."""
        if self.position == self._written or not self.position.incarnation:
            return
        self._check_lease()
        value = msgspec.msgpack.encode(self.position)
        document = await self._store.put_document(SCOPE, str(self.partition), value, expected=self._revision)
        if document is None:
            raise Replaced("its position was written by another")
        self._revision, self._written, self._written_at = document.revision, self.position, time.monotonic()
        reach("relay.kept")

    def _check_lease(self) -> None:
        if time.monotonic() >= self.lease_until:
            raise Replaced("the lease was not renewed in time")

    async def _failed(self, error: PerdureError, pause_s: float) -> None:
        """Rest after a failure, with jitter, so that the partitions do not come back in step. Nothing is held meanwhile."""
        if self.problem is None or self.problem.code != error.code:
            _log.warning("partition %d is not relayed for now: %s", self.partition, error)
        self.problem = error
        await self._forget_page()
        self._check_lease()
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
        if not self._stopping and isinstance(error, Unavailable):
            await self._ensure()

    async def _ensure(self) -> None:
        """The topic may be what is away: make it again."""
        try:
            await self._bus.ensure(self._store.partitions)
        except Unavailable as error:
            self.problem = error

    async def _wait(self) -> None:
        """Until the log has grown, or it is time to look at the bus."""
        if self.target.offset > self.position.offset or self._stopping:
            return
        self._wake.clear()
        try:
            async with asyncio.timeout(MARK_INTERVAL_S):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _forget_page(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()
