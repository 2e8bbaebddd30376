"""A node takes over what was assigned to it, many agents together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName
from perdure.errors import Fenced, NotServed, Unavailable
from perdure.recovery.assignments import Assignment, assigned, settle
from perdure.recovery.leases import KeptLease
from perdure.recovery.ticks import tick

__all__ = ["TakeOvers"]

ASSIGNMENTS_POLL_S: Final = 0.1
TAKE_TOGETHER_MAX: Final = 256
"""Assigned agents that are taken over before it is told which."""


class TakeOvers:
    """take: makes one agent the node's, from the epoch given; those that are taken at once share the log's commits."""

    def __init__(self, log: EventLog, node: str, take: Callable[[AgentName, int], Awaitable[None]]) -> None:
        self._log = log
        self._node = node
        self._take = take

    async def follow(self, lease: KeptLease) -> None:
        """Take over what is assigned, as long as the node's lease is not lost."""
        while not lease.lost.is_set():
            # With the log away nothing can be taken; the lease tells when to stop.
            with contextlib.suppress(Unavailable, Fenced):
                await self.take_assigned()
            await tick(ASSIGNMENTS_POLL_S)

    async def take_assigned(self) -> int:
        """Take over what was assigned to this node; how many agents."""
        wanted = await assigned(self._log.store, self._node)
        for start in range(0, len(wanted), TAKE_TOGETHER_MAX):
            await self._take_together(wanted[start : start + TAKE_TOGETHER_MAX])
        return len(wanted)

    async def _take_together(self, wanted: Sequence[Assignment]) -> None:
        names = [AgentName(each.tenant, each.agent) for each in wanted]
        await self._look_up(names)
        takes = (self._take(name, each.epoch) for name, each in zip(names, wanted, strict=True))
        done = await asyncio.gather(*takes, return_exceptions=True)
        await self._look_up(names)  # who is commanded next need not ask for his row
        settled = [each for each, problem in zip(wanted, done, strict=True) if problem is None or isinstance(problem, NotServed)]
        await settle(self._log.store, self._node, settled)
        for problem in done:
            if isinstance(problem, BaseException) and not isinstance(problem, NotServed | Unavailable):
                raise problem

    async def _look_up(self, names: Sequence[AgentName]) -> None:
        """Read the agents' rows anew, many at once: one by one they would take longer than all the rest of a take-over."""
        for name in names:
            self._log.vault.forget(name)
        await self._log.vault.look_up(names)
