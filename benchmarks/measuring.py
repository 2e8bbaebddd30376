"""Percentiles, closed and open load, and an event loop as a user would choose it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from perdure.processes import calm_collector, run_lasting

__all__ = ["closed_load", "median", "open_load", "percentile", "run"]

Result = TypeVar("Result")
TICK_S = 0.001
"""How often an open load looks which requests are due."""


def run(main: Coroutine[Any, Any, Result] | Awaitable[Result]) -> Result:
    """Run in uvloop where it is installed, and without tracing what was imported again and again, as docs/operations.md advises."""
    calm_collector()

    async def whole() -> Result:
        return await main

    return run_lasting(whole())


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 … 1) of the values do not exceed. Raises ValueError without values."""
    if not values:
        raise ValueError("there is nothing to take a percentile of")
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


def median(values: Sequence[float]) -> float:
    """The 50th percentile."""
    return percentile(values, 0.5)


async def closed_load(callers: int, duration_s: float, work: Callable[[int], Awaitable[None]]) -> tuple[float, list[float]]:
    """Each caller works again as soon as it is done, once at least. Returns done per second and every latency in seconds.

    work: given the caller's number.
    """
    latencies: list[float] = []
    started = time.perf_counter()
    end = started + duration_s

    async def caller(number: int) -> None:
        before, first = time.perf_counter(), True
        while first or before < end:
            await work(number)
            after = time.perf_counter()
            latencies.append(after - before)
            before, first = after, False

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return len(latencies) / (time.perf_counter() - started), latencies


async def open_load(rate: float, duration_s: float, work: Callable[[], Awaitable[None]]) -> list[float]:
    """Requests begin at their intended times, however long others take; latencies in seconds count from those times."""
    latencies: list[float] = []
    started = time.perf_counter()

    async def one(intended: float) -> None:
        await work()
        latencies.append(time.perf_counter() - intended)

    total = max(1, int(rate * duration_s))
    sent = 0
    # The first failure ends the others and is raised.
    async with asyncio.TaskGroup() as group:
        while sent < total:
            due = min(total, 1 + int((time.perf_counter() - started) * rate))
            while sent < due:
                group.create_task(one(started + sent / rate))
                sent += 1
            await asyncio.sleep(TICK_S)
    return latencies
