"""A lease that is kept: renewed at a third of its time, and given up by its holder before anybody else can take it.

Invariant: while `holds()` is true here, no other holder has the lease. The store's clock decides who may take it; this process decides with its
own monotonic clock, counted from before it asked, so that a slow answer makes the lease shorter for the holder, never longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Final, Self

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Lease
from perdure.errors import Fenced, Unavailable

__all__ = ["LEASE_S", "KeptLease"]

LEASE_S: Final = 2.5
"""How long a lease holds without being renewed."""
_MARGIN: Final = 0.1
"""The part of a lease in which its holder does not trust it any more: clocks do not run equally fast."""


class KeptLease:
    """Acquire it with `acquire`; `async with` or `close` gives it back. lost: set when it was lost, for good."""

    def __init__(self, store: LogStore, lease: Lease, duration_s: float, asked_at: float) -> None:
        self.lease = lease
        self.lost = asyncio.Event()
        self._store = store
        self._duration_s = duration_s
        self._until = asked_at + duration_s * (1 - _MARGIN)
        self._asking: asyncio.Task[Lease | None] | None = None
        self._task = asyncio.create_task(self._keep(), name=f"perdure-lease-{lease.name}")

    @classmethod
    async def acquire(cls, store: LogStore, name: str, holder: str, duration_s: float = LEASE_S) -> Self | None:
        """The lease, renewed from now on; None while somebody else holds it. Raises Unavailable."""
        asked_at = time.monotonic()
        lease = await store.acquire_lease(name, holder, duration_s)
        return None if lease is None else cls(store, lease, duration_s, asked_at)

    @property
    def epoch(self) -> int:
        """Grows whenever the holder changes."""
        return self.lease.epoch

    def holds(self) -> bool:
        """Whether the holder may still act on it."""
        return not self.lost.is_set() and time.monotonic() < self._until

    async def close(self) -> None:
        """Give it back, so that the next holder need not wait."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        if self.holds():
            # Where the store is away the lease ends by itself.
            with contextlib.suppress(Unavailable):
                await self._store.release_lease(self.lease)
        self.lost.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _keep(self) -> None:
        while not self.lost.is_set():
            await asyncio.sleep(self._duration_s / 3)
            await self._renew()

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        asking = self._store.acquire_lease(self.lease.name, self.lease.holder, self._duration_s)
        self._asking = asyncio.create_task(asking, name=f"perdure-lease-{self.lease.name}")
        try:
            # Not cancelled and waited for: a store that is silent may take its time to stop asking, too.
            if not (await asyncio.wait([self._asking], timeout=max(self._until - asked_at, 0.01)))[0]:
                self.lost.set()
                return
            lease = self._asking.result()
        except Unavailable:
            # It may be renewed at the next turn, or run out; `holds` knows which.
            if time.monotonic() >= self._until:
                self.lost.set()
            return
        except Fenced:
            # The log begins a new generation; this process belongs to the old one.
            self.lost.set()
            return
        if lease is None or lease.epoch != self.lease.epoch:
            # Another held it in between: what this holder relied on is over.
            self.lost.set()
            return
        self._until = asked_at + self._duration_s * (1 - _MARGIN)
