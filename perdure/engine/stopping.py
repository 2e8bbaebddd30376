"""Resting in a loop that somebody else ends."""

from __future__ import annotations

import asyncio

__all__ = ["rest"]


async def rest(stop: asyncio.Event, timeout_s: float) -> None:
    """Return after `timeout_s`, or as soon as `stop` is set."""
    try:
        await asyncio.wait_for(stop.wait(), timeout_s)
    except TimeoutError:
        return
