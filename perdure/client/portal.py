"""An event loop in a thread, and the way into it for threads that have none."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from typing import Any, Final

from perdure.errors import InvalidInput, Unavailable

__all__ = ["Portal", "Pump"]

PAGE_ITEMS: Final = 256
"""Items of an iterator that cross between the threads at once, as far as they are there."""
STOP_POLL_S: Final = 0.1


class Portal:
    """Calls run on its loop; whoever calls waits. Interrupting the wait (Ctrl-C) cancels the work."""

    def __init__(self) -> None:
        self.owner: Any = None
        """What is closed with it."""
        self.closed = False
        self._process = os.getpid()
        self._watching: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="perdure-sync", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise where a call could never return."""
        if self.closed:
            raise Unavailable("the engine is closed", hint="open it again")
        if os.getpid() != self._process:
            raise InvalidInput("the engine was opened before this process was forked", hint="open one in each process")
        if threading.get_ident() == self._thread.ident:
            raise InvalidInput("a blocking call inside of the engine's own thread", hint="do it after the callback has returned")

    def call(self, start: Callable[[], Any]) -> Any:
        """What the coroutine that `start` makes returns, or raises."""
        self.check()

        async def run() -> Any:
            result = start()
            return await result if asyncio.iscoroutine(result) else result

        waiting = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return waiting.result()
        except CancelledError:
            if self.closed:
                raise Unavailable("the engine was closed meanwhile", hint="open it again") from None
            raise
        except BaseException:
            waiting.cancel()
            raise

    def pump(self, source: AsyncIterator[Any]) -> Pump:
        """Called on the loop: begin to read an iterator."""
        return Pump(source)

    def stop_event(self, event: Any) -> asyncio.Event:
        """An event of the loop that is set when a `threading.Event` is."""
        bridged = asyncio.Event()

        async def watch() -> None:
            while not event.is_set():  # noqa: ASYNC110 - nothing of a threading.Event can be awaited
                await asyncio.sleep(STOP_POLL_S)
            bridged.set()

        def begin() -> None:
            task = asyncio.ensure_future(watch())
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)

        self.call(begin)
        return bridged

    def close(self) -> None:
        """Stop the loop and end the thread."""
        if self.closed:
            return
        self.closed = True
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        """Cancel what still runs, e.g. calls of other threads."""
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()


class Pump:
    """Reads an asynchronous iterator a page ahead, so that not every item needs a change of threads. Lives on the loop."""

    def __init__(self, source: AsyncIterator[Any]) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(PAGE_ITEMS)
        self._task = asyncio.ensure_future(self._run(source))

    async def page(self) -> list[Any]:
        """What is there, at least one item; empty at the end. Raises what the iterator raised."""
        while self._queue.empty():
            if self._task.done():
                self._task.result()
                return []
            waiting = asyncio.ensure_future(self._queue.get())
            await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return [waiting.result(), *self._ready()]
            waiting.cancel()
        return self._ready()

    async def close(self) -> None:
        """Leave the iterator where it is."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _ready(self) -> list[Any]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    async def _run(self, source: AsyncIterator[Any]) -> None:
        try:
            async for item in source:
                await self._queue.put(item)
        finally:
            if hasattr(source, "aclose"):
                await source.aclose()
