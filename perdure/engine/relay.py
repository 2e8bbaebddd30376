"""The relay: publishes the log to the bus, in order, at least once, for ever.

Any number of relays share the partitions. Each partition has one owner, by a lease of the log's store; every relay counts the living ones
and owns at most its fair share. A relay that dies is replaced when its leases expire (docs/adr/0004-relay.md).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import socket
import time
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import uuid4

import msgspec

from perdure.engine.bus.contract import Bus
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Lease, Position, SealedEvent
from perdure.engine.relay_pages import TAIL_EVENTS
from perdure.engine.relay_partition import SCOPE, PartitionRelay, decode_kept
from perdure.engine.steps import reach
from perdure.errors import Unavailable
from perdure.limits import READ_PAGE_EVENTS

__all__ = ["PartitionStatus", "Relay"]

LEASE_DURATION_S: Final = 3.0
LEASE_MARGIN_S: Final = 0.5
"""An owner stops so much earlier than the store lets another in."""
RENEW_INTERVAL_S: Final = LEASE_DURATION_S / 3
POLL_HOT_S: Final = 0.003
"""How soon the log is looked at again after it has grown (or after as long as that look took, so that a slow log is not asked all the time);
without growth the interval grows to POLL_IDLE_S."""
POLL_IDLE_S: Final = 0.05
POLL_MIN_S: Final = 0.002
"""A writer of the same process wakes the relay, but not more often than this: a little later, more events go at once."""
POSITIONS_INTERVAL_S: Final = 0.25
"""How often partitions that are far behind learn where the log stands."""
POLL_GROWTH: Final = 1.5
RETRY_S: Final = 0.5
DRAIN_POLL_S: Final = 0.02
STOP_TIMEOUT_S: Final = 15.0
NOWHERE: Final = 2**62
"""An offset beyond every log's end."""

_log = logging.getLogger(__name__)


class PartitionStatus(msgspec.Struct, frozen=True):
    """How a partition is relayed. owner: '' when nobody has it. offset and lags: None where another relay knows them."""

    partition: int
    owner: str
    offset: int | None = None
    lag_events: int | None = None
    lag_s: float | None = None
    problem: str = ""


class Relay:
    """One relay process's share of the partitions."""

    def __init__(self, store: LogStore, bus: Bus, *, holder: str | None = None, page_events: int = READ_PAGE_EVENTS) -> None:
        self.holder = holder or f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._store = store
        self._bus = bus
        self._page_events = page_events
        self._owned: dict[int, PartitionRelay] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._leases: dict[int, Lease] = {}
        self._owners: dict[int, str] = {}
        self._positions: dict[int, Position] = {}
        self._positions_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set. Servers that are away are waited for; a mistake in settings at the start raises."""
        watching = asyncio.create_task(self._watch())
        try:
            await self._ensure(stop)
            while not stop.is_set():
                try:
                    await self._tend()
                except Unavailable as error:
                    _log.warning("leases cannot be renewed: %s", error)
                await self._wait(stop, watching)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await self._give_back()

    async def drain(self) -> None:
        """Until everything that is in the log now is on the bus, whichever relay publishes it. IntegrityError if this cannot be."""
        target = await self._store.positions()
        while not await self._drained(target):
            for owned in self._owned.values():
                if owned.problem is not None and not owned.problem.retryable:
                    raise owned.problem
            await asyncio.sleep(DRAIN_POLL_S)

    def status(self) -> list[PartitionStatus]:
        """Every partition, in order."""
        return [self._status(partition) for partition in range(self._store.partitions)]

    def _status(self, partition: int) -> PartitionStatus:
        owned = self._owned.get(partition)
        if owned is None or self._tasks[partition].done():
            # Work that has ended (its lease could not be renewed) is no ownership, although nobody could be told yet.
            owner = self._owners.get(partition, "")
            return PartitionStatus(partition, "" if owner == self.holder else owner)
        problem = "" if owned.problem is None else owned.problem.message
        return PartitionStatus(partition, self.holder, owned.position.offset, owned.lag_events, owned.lag_s, problem)

    async def _drained(self, target: dict[int, Position]) -> bool:
        kept = {document.name: decode_kept(document.value) for document in await self._store.list_documents(SCOPE)}
        for partition, position in target.items():
            found = kept.get(str(partition))
            if position.offset and (found is None or found.offset < position.offset):
                return False
        for partition, position in target.items():
            if position.offset:
                mark = await self._bus.mark(partition)
                found = kept[str(partition)]
                if mark.incarnation != found.incarnation or mark.end < found.end:
                    return False
        return True

    async def _ensure(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._bus.ensure(self._store.partitions)
                return
            except Unavailable as error:
                _log.warning("the bus cannot be reached: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _watch(self) -> None:
        """One look at the log for all partitions, again and again."""
        signal = self._store.signal()
        interval_s = POLL_HOT_S
        while True:
            started_at = time.monotonic()
            try:
                grown = await self._look()
            except Unavailable as error:
                _log.warning("the log cannot be read: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            took_s = time.monotonic() - started_at
            interval_s = max(POLL_HOT_S, took_s) if grown else min(POLL_IDLE_S, interval_s * POLL_GROWTH)
            await signal.wait(interval_s)
            if (early_s := started_at + POLL_MIN_S - time.monotonic()) > 0:
                await asyncio.sleep(early_s)

    async def _look(self) -> bool:
        """Bring partitions that are near the log's end their events, and tell the others where it stands. Whether anything was new."""
        owned = dict(self._owned)
        near = {partition: each.tail_after for partition, each in owned.items()}
        events: list[SealedEvent] = []
        if any(after is not None for after in near.values()):
            # Always of the same partitions, so that the store meets the same question again.
            after = {partition: NOWHERE if offset is None else offset for partition, offset in near.items()}
            events = await self._store.read_tails(after, TAIL_EVENTS)
        full = False
        for partition, group in groupby(events, key=attrgetter("partition")):
            tail = list(group)
            full |= len(tail) == TAIL_EVENTS
            owned[partition].feed(tail)
        return await self._look_far(soon=full) or bool(events)

    async def _look_far(self, *, soon: bool) -> bool:
        now = time.monotonic()
        if not soon and now - self._positions_at < POSITIONS_INTERVAL_S:
            return False
        positions = await self._store.positions()
        grown = positions != self._positions
        self._positions, self._positions_at = positions, now
        for partition, owned in self._owned.items():
            owned.tell(positions.get(partition, Position(0, 0)))
        return grown

    async def _wait(self, stop: asyncio.Event, watching: asyncio.Task[None]) -> None:
        """Until the next renewal is due. What no retry heals ends the relay here."""
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([stopping, watching], timeout=RENEW_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if watching.done():
            watching.result()

    async def _tend(self) -> None:
        """Renew, give back what is above the fair share, take what is free below it."""
        await self._store.acquire_lease(f"relay-member/{self.holder}", self.holder, LEASE_DURATION_S)
        await self._reap()
        await asyncio.gather(*(self._take(partition) for partition in list(self._owned)))
        members = len(await self._store.list_leases("relay-member/"))
        share = math.ceil(self._store.partitions / max(1, members))
        for partition in sorted(self._owned)[share:]:
            await self._drop(partition)
        await self._take_free(share)

    async def _take_free(self, share: int) -> None:
        self._owners = {int(lease.name.partition("/")[2]): lease.holder for lease in await self._store.list_leases("relay/")}
        free = [partition for partition in range(self._store.partitions) if partition not in self._owners]
        random.shuffle(free)  # so that relays that start together do not ask for the same one
        for partition in free:
            if len(self._owned) >= share:
                break
            await self._take(partition)

    async def _take(self, partition: int) -> None:
        """Take or renew the lease of a partition. The store's duration counts from before we asked: never too long."""
        asked_at = time.monotonic()
        lease = await self._store.acquire_lease(f"relay/{partition}", self.holder, LEASE_DURATION_S)
        until = asked_at + (0.0 if lease is None else lease.expires_in_s) - LEASE_MARGIN_S
        owned = self._owned.get(partition)
        if owned is not None and (lease is None or lease.epoch != owned.lease_epoch):
            await self._end(partition)  # somebody else had it in between
            owned = None
        if lease is None:
            return
        self._leases[partition] = lease
        self._owners[partition] = self.holder
        if owned is not None:
            owned.lease_until = until
            return
        reach("relay.leased")
        self._begin(partition, lease, until)

    def _begin(self, partition: int, lease: Lease, until: float) -> None:
        owned = PartitionRelay(self._store, self._bus, partition, lease_epoch=lease.epoch, lease_until=until, page_events=self._page_events)
        owned.tell(self._positions.get(partition, Position(0, 0)))
        self._owned[partition] = owned
        self._positions_at = 0.0  # what is known may be older than the partition's events
        self._tasks[partition] = asyncio.create_task(owned.run())

    async def _reap(self) -> None:
        """Partitions whose work has ended by itself: replaced, or (a mistake of ours) raised."""
        for partition in [partition for partition, task in self._tasks.items() if task.done()]:
            await self._drop(partition)

    async def _drop(self, partition: int) -> None:
        await self._end(partition)
        if (lease := self._leases.pop(partition, None)) is not None:
            await self._store.release_lease(lease)
            self._owners.pop(partition, None)

    async def _end(self, partition: int) -> None:
        """Stop a partition's work; patience has an end, as the broker may be away."""
        self._owned[partition].stop()
        task = self._tasks[partition]
        _, late = await asyncio.wait([task], timeout=LEASE_DURATION_S - LEASE_MARGIN_S - RENEW_INTERVAL_S)
        if late:
            task.cancel()
            await asyncio.wait([task])
        del self._owned[partition], self._tasks[partition]
        if not task.cancelled():
            task.result()

    async def _give_back(self) -> None:
        """At the end: keep positions and let others in at once."""
        for owned in self._owned.values():
            owned.stop()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                for partition in list(self._owned):
                    await self._drop(partition)
                for lease in await self._store.list_leases(f"relay-member/{self.holder}"):
                    await self._store.release_lease(lease)
        except (Unavailable, TimeoutError) as error:
            _log.warning("leases could not be given back, they expire by themselves: %s", error)
        finally:
            for task in self._tasks.values():
                task.cancel()
