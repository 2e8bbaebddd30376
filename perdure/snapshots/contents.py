"""What a snapshot consists of, in and out of the store: chunks and a manifest.

What always holds: a name that `put` returns for was read back and held the very bytes; what `read` returns was authenticated and digested. Bytes
wait in memory by the batch, and the heavy work is done in threads, one batch while the store is busy with another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.engine.replay import Folded
from perdure.engine.vault import Vault
from perdure.errors import DeadlineExceeded, IntegrityError, LimitExceeded, ObjectNotFound, PerdureError
from perdure.snapshots.chunks import ChunkReference
from perdure.snapshots.feeding import Feed
from perdure.snapshots.keys import SnapshotKeys
from perdure.snapshots.manifest import Manifest, open_manifest
from perdure.snapshots.pack import NewChunk, Packed, unpack
from perdure.snapshots.putting import ChunkPutter, all_of
from perdure.snapshots.store.contract import SnapshotStore
from perdure.snapshots.zstd import BUILTIN_DICTIONARIES, ChunkDictionaries, ChunkDictionary, builtin

__all__ = ["BUILTIN_BOOK", "ChunkDictionaryBook", "Contents", "Opened", "Stored"]

BATCH_BYTES: Final = 4 * limits.MIB
BATCH_CHUNKS_MAX: Final = 64
SMALL_BYTES: Final = 64 * limits.KIB
"""States up to here are unpacked at once: that takes less time than handing them to a thread and back."""


class ChunkDictionaryBook(Protocol):
    """Where chunk dictionaries come from."""

    async def newest(self, tenant: str, agent_type: str) -> ChunkDictionary:
        """The one for new chunks of the tenant's agents of a type."""
        ...

    async def known(self, tenant: str, needed: Collection[int] = ()) -> ChunkDictionaries:
        """Those that the tenant's chunks may name. needed: ids that are named; those not known yet are looked up."""
        ...

    async def see(self, tenant: str, agent_type: str, agent: str, document: Mapping[str, Any]) -> None:
        """A state of which a snapshot was written, to learn from."""
        ...


class _BuiltinBook:
    async def newest(self, tenant: str, agent_type: str) -> ChunkDictionary:  # noqa: ARG002 - the protocol's
        return builtin()

    async def known(self, tenant: str, needed: Collection[int] = ()) -> ChunkDictionaries:  # noqa: ARG002
        return BUILTIN_DICTIONARIES

    async def see(self, tenant: str, agent_type: str, agent: str, document: Mapping[str, Any]) -> None:
        pass


BUILTIN_BOOK: Final[ChunkDictionaryBook] = _BuiltinBook()


class Opened(NamedTuple):
    """A state and the manifest that it was read by."""

    folded: Folded
    manifest: Manifest


class Stored(NamedTuple):
    """What a snapshot consists of in the store. new_chunks, new_bytes: that were not there before."""

    manifest: Manifest
    new_chunks: int
    new_bytes: int


class Contents:
    """Chunks and manifests of one store. vault: gives the keys. book: gives the chunk dictionaries."""

    def __init__(self, objects: SnapshotStore, vault: Vault, book: ChunkDictionaryBook = BUILTIN_BOOK) -> None:
        self.objects = objects
        self.book = book
        self._vault = vault

    async def keys(self, tenant: str, agent: str) -> SnapshotKeys:
        """The keys of an agent's snapshots. Raises AgentNotFound, KeyUnavailable."""
        return SnapshotKeys(await self._vault.ring.tenant_key(tenant), await self._vault.cipher(tenant, agent))

    # --- out of the store ---

    async def sealed_manifest(self, row: SnapshotRow) -> bytes:
        """The manifest of a row, as it is stored. Raises ObjectNotFound, IntegrityError, Unavailable."""
        return await self._get(row.manifest, limits.MANIFEST_BYTES_MAX)

    async def manifest(self, row: SnapshotRow) -> Manifest:
        """The manifest of a row. Raises IntegrityError, SealBroken, KeyUnavailable, DictionaryNotFound and what `sealed_manifest` raises."""
        sealed = await self.sealed_manifest(row)
        keys = await self.keys(row.tenant, row.agent)
        manifest = await self._vault.opening(row.tenant, lambda: _open_manifest(sealed, keys, row))
        if (manifest.chain, manifest.epoch, manifest.state_digest) != (row.chain, row.epoch, row.state_digest):
            raise IntegrityError("a manifest is of another state than its row", tenant=row.tenant, agent=row.agent, version=row.version)
        return manifest

    async def read(self, row: SnapshotRow, *, answer_s: float | None = None) -> Opened:
        """The state of a row. What does not hold is read once more before it is believed, because being wrong about that is dear.

        answer_s: how long the store may take for the manifest (None: as long as it repeats by itself). Raises as `manifest`, and
        DeadlineExceeded; each error names tenant, agent and version.
        """
        try:
            try:
                return await self._read(row, await self._manifest_in_time(row, answer_s))
            except (IntegrityError, ObjectNotFound):
                return await self._read(row, await self.manifest(row))
        except PerdureError as problem:
            problem.tenant, problem.agent, problem.version = row.tenant, row.agent, row.version
            raise

    async def _manifest_in_time(self, row: SnapshotRow, answer_s: float | None) -> Manifest:
        try:
            async with asyncio.timeout(answer_s):
                return await self.manifest(row)
        except TimeoutError as problem:
            raise DeadlineExceeded(f"the store of snapshots did not answer within {answer_s:g} s") from problem

    async def _read(self, row: SnapshotRow, manifest: Manifest) -> Opened:
        needed = {reference.dictionary for reference in manifest.chunks}
        keys, dictionaries = await self.keys(row.tenant, row.agent), await self.book.known(row.tenant, needed)
        if manifest.plain_bytes <= SMALL_BYTES:
            chunks = await self._fetch(keys, manifest.chunks)
            return Opened(unpack(manifest, chunks, keys=keys, dictionaries=dictionaries), manifest)
        feed = Feed()
        unpacking = asyncio.create_task(asyncio.to_thread(unpack, manifest, feed, keys=keys, dictionaries=dictionaries))
        feeding = asyncio.create_task(self._feed(feed, keys, manifest.chunks))
        try:
            await asyncio.wait((unpacking, feeding), return_when=asyncio.FIRST_EXCEPTION)
            if feeding.done():
                feeding.result()  # what the store said goes before what the thread made of it
            return Opened(await asyncio.shield(unpacking), manifest)
        finally:
            feeding.cancel()
            feed.end(whole=False)
            await asyncio.gather(feeding, unpacking, return_exceptions=True)

    async def _feed(self, feed: Feed, keys: SnapshotKeys, chunks: Sequence[ChunkReference]) -> None:
        """Hand the stored chunks over in order; one batch is fetched while another is used."""
        whole = False
        try:
            for references in _by_bytes(chunks):
                await feed.put(await self._fetch(keys, references))
            whole = True
        finally:
            feed.end(whole=whole)

    async def _fetch(self, keys: SnapshotKeys, references: Sequence[ChunkReference]) -> list[bytes]:
        return await all_of(self._get(keys.chunk_object(reference.name), reference.stored_bytes) for reference in references)

    async def _get(self, name: str, bytes_max: int) -> bytes:
        try:
            return await self.objects.get(name, bytes_max=bytes_max)
        except LimitExceeded as problem:
            raise IntegrityError(f"{name} is larger than what was stored", object=name) from problem

    # --- into the store ---

    async def put_chunks(self, packed: Packed, keys: SnapshotKeys) -> Stored:
        """Store and read back what a snapshot adds. Raises IntegrityError when the store gives other bytes back, Unavailable, Denied."""
        putting = ChunkPutter(self.objects, keys, await self.book.known(keys.tenant))
        taking = asyncio.create_task(asyncio.to_thread(_take, packed.chunks))
        try:
            more = True
            while more:
                batch, more = await asyncio.shield(taking)
                if more:
                    taking = asyncio.create_task(asyncio.to_thread(_take, packed.chunks))
                await all_of(putting.put(chunk) for chunk in batch)
        finally:
            # The thread reads the state, which its owner gets back with this call.
            await asyncio.wait([taking])
            await asyncio.to_thread(packed.close)
        chunks = tuple(putting.adopted.get(reference.key, reference) for reference in packed.manifest.chunks)
        return Stored(msgspec.structs.replace(packed.manifest, chunks=chunks), putting.new_chunks, putting.new_bytes)

    async def all_there(self, keys: SnapshotKeys, chunks: Sequence[ChunkReference]) -> bool:
        """Whether the store has all of these chunks, as large as they were. Their content is not looked at."""
        for start in range(0, len(chunks), BATCH_CHUNKS_MAX):
            some = chunks[start : start + BATCH_CHUNKS_MAX]
            facts = await all_of(self.objects.facts(keys.chunk_object(chunk.name)) for chunk in some)
            if any(fact is None or fact.size_bytes != chunk.stored_bytes for fact, chunk in zip(facts, some, strict=True)):
                return False
        return True

    async def put_manifest(self, row: SnapshotRow, sealed: bytes, manifest: Manifest) -> None:
        """Store a manifest, read it back and open it. Raises as `put_chunks`."""
        await self.objects.put(row.manifest, sealed)
        steps.reach("snapshot.manifest_put")
        if await self.manifest(row) != manifest:
            raise IntegrityError("a manifest does not open to what was sealed", tenant=row.tenant, agent=row.agent, version=row.version)
        steps.reach("snapshot.manifest_verified")


def _open_manifest(sealed: bytes, keys: SnapshotKeys, row: SnapshotRow) -> Manifest:
    return open_manifest(sealed, keys=keys, tenant=row.tenant, agent=row.agent, version=row.version, digest=row.manifest_digest)


def _by_bytes(chunks: Sequence[ChunkReference]) -> Iterator[list[ChunkReference]]:
    batch: list[ChunkReference] = []
    size_bytes = 0
    for chunk in chunks:
        if batch and (size_bytes + chunk.plain_bytes > BATCH_BYTES or len(batch) == BATCH_CHUNKS_MAX):
            yield batch
            batch, size_bytes = [], 0
        batch.append(chunk)
        size_bytes += chunk.plain_bytes
    if batch:
        yield batch


def _take(chunks: Iterator[NewChunk]) -> tuple[list[NewChunk], bool]:
    """The next chunks, about a batch of them, and whether there may be more."""
    batch: list[NewChunk] = []
    size_bytes = 0
    for chunk in chunks:
        batch.append(chunk)
        size_bytes += chunk.reference.plain_bytes
        if size_bytes >= BATCH_BYTES or len(batch) == BATCH_CHUNKS_MAX:
            return batch, True
    return batch, False
