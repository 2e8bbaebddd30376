"""A bound on bytes that are in memory at once, by estimates that are taken before and given back after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["ByteBudget"]


class ByteBudget:
    """Whoever wants more than the whole budget waits until nobody has any, and then works alone."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._taken = 0
        self._users = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size_bytes: int) -> AsyncIterator[None]:
        """Have so many bytes within."""
        size_bytes = min(size_bytes, self._bytes_max)
        async with self._changed:
            await self._changed.wait_for(lambda: self._taken + size_bytes <= self._bytes_max)
            self._taken += size_bytes
            self._users += 1
        try:
            yield
        finally:
            self._taken -= size_bytes
            self._users -= 1
            async with self._changed:
                self._changed.notify_all()

    async def idle(self) -> None:
        """Until nobody has any."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._users)
