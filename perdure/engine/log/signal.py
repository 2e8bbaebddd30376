"""Waking the readers of a process when the same process has appended."""

from __future__ import annotations

import asyncio

__all__ = ["Signal", "SignalHub"]


class SignalHub:
    """What a store notifies after each append, on the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self.waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake every waiter."""
        self.count += 1
        for future in self.waiting:
            if not future.done():
                future.set_result(None)


class Signal:
    """One reader's view: an append between two calls of `wait` is not missed."""

    def __init__(self, hub: SignalHub) -> None:
        self._hub = hub
        self._seen = hub.count

    async def wait(self, timeout_s: float) -> None:
        """Return soon after an append of this process (at once when there was one since the last wait), or at the timeout."""
        if self._seen == self._hub.count:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._hub.waiting.add(future)
            try:
                await asyncio.wait([future], timeout=timeout_s)
            finally:
                self._hub.waiting.discard(future)
        self._seen = self._hub.count
