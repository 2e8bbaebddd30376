"""New chunks into the store: put, read back, compared."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from perdure.engine import steps
from perdure.errors import DictionaryNotFound, IntegrityError, LimitExceeded, ObjectNotFound
from perdure.snapshots.chunks import OVERHEAD_BYTES, ChunkReference, as_stored, open_plaintext
from perdure.snapshots.keys import SnapshotKeys
from perdure.snapshots.pack import NewChunk
from perdure.snapshots.store.contract import SnapshotStore
from perdure.snapshots.zstd import ChunkDictionaries

__all__ = ["ChunkPutter", "all_of"]

T = TypeVar("T")


class ChunkPutter:
    """The chunks of one snapshot on their way into the store. adopted: by key, references to chunks that are there in other bytes."""

    def __init__(self, objects: SnapshotStore, keys: SnapshotKeys, dictionaries: ChunkDictionaries) -> None:
        self._objects = objects
        self._keys = keys
        self._dictionaries = dictionaries
        self.adopted: dict[bytes, ChunkReference] = {}
        self.new_chunks = 0
        self.new_bytes = 0

    async def put(self, chunk: NewChunk) -> None:
        """Store a chunk, unless it is there, and read it back."""
        new = await self._objects.put(chunk.object, chunk.sealed)
        steps.reach("snapshot.chunk_put")
        found = await self._get(chunk)
        if found != chunk.sealed:
            adopted = None if new or found is None else await asyncio.to_thread(self._adopt, chunk, found)
            if adopted is not None:
                self.adopted[adopted.key] = adopted
            else:
                await self._replace(chunk)
                new = True
        if new:
            self.new_chunks += 1
            self.new_bytes += len(chunk.sealed)
        steps.reach("snapshot.chunk_verified")

    def _adopt(self, chunk: NewChunk, found: bytes) -> ChunkReference | None:
        """The reference to what is stored, where that is the same chunk as another release of a codec made it; None: it is damaged."""
        try:
            stored = as_stored(found, chunk.reference)
            plaintexts = [
                open_plaintext(sealed, reference, keys=self._keys, dictionaries=self._dictionaries)
                for sealed, reference in ((found, stored), (chunk.sealed, chunk.reference))
            ]
        except (IntegrityError, DictionaryNotFound):
            return None
        return stored if plaintexts[0] == plaintexts[1] else None

    async def _replace(self, chunk: NewChunk) -> None:
        """Put the right bytes where damaged ones are, which also mends every other snapshot that lists the chunk."""
        await self._objects.delete(chunk.object)
        await self._objects.put(chunk.object, chunk.sealed)
        if await self._get(chunk) != chunk.sealed:
            await self._objects.delete(chunk.object)
            hint = "check the store's disk"
            raise IntegrityError(f"the store does not give back what it was given for {chunk.object}", hint=hint, object=chunk.object)

    async def _get(self, chunk: NewChunk) -> bytes | None:
        """What is stored under a chunk's name, None where it cannot be the chunk."""
        try:
            return await self._objects.get(chunk.object, bytes_max=chunk.reference.plain_bytes + OVERHEAD_BYTES)
        except (ObjectNotFound, LimitExceeded):
            return None


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order. The first failure is raised when nothing runs any more."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
