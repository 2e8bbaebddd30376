"""Resting in a loop that somebody else ends, and ending what must be ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["rest", "to_the_end"]


async def rest(stop: asyncio.Event, timeout_s: float) -> None:
    """Return after `timeout_s`, or as soon as `stop` is set."""
    try:
        await asyncio.wait_for(stop.wait(), timeout_s)
    except TimeoutError:
        return


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await it as a whole: who is cancelled meanwhile goes when it has ended, so that nothing goes on behind his back. Raises what it raises."""
    ending = asyncio.ensure_future(work)
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await asyncio.wait((ending,))
        raise
