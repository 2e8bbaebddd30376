"""Many agents: rolling migrations, draining a node, bringing nodes to carry alike; a bounded number at once, and not for ever.

Storm control: at most `at_once` migrations of one run are open (a target drives only a few of them at a time), a run ends after a number of
failures in a row, and `rebalance` leaves alone what was moved a moment ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput, PerdureError
from perdure.limits import MIGRATIONS_AT_ONCE_MAX
from perdure.migration.records import Migration

__all__ = ["AT_ONCE_DEFAULT", "FAILURES_MAX", "MOVES_DEFAULT", "REST_S", "Failed", "FleetReport", "check_at_once", "each_at_once"]

AT_ONCE_DEFAULT: Final = 64
MOVES_DEFAULT: Final = 100
"""Moves of one rebalance."""
FAILURES_MAX: Final = 10
"""Failures in a row after which a run stops: something is wrong with the target."""
REST_S: Final = 60.0
"""An agent that was moved is not moved by `rebalance` before this."""
REPORTED_MAX: Final = 1_000
"""Failures that a report names; the others are counted."""


class Failed(msgspec.Struct, frozen=True):
    """An agent that was not moved, and why."""

    tenant: str
    agent: str
    reason: str


class FleetReport(msgspec.Struct):
    """What came of moving many. left: agents that were not tried, because the run was stopped or they are pinned."""

    group: str
    moved: int = 0
    failed: list[Failed] = []
    failures: int = 0
    left: int = 0
    pinned: int = 0
    stopped: bool = False
    duration_s: float = 0.0
    downtime_ms: list[float] = []

    @property
    def ok(self) -> bool:
        """Whether every agent that was to be moved was."""
        return not self.failures and not self.left


def check_at_once(at_once: int) -> int:
    """The number, when it can be one. Raises InvalidInput."""
    if not 1 <= at_once <= MIGRATIONS_AT_ONCE_MAX:
        raise InvalidInput(f"{at_once} migrations at once", hint=f"1 to {MIGRATIONS_AT_ONCE_MAX}")
    return at_once


async def each_at_once(
    names: Iterable[AgentName] | AsyncIterator[AgentName],
    move: Callable[[AgentName], Awaitable[Migration]],
    report: FleetReport,
    *,
    at_once: int,
    seen: Callable[[Migration], None] | None = None,
) -> None:
    """Move each, `at_once` at a time, and count into the report; stopped after `FAILURES_MAX` failures in a row."""
    waiting = _aiter(names)
    turn = asyncio.Lock()
    in_a_row = 0

    async def work() -> None:
        nonlocal in_a_row
        while True:
            async with turn:
                name = await anext(waiting, None)
            if name is None:
                return
            if report.stopped:
                report.left += 1
                continue
            reason = ""
            try:
                done = await move(name)
            except PerdureError as problem:
                reason = problem.message
            else:
                if seen is not None:
                    seen(done)
                reason = "" if done.phase == "committed" else done.error or done.phase
            if reason:
                in_a_row += 1
                report.failures += 1
                if len(report.failed) < REPORTED_MAX:
                    report.failed.append(Failed(name.tenant, name.agent, reason))
                report.stopped = in_a_row >= FAILURES_MAX
            else:
                in_a_row = 0
                report.moved += 1
                report.downtime_ms.append(done.downtime_target_ms)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())


async def _aiter(names: Iterable[AgentName] | AsyncIterator[AgentName] | Sequence[AgentName]) -> AsyncIterator[AgentName]:
    if isinstance(names, AsyncIterator):
        async for name in names:
            yield name
    else:
        for name in names:
            yield name
