"""What is laid around a store: limits, repeats, a meter. Each is a `SnapshotStore` over another one, and keeps its promises."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from perdure import limits
from perdure.errors import PerdureError, Unavailable
from perdure.snapshots.store.contract import ObjectFacts, SnapshotStore, check_name, check_size

__all__ = ["BoundedStore", "MeteredStore", "Operation", "RetriedStore"]

# Where nobody has set up logging, a repetition is no line on the terminal.
logging.getLogger("stamina").addHandler(logging.NullHandler())


class BoundedStore:
    """At most so many requests, and so many bytes of contents, are under way at once; others wait for their turn.

    requests_max: lists do not count. bytes_max: a single larger content goes alone. object_bytes_max: larger contents are refused.
    """

    def __init__(
        self,
        inner: SnapshotStore,
        *,
        requests_max: int = limits.STORE_REQUESTS_MAX,
        bytes_max: int = limits.STORE_BYTES_IN_FLIGHT_MAX,
        object_bytes_max: int = limits.STORE_OBJECT_BYTES_MAX,
    ) -> None:
        self._inner = inner
        self._requests = asyncio.Semaphore(requests_max)
        self._bytes_max = bytes_max
        self._bytes_free = bytes_max
        self._freed = asyncio.Condition()
        self._object_bytes_max = object_bytes_max

    async def put(self, name: str, content: bytes) -> bool:
        """See SnapshotStore."""
        check_size(check_name(name), len(content), self._object_bytes_max)
        async with self._place(len(content)):
            return await self._inner.put(name, content)

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        """See SnapshotStore."""
        wanted = min(bytes_max, self._object_bytes_max)
        if wanted > limits.STORE_UNSEEN_BYTES_MAX:
            # Room is taken for what is there, not for all that there may be: a generous limit shall not make others wait.
            found = await self.facts(name)
            wanted = min(wanted, found.size_bytes) if found is not None else 0
        async with self._place(wanted):
            return await self._inner.get(name, bytes_max=min(bytes_max, self._object_bytes_max))

    async def facts(self, name: str) -> ObjectFacts | None:
        """See SnapshotStore."""
        async with self._requests:
            return await self._inner.facts(name)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectFacts]:
        """See SnapshotStore."""
        async for facts in self._inner.list(prefix, after=after):
            yield facts

    async def delete(self, name: str) -> None:
        """See SnapshotStore."""
        async with self._requests:
            await self._inner.delete(name)

    async def close(self) -> None:
        """See SnapshotStore."""
        await self._inner.close()

    @asynccontextmanager
    async def _place(self, size_bytes: int) -> AsyncIterator[None]:
        taken = min(size_bytes, self._bytes_max)
        async with self._requests:
            async with self._freed:
                await self._freed.wait_for(lambda: self._bytes_free >= taken)
                self._bytes_free -= taken
            try:
                yield
            finally:
                self._bytes_free += taken
                # Shielded, so that a caller who is cancelled here still wakes those who wait.
                await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._freed:
            self._freed.notify_all()


class RetriedStore:
    """Repeats what failed with `Unavailable`, with growing pauses; every operation of a store may be repeated.

    attempts: in all. timeout_s: after which no attempt begins. A put that is repeated after its answer was lost may say False.
    """

    def __init__(self, inner: SnapshotStore, *, attempts: int = limits.STORE_ATTEMPTS_MAX, timeout_s: float = limits.STORE_RETRY_S) -> None:
        from stamina import AsyncRetryingCaller

        self._inner = inner
        self._repeat = AsyncRetryingCaller(attempts=attempts, timeout=timeout_s, wait_initial=0.05, wait_max=5.0, wait_jitter=0.1)

    async def put(self, name: str, content: bytes) -> bool:
        """See SnapshotStore."""
        return await self._repeat(Unavailable, self._inner.put, name, content)

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        """See SnapshotStore."""
        return await self._repeat(Unavailable, self._inner.get, name, bytes_max=bytes_max)

    async def facts(self, name: str) -> ObjectFacts | None:
        """See SnapshotStore."""
        return await self._repeat(Unavailable, self._inner.facts, name)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectFacts]:
        """See SnapshotStore. A list that breaks off goes on behind the last name that was given."""
        ended = False
        while not ended:
            given, ended = await self._repeat(Unavailable, _page, self._inner, prefix, after)
            for facts in given:
                after = facts.name
                yield facts

    async def delete(self, name: str) -> None:
        """See SnapshotStore."""
        await self._repeat(Unavailable, self._inner.delete, name)

    async def close(self) -> None:
        """See SnapshotStore."""
        await self._inner.close()


async def _page(store: SnapshotStore, prefix: str, after: str) -> tuple[list[ObjectFacts], bool]:
    """The next names, and whether they are the last."""
    page: list[ObjectFacts] = []
    async for facts in store.list(prefix, after=after):
        page.append(facts)
        if len(page) >= limits.STORE_LIST_PAGE_OBJECTS:
            return page, False
    return page, True


@dataclass
class Operation:
    """What one kind of operation has cost. bytes: of contents; seconds: the callers' waiting, added up."""

    count: int = 0
    errors: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class MeteredStore:
    """Counts what passes. operations: put, get, facts, list (one for each list), delete → what they cost so far."""

    inner: SnapshotStore
    operations: dict[str, Operation] = field(
        default_factory=lambda: {name: Operation() for name in ("put", "get", "facts", "list", "delete")}
    )

    async def put(self, name: str, content: bytes) -> bool:
        """See SnapshotStore."""
        with self._measured("put") as operation:
            created = await self.inner.put(name, content)
            operation.bytes += len(content) * created
            return created

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        """See SnapshotStore."""
        with self._measured("get") as operation:
            content = await self.inner.get(name, bytes_max=bytes_max)
            operation.bytes += len(content)
            return content

    async def facts(self, name: str) -> ObjectFacts | None:
        """See SnapshotStore."""
        with self._measured("facts"):
            return await self.inner.facts(name)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectFacts]:
        """See SnapshotStore. The time between two names is the reader's, too."""
        with self._measured("list"):
            async for facts in self.inner.list(prefix, after=after):
                yield facts

    async def delete(self, name: str) -> None:
        """See SnapshotStore."""
        with self._measured("delete"):
            await self.inner.delete(name)

    async def close(self) -> None:
        """See SnapshotStore."""
        await self.inner.close()

    @contextmanager
    def _measured(self, name: str) -> Iterator[Operation]:
        operation = self.operations[name]
        operation.count += 1
        began = time.monotonic()
        try:
            yield operation
        except PerdureError:
            operation.errors += 1
            raise
        finally:
            operation.seconds += time.monotonic() - began
