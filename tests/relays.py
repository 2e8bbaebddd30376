"""Relays as tests run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from perdure.engine.bus.contract import Bus
from perdure.engine.log.contract import LogStore
from perdure.engine.relay import Relay
from perdure.testing.log_filling import fill

__all__ = ["drained", "fill_all", "running", "until"]


@asynccontextmanager
async def running(store: LogStore, bus: Bus, **options: Any) -> AsyncIterator[Relay]:
    """A relay that works for as long as the block runs."""
    relay = Relay(store, bus, **options)
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop))
    try:
        yield relay
    finally:
        stop.set()
        await task


async def drained(relay: Relay, deadline_s: float) -> None:
    """Wait until it has published all that is in the log."""
    async with asyncio.timeout(deadline_s):
        await relay.drain()


async def until(condition: Callable[[], bool], deadline_s: float) -> None:
    """Wait for something that nobody tells of."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.02)


async def fill_all(store: LogStore, count: int) -> None:
    """So many events into every partition."""
    for partition in range(store.partitions):
        await fill(store, partition, count)
