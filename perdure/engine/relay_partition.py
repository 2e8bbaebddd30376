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
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Position, SealedEvent
from perdure.engine.relay_pages import TAIL_EVENTS, Pages
from perdure.engine.steps import reach
from perdure.errors import IntegrityError, PerdureError, Unavailable

__all__ = ["SCOPE", "Kept", "PartitionRelay", "decode_kept"]

SCOPE: Final = "relay"
"""Scope of the documents that hold positions; their names are the partitions' numbers."""
KEEP_EVENTS_MAX: Final = 10_000
KEEP_INTERVAL_S: Final = 0.5
"""The position is written after so many events or so much time: what a successor publishes twice at most."""
KEEP_IDLE_S: Final = 0.05
"""It is written, too, when nothing more has come for so long; not sooner, for each writing is a commit of the log's database."""
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

    lease_until: on the monotonic clock; renewed from outside. Where the log stands is told from outside too, by `tell` and `feed`.
    """

    def __init__(self, store: LogStore, bus: Bus, partition: int, *, lease_epoch: int, lease_until: float, page_events: int) -> None:
        self.partition = partition
        self.lease_epoch = lease_epoch
        self.lease_until = lease_until
        self.position = Kept(0, "", 0)
        self.problem: PerdureError | None = None
        self._store = store
        self._bus = bus
        self._pages = Pages(store, partition, page_events)
        self._alone = False
        self._revision = 0
        self._written = Kept(0, "", 0)
        self._written_at = 0.0
        self._marked_at = 0.0
        self._stopping = False
        self._wake = asyncio.Event()

    def tell(self, target: Position) -> None:
        """The log's partition stands here now."""
        self._pages.tell(target)
        if self._pages.ready(self.position.offset):
            self._wake.set()

    @property
    def tail_after(self) -> int | None:
        """After which offset the common look shall bring events; None: it need not."""
        return None if self.problem is not None else self._pages.tail_after

    def feed(self, events: Sequence[SealedEvent]) -> None:
        """Events that the common look has brought."""
        self._pages.feed(events)
        if self._pages.ready(self.position.offset):
            self._wake.set()

    def stop(self) -> None:
        """End after what is on its way."""
        self._stopping = True
        self._wake.set()

    @property
    def lag_events(self) -> int:
        """Events of the log that are not on the bus."""
        return max(0, self._pages.target.offset - self.position.offset)

    @property
    def lag_s(self) -> float:
        """Age of the oldest event that is not on the bus (by this machine's clock)."""
        oldest_us = self._pages.oldest_us or self._pages.target.time_us
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
            await self._pages.forget()

    async def _work(self) -> None:
        while not self._stopping:
            self._check_lease()
            if time.monotonic() - self._marked_at >= MARK_INTERVAL_S:
                await self._check_mark()
            events = await self._pages.next(self.position.offset, alone=self._alone)
            self._alone = False
            if not events:
                await self._rest()
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
        await self._pages.forget()
        self.position = Kept(0, mark.incarnation, mark.end)
        await self._keep()
        reach("relay.rewound")

    async def _publish(self, events: Sequence[SealedEvent]) -> None:
        self._check_lease()
        mark = await self._bus.publish(self.partition, events)
        reach("relay.published")
        if mark.incarnation != self.position.incarnation or mark.end < self.position.end + len(events):
            await self._rewind(mark)
            return
        self.position = Kept(events[-1].offset, mark.incarnation, mark.end)
        self._marked_at = time.monotonic()

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
        await self._pages.forget()
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

    async def _rest(self) -> None:
        """Wait until there is more, or it is time to look at the bus. The position is written once nothing has come for a moment, or at once when
        much was published: it has just caught up."""
        if self.position.offset - self._written.offset > TAIL_EVENTS:
            await self._keep()
        if not await self._woken(KEEP_IDLE_S):
            await self._keep()
            # What the common look cannot bring, because it was removed, is asked for alone.
            self._alone = not await self._woken(MARK_INTERVAL_S)

    async def _woken(self, timeout_s: float) -> bool:
        self._wake.clear()
        if self._stopping or self._pages.ready(self.position.offset):
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True
