"""Turns: what reads an agent and then writes it, one after the other within a process, so that only other processes can get in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from perdure.engine.log.records import AgentName

__all__ = ["Turns"]


class Turns:
    """A lock for each agent that somebody holds or waits for. Whoever came first goes first."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[AgentName, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, names: Iterable[AgentName]) -> AsyncIterator[None]:
        """It is the caller's turn with all of these agents."""
        async with AsyncExitStack() as stack:
            for name in sorted(set(names)):
                lock = self._locks.get(name) or self._locks.setdefault(name, asyncio.Lock())
                await stack.enter_async_context(lock)
            yield
