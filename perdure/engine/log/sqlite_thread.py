"""The threads that write and read the SQLite log.

An executor's future is made for any thread to wait on: it has a lock and a condition of its own and is chained to a future of the event loop, which
costs an append or a read alone more than its statements. Here the loop is the only one that waits, and it is woken once for each piece of work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, NamedTuple, TypeVar

__all__ = ["WorkThreads"]

T = TypeVar("T")
_NOT_BEGUN: Final = object()
"""What comes of work whose caller was cancelled before its turn."""


class _Work(NamedTuple):
    """What is to be done, who is told on the event loop what came of it, and whose cancelling makes it needless (None: nobody's)."""

    call: Callable[[], Any]
    told: Callable[[Any, BaseException | None], None]
    done: asyncio.Future[Any] | None


class WorkThreads:
    """Threads that do what they are given, a single one in order; made when they are needed. Used on the event loop that they were made on;
    `shut_down` blocks until all is done.

    What was cancelled before its turn is not begun; what has begun is finished, whoever waits for it.
    """

    def __init__(self, name: str, count: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._count = count
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._at_work = 0

    def run(self, call: Callable[[], T], then: Callable[[], None] | None = None) -> asyncio.Future[T]:
        """What `call` returns or raises on a thread. then: called on the event loop after it has returned, before whoever waits goes on,
        and also where nobody waits any more."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._give(_Work(call, partial(_settle, done, then), done))
        return done

    def hand(self, call: Callable[[], T], told: Callable[[T, BaseException | None], None]) -> None:
        """As `run`, without a future: `told` is called on the event loop with what `call` returned or raised (the other one is None)."""
        self._give(_Work(call, told, None))

    def _give(self, work: _Work) -> None:
        if len(self._threads) < self._count and self._at_work >= len(self._threads):
            # A daemon: a process that ends without closing its log shall end. What was not acknowledged may be lost then, as in a crash.
            thread = Thread(target=self._work_off, name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._at_work += 1
        self._queue.put(work)

    def shut_down(self) -> None:
        """Finish what was given, and end the threads. Not for the event loop's own thread. Again is no error."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join()

    def _work_off(self) -> None:
        while (work := self._queue.get()) is not None:
            self._do(work)
            del work  # nobody's values are held until the next piece of work comes

    def _do(self, work: _Work) -> None:
        result, problem = None, None
        try:
            result = _NOT_BEGUN if work.done is not None and work.done.cancelled() else work.call()
        except BaseException as raised:  # whatever it is, it belongs to whoever waits
            problem = raised
        if not self._loop.is_closed():  # else nobody is there to be told
            self._loop.call_soon_threadsafe(self._tell, work, result, problem)

    def _tell(self, work: _Work, result: Any, problem: BaseException | None) -> None:
        self._at_work -= 1
        work.told(result, problem)


def _settle(done: asyncio.Future[Any], then: Callable[[], None] | None, result: Any, problem: BaseException | None) -> None:
    if problem is None and then is not None and result is not _NOT_BEGUN:
        then()
    if done.done():
        return
    if problem is None:
        done.set_result(result)
    else:
        done.set_exception(problem)
