"""The target's clock, known without asking it each time.

Invariant: `now_us` is never ahead of the store's clock as it was asked, but for what clocks drift apart while an answer is believed. It may be
behind by what an answer takes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["Clock"]

BELIEVED_S: Final = 10.0
ASKED_TIMES: Final = 3
"""The answer that came fastest says most: by it this clock is behind the least."""


class Clock:
    """Of one store; ask: its `clock_us`."""

    def __init__(self, ask: Callable[[], Awaitable[int]], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._monotonic = monotonic
        self._asked_s = 0.0
        self._offset_us = 0
        """From this process's monotonic clock; 0: never asked."""

    async def now_us(self) -> int:
        """Unix microseconds. Raises Unavailable."""
        if not self._offset_us or self._monotonic() - self._asked_s > BELIEVED_S:
            # Taken after the answer has come: the store's clock is that far by now, or further.
            self._offset_us = max([await self._ask() - int(self._monotonic() * 1e6) for _ in range(ASKED_TIMES)])
            self._asked_s = self._monotonic()
        return int(self._monotonic() * 1e6) + self._offset_us
