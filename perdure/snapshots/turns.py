"""Writing and sweeping take turns, so that no chunk is swept away from under a snapshot that is just being written.

A snapshot's chunks are in the store before the row that names them, and some of them may have been there long before: chunks that no row names
any more, which the sweep is about to delete. So a process that writes holds a lease, and the sweep holds another. Each takes its own first and
looks for the other's second; whatever the order, one of them sees the other:

- a writer that sees the sweep gives its lease back and waits until the sweep is over;
- the sweep waits until no writer is left, reads which chunks are named, and only then deletes.

A process that died holds up the sweep until its lease runs out. One that stood still longer than that finds by `Turn.lost` that the sweep may
have been there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final
from uuid import uuid4

from perdure import limits
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Lease
from perdure.engine.stopping import to_the_end
from perdure.errors import Conflict, Unavailable

__all__ = ["SWEEPING", "WRITING", "Turn", "Turns", "take"]

WRITING: Final = "snapshots/writing/"
"""A writing process holds one of these, by number: so that the table of leases stays as small as there were processes at once."""
SWEEPING: Final = "snapshots/sweeping"
LEASE_S: Final = 30.0
POLL_S: Final = 0.1


class Turn:
    """A lease that is renewed as long as it is needed."""

    def __init__(self, store: LogStore, lease: Lease, asked_s: float) -> None:
        self._store = store
        self._lease = lease
        self._until_s = asked_s + LEASE_S
        self._broken = False

    @property
    def lost(self) -> bool:
        """Whether the lease has, or may have, run out at any time since it was taken."""
        return self._broken or time.monotonic() >= self._until_s

    async def keep(self) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            asked_s = time.monotonic()
            with suppress(Unavailable):  # tried again, until it has run out
                lease = await self._store.acquire_lease(self._lease.name, self._lease.holder, LEASE_S)
                # Another epoch: it ran out, and was free to be taken in between.
                self._broken = self.lost or lease is None or lease.epoch != self._lease.epoch
                self._until_s = asked_s + LEASE_S

    async def give_back(self) -> None:
        """Let others go on at once; where the log is away, they go on when the lease has run out."""
        with suppress(Unavailable):
            await self._store.release_lease(self._lease)


async def take(store: LogStore, name: str, holder: str) -> Turn | None:
    """Take a lease, None while somebody else has it. Whoever is cancelled meanwhile leaves none behind."""
    asked_s = time.monotonic()
    taking = asyncio.create_task(store.acquire_lease(name, holder, LEASE_S))
    try:
        lease = await asyncio.shield(taking)
    except asyncio.CancelledError:
        await asyncio.wait((taking,))
        if taking.exception() is None and (lease := taking.result()) is not None:
            await to_the_end(Turn(store, lease, asked_s).give_back())
        raise
    return None if lease is None else Turn(store, lease, asked_s)


class Turns:
    """The turns of one process. Any number of tasks may write at once; they share one lease."""

    def __init__(self, store: LogStore, *, wait_s: float = limits.SNAPSHOT_TURN_WAIT_S) -> None:
        self._store = store
        self._holder = uuid4().hex
        self._wait_s = wait_s
        self._changed = asyncio.Condition()
        self._writers = 0
        self._turn: Turn | None = None
        self._keeping: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Turn]:
        """Write within; raises Unavailable when a sweep does not end in time."""
        turn = await self._begin()
        try:
            yield turn
        finally:
            await to_the_end(self._end())

    async def _begin(self) -> Turn:
        async with self._changed:
            stale = self._turn
            if stale is not None and (stale.lost or await self._store.list_leases(SWEEPING)):
                # The sweep waits for the last of us: whoever comes now comes after it.
                await self._changed.wait_for(lambda: self._turn is not stale)
            if self._turn is None:
                self._turn = await self._take()
                self._keeping = asyncio.create_task(self._turn.keep(), name="perdure-snapshot-turn")
            self._writers += 1
            return self._turn

    async def _end(self) -> None:
        async with self._changed:
            self._writers -= 1
            if self._writers or self._turn is None or self._keeping is None:
                return
            turn, keeping, self._turn, self._keeping = self._turn, self._keeping, None, None
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await turn.give_back()
            self._changed.notify_all()

    async def _take(self) -> Turn:
        deadline_s = time.monotonic() + self._wait_s
        while True:
            turn = await self._take_slot()
            try:
                if not await self._store.list_leases(SWEEPING):
                    return turn
            except BaseException:
                await to_the_end(turn.give_back())
                raise
            await turn.give_back()
            await _pause(deadline_s, "chunks that nobody needs are being swept away")

    async def _take_slot(self) -> Turn:
        taken = {lease.name for lease in await self._store.list_leases(WRITING)}
        for number in range(limits.SNAPSHOT_WRITERS_MAX):
            name = f"{WRITING}{number}"
            if name not in taken and (turn := await take(self._store, name, self._holder)) is not None:
                return turn
        raise Unavailable(f"{limits.SNAPSHOT_WRITERS_MAX} processes write snapshots at once", hint="try again later")

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[Turn]:
        """Sweep within: nobody writes. Raises Conflict while another process sweeps, Unavailable when writers do not end in time."""
        turn = await take(self._store, SWEEPING, self._holder)
        if turn is None:
            raise Conflict("another process sweeps the store already")
        keeping = asyncio.create_task(turn.keep(), name="perdure-snapshot-sweep")
        try:
            deadline_s = time.monotonic() + self._wait_s
            while await self._store.list_leases(WRITING):
                await _pause(deadline_s, "snapshots are being written")
            yield turn
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await to_the_end(turn.give_back())


async def _pause(deadline_s: float, reason: str) -> None:
    if time.monotonic() >= deadline_s:
        raise Unavailable(reason, hint="try again later")
    await asyncio.sleep(POLL_S)
