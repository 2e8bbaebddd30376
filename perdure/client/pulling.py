"""Records from a plain iterator that may block, a pipe for instance, without holding up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable
from typing import Final, TypeVar

__all__ = ["pull"]

AHEAD_MAX: Final = 64
"""Records that are read ahead of whoever takes them."""
Record = TypeVar("Record")
_END: Final = object()


async def pull(records: Iterable[Record]) -> AsyncGenerator[Record, None]:
    """The records in order; the iterator runs in a thread of its own, at most `AHEAD_MAX` ahead. What it raises is raised here.

    When the caller leaves early the thread ends at its next record. It is a daemon: one that waits for a pipe for ever keeps no process alive.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[object] = asyncio.Queue()
    room = threading.Semaphore(AHEAD_MAX)
    left = threading.Event()

    def read() -> None:
        last: object = _END
        try:
            for record in records:
                room.acquire()
                if left.is_set():
                    return
                loop.call_soon_threadsafe(arrived.put_nowait, record)
        except BaseException as problem:
            last = _Raised(problem)
        if not left.is_set():
            loop.call_soon_threadsafe(arrived.put_nowait, last)

    threading.Thread(target=read, name="perdure-reader", daemon=True).start()
    try:
        while (record := await arrived.get()) is not _END:
            if isinstance(record, _Raised):
                raise record.problem
            room.release()
            yield record  # type: ignore[misc]
    finally:
        left.set()
        room.release()


class _Raised:
    def __init__(self, problem: BaseException) -> None:
        self.problem = problem
