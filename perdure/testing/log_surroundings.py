"""What a backend's test can do to a log by means that are no part of its contract: the adversarial cases of the kit ask for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentRecord, SealedEvent

__all__ = ["Opener", "Surroundings"]

Opener = Callable[[], Awaitable[LogStore]]
"""Opens a log once more. To be given to child processes it must survive pickling (a module's function, a `functools.partial`)."""


class Surroundings(Protocol):
    """Around one new log."""

    def transaction_elsewhere(self) -> AbstractAsyncContextManager[None]:
        """Meanwhile a transaction that has written stays open in another database of the same server."""
        ...

    def idle_session(self) -> AbstractAsyncContextManager[None]:
        """Meanwhile a session of somebody else stays in the middle of a transaction that has read the whole log, and does nothing."""
        ...

    async def restored(self) -> Opener:
        """Dump the log and restore it where transaction ids are lower than those that the log was written with; what opens it there."""
        ...

    async def place(self, event: SealedEvent) -> None:
        """Put an event's row where it says, though nothing stands before it. Openings from before need not know of it."""
        ...

    async def erase(self, agent: AgentRecord) -> None:
        """Destroy the agent's data key."""
        ...
