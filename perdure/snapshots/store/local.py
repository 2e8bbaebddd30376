"""A store in a folder of this machine, on a file system with hard links. Files have mode 0600, folders 0700.

The disk is worked on by threads of the store's own, so that a slow sync holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from perdure import limits
from perdure.errors import Unavailable
from perdure.snapshots.store.contract import ObjectFacts
from perdure.snapshots.store.files import ObjectFolder

__all__ = ["LocalStore"]

Result = TypeVar("Result")


class LocalStore:
    """root: a folder, made with the first object. Many processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self._folder = ObjectFolder(root)
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    async def put(self, name: str, content: bytes) -> bool:
        """See SnapshotStore."""
        return await self._run(self._folder.put, name, content)

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        """See SnapshotStore."""
        return await self._run(self._folder.get, name, bytes_max)

    async def facts(self, name: str) -> ObjectFacts | None:
        """See SnapshotStore."""
        return await self._run(self._folder.facts, name)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectFacts]:
        """See SnapshotStore."""
        while True:
            page = await self._run(self._folder.page, prefix, after, limits.STORE_LIST_PAGE_OBJECTS)
            for facts in page:
                yield facts
            if len(page) < limits.STORE_LIST_PAGE_OBJECTS:
                return
            after = page[-1].name

    async def delete(self, name: str) -> None:
        """See SnapshotStore."""
        await self._run(self._folder.delete, name)

    async def close(self) -> None:
        """See SnapshotStore. What is under way is finished first; what comes later raises Unavailable."""
        self._closed = True
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown, wait=True)

    async def _run(self, work: Callable[..., Result], *arguments: object) -> Result:
        if self._closed:
            raise Unavailable("the store is closed", hint="open it again")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(limits.STORE_THREADS, thread_name_prefix="perdure-store")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
