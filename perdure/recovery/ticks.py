"""Moments at which everything of a process that looks at the log by the clock looks together.

Questions that are asked at the same moment go to the log as one (`engine.log.together`): a node that nobody wants anything from then asks half as
often as it looks.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

__all__ = ["tick"]

_moments: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, asyncio.Future[None]]] = WeakKeyDictionary()


async def tick(interval_s: float) -> None:
    """Return at the next moment of this event loop's that are `interval_s` apart, with all others that wait for it: so much later at most."""
    loop = asyncio.get_running_loop()
    moments = _moments.setdefault(loop, {})
    moment = moments.get(interval_s)
    if moment is None:
        moment = moments[interval_s] = loop.create_future()
        loop.call_later(interval_s, _come, moments, interval_s)
    await asyncio.wait([moment])  # one that waits no more takes nothing from the others


def _come(moments: dict[float, asyncio.Future[None]], interval_s: float) -> None:
    moments.pop(interval_s).set_result(None)
