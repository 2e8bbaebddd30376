"""Who waits for the log's writer, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from perdure.engine.log.decide import Outcome, Request
from perdure.errors import DeadlineExceeded

__all__ = ["Deadlines", "Waiting", "tell"]


class Waiting(msgspec.Struct, gc=False):
    """One caller's request, where its outcome goes, and until when (the loop's time). It must hold nothing that refers back to it: gc=False."""

    request: Request
    done: asyncio.Future[Outcome]
    deadline_s: float
    timeout_s: float
    events: int
    size_bytes: int


def tell(told: Iterable[tuple[Waiting, Outcome]]) -> None:
    """Give their outcomes to those who still wait."""
    for waiting, outcome in told:
        if not waiting.done.done():
            waiting.done.set_result(outcome)


class Deadlines:
    """One timer for all that wait: one per append would cost more than the rest of handing it in. waiting: all who do, when asked."""

    def __init__(self, waiting: Callable[[], Iterable[Waiting]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting = waiting
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    def note(self, deadline_s: float) -> None:
        """Somebody waits until then (the loop's time)."""
        if self._timer is None or deadline_s < self._due_s:
            self.close()
            self._due_s = deadline_s
            self._timer = self._loop.call_at(deadline_s, self._sweep)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        """Fail whoever has waited too long, and come again when the next one will have."""
        self._timer = None
        now_s = self._loop.time()
        next_s = None
        for waiting in self._waiting():
            if waiting.done.done():
                continue
            if waiting.deadline_s <= now_s:
                problem = DeadlineExceeded(f"the log did not answer within {waiting.timeout_s:g} s", hint="retry with the same event ids")
                waiting.done.set_exception(problem)
            elif next_s is None or waiting.deadline_s < next_s:
                next_s = waiting.deadline_s
        if next_s is not None:
            self.note(next_s)
