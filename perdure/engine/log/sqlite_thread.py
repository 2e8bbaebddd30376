"""The thread that writes the SQLite log.

An executor's future is made for any thread to wait on: it has a lock and a condition of its own and is chained to a future of the event loop, which
costs an append alone more than its statements. Here the loop is the only one that waits, and it is woken once for each piece of work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

__all__ = ["WorkThread"]

T = TypeVar("T")


class _Work(NamedTuple):
    """What is to be done, what follows on the event loop where it succeeded, and who waits for it."""

    call: Callable[[], Any]
    then: Callable[[], None] | None
    done: asyncio.Future[Any]


class WorkThread:
    """One thread that does what it is given, in order. Made and used on one event loop; `shut_down` blocks until all is done.

    What was cancelled before its turn is not begun; what has begun is finished, whoever waits for it.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread: Thread | None = None

    def run(self, call: Callable[[], T], then: Callable[[], None] | None = None) -> asyncio.Future[T]:
        """What `call` returns or raises on the thread. then: called on the event loop after it has returned, before whoever waits goes on,
        and also where nobody waits any more."""
        if self._thread is None:
            # A daemon: a process that ends without closing its log shall end. What was not acknowledged may be lost then, as in a crash.
            self._thread = Thread(target=self._work_off, name=self._name, daemon=True)
            self._thread.start()
        done: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Work(call, then, done))
        return done

    def shut_down(self) -> None:
        """Finish what was given, and end the thread. Not for the event loop's own thread. Again is no error."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _work_off(self) -> None:
        while (work := self._queue.get()) is not None:
            if not work.done.cancelled():
                self._do(work)
            del work  # nobody's values are held until the next piece of work comes

    def _do(self, work: _Work) -> None:
        result, problem = None, None
        try:
            result = work.call()
        except BaseException as raised:  # whatever it is, it belongs to whoever waits
            problem = raised
        if not self._loop.is_closed():  # else nobody is there to be told
            self._loop.call_soon_threadsafe(_tell, work, result, problem)


def _tell(work: _Work, result: Any, problem: BaseException | None) -> None:
    if problem is None and work.then is not None:
        work.then()
    if work.done.done():
        return
    if problem is None:
        work.done.set_result(result)
    else:
        work.done.set_exception(problem)
