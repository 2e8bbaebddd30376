"""A bounded stream from the event loop into a thread."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator, Sequence
from typing import Final

from perdure.errors import Unavailable

__all__ = ["Feed"]

BATCHES_WAITING_MAX: Final = 2
ABANDONED_S: Final = 300.0
"""A thread that is told nothing for so long ends by itself: its event loop is gone."""


class Feed:
    """The loop's side `put`s batches and then `end`s; the thread's side iterates over what is in them. Made on the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._space = asyncio.Semaphore(BATCHES_WAITING_MAX)
        self._queue: queue.SimpleQueue[Sequence[bytes] | None] = queue.SimpleQueue()
        self._whole = False

    async def put(self, batch: Sequence[bytes]) -> None:
        """Hand over the next batch, as soon as the thread has used one of those before it."""
        await self._space.acquire()
        self._queue.put(batch)

    def end(self, *, whole: bool) -> None:
        """No more comes. whole: all was put; else the thread's iteration fails."""
        self._whole = whole
        self._queue.put(None)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                batch = self._queue.get(timeout=ABANDONED_S)
            except queue.Empty:
                batch = None
            if batch is None:
                if not self._whole:
                    raise Unavailable("reading was broken off")
                return
            yield from batch
            self._loop.call_soon_threadsafe(self._space.release)
