"""A state to chunks and a manifest, and back. Large states: a chunk at a time is in memory.

Invariant: a manifest lists exactly the chunks that a full pack of the same document would list, whatever was shared with an earlier one; and
`unpack` gives out nothing that was not authenticated, chunk by chunk, as what was digested.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from perdure.engine.replay import Folded
from perdure.errors import IntegrityError, InvalidInput, PerdureError
from perdure.snapshots.cells import StateBuilder
from perdure.snapshots.chunks import ChunkReference, decode_runs, open_plaintext, seal_chunk
from perdure.snapshots.codecs import codec_named
from perdure.snapshots.cutting import Piece, pieces
from perdure.snapshots.keys import SnapshotKeys
from perdure.snapshots.manifest import Kind, Manifest, seal_manifest
from perdure.snapshots.zstd import BUILTIN_DICTIONARIES, NO_DICTIONARY, ChunkDictionaries, ChunkDictionary

__all__ = ["NewChunk", "Packed", "pack", "unpack"]

ALONE_CHUNKS: Final = 4
Finished = tuple[ChunkReference, bytes | None]


class NewChunk(NamedTuple):
    """A chunk to store. object: its name in the store."""

    object: str
    sealed: bytes
    reference: ChunkReference


class Packed:
    """A snapshot in the making: first take `chunks` to its end, storing each, then `manifest`."""

    def __init__(self, head: Manifest, keys: SnapshotKeys, chunks: Iterator[Finished]) -> None:
        self._head = head
        self._keys = keys
        self._references: list[ChunkReference] = []
        self._manifest: Manifest | None = None
        self._making = self._run(chunks)
        self.chunks: Iterator[NewChunk] = self._making
        """The chunks that the previous manifest does not list, made as they are asked for."""

    @property
    def manifest(self) -> Manifest:
        """The manifest; all chunks must have been taken."""
        if self._manifest is None:
            raise RuntimeError("the manifest of a snapshot is there when all its chunks have been taken")
        return self._manifest

    def close(self) -> None:
        """Make no more chunks; needed only where they are not taken to the end."""
        self._making.close()

    def sealed_manifest(self) -> bytes:
        """The manifest as it is stored; each call seals anew, so keep the bytes."""
        return seal_manifest(self.manifest, self._keys)

    def _run(self, chunks: Iterator[Finished]) -> Generator[NewChunk, None, None]:
        for reference, sealed in chunks:
            self._references.append(reference)
            if sealed is not None:
                yield NewChunk(self._keys.chunk_object(reference.name), sealed, reference)
        self._manifest = msgspec.structs.replace(self._head, chunks=tuple(self._references))


def pack(
    state: Folded,
    *,
    keys: SnapshotKeys,
    created_us: int,
    creator: str = "",
    trigger: str = "manual",
    reason: str = "",
    kind: Kind = "full",
    codec: str = "zstd",
    dictionary: ChunkDictionary = NO_DICTIONARY,
    previous: Manifest | None = None,
    previous_object: str = "",
    touched: Iterable[bytes] | None = None,
    generation: int = 0,
    threads: int = 1,
) -> Packed:
    """Pack a state, which must not change until all chunks are taken.

    previous: an earlier manifest of the agent, whose chunks are stored and are not made again; previous_object: where it is stored. touched: names
    of all cells that were put or removed since `previous` (`engine.cells.touched`); without it every cell is encoded and hashed to find out.
    dictionary: for codecs that take one. threads: that compress and seal beside the one that takes the chunks, from the fifth chunk on.
    Raises InvalidInput, LimitExceeded.
    """
    if previous is not None and (previous.tenant, previous.agent) != (keys.tenant, keys.agent):
        raise InvalidInput("the previous manifest is of another agent", tenant=keys.tenant, agent=keys.agent)
    chosen = codec_named(codec)
    used = dictionary if chosen.takes_dictionary else NO_DICTIONARY
    made_with = (chosen.id, used.id, keys.version)
    # Chunks of another codec, dictionary or key are other chunks: then everything is made anew.
    shared = previous.chunks if previous and (previous.codec, previous.dictionary, previous.key_version) == made_with else ()
    known = {chunk.digest: chunk for chunk in shared}

    def finished(piece: Piece) -> Finished:
        reference = piece if isinstance(piece, ChunkReference) else known.get(piece.digest)
        if reference is not None:
            return reference, None
        assert not isinstance(piece, ChunkReference)
        return seal_chunk(piece, keys=keys, codec=chosen, dictionary=used)

    found = pieces(state.document, shared, touched if shared else None)
    head = Manifest(
        *(keys.tenant, keys.agent, state.version, generation, kind, state.epoch, state.time_us, state.chain, previous_object),
        *(created_us, creator, trigger, reason, tuple(state.warnings), *made_with, ()),
    )
    return Packed(head, keys, map(finished, found) if threads < 2 else _in_threads(finished, found, threads))


def _in_threads(finish: Callable[[Piece], Finished], found: Iterator[Piece], threads: int) -> Iterator[Finished]:
    yield from map(finish, islice(found, ALONE_CHUNKS))  # a small state is done before a thread has started
    with ThreadPoolExecutor(threads, thread_name_prefix="perdure-pack") as pool:
        waiting: deque[Future[Finished]] = deque()
        for piece in found:
            waiting.append(pool.submit(finish, piece))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def unpack(
    manifest: Manifest, chunks: Iterable[bytes], *, keys: SnapshotKeys, dictionaries: ChunkDictionaries = BUILTIN_DICTIONARIES
) -> Folded:
    """The state of a manifest from its chunks as they are stored, in the manifest's order; verified before it is given out.

    Raises IntegrityError, SealBroken, DictionaryNotFound; each names tenant, agent, version and chunk.
    """
    builder, given = StateBuilder(), iter(chunks)
    try:
        for position, reference in enumerate(manifest.chunks):
            sealed = next(given, None)
            if sealed is None:
                raise IntegrityError("a chunk is missing", chunk=reference.name.hex(), position=position)
            plaintext = open_plaintext(sealed, reference, keys=keys, dictionaries=dictionaries)
            if builder.add(decode_runs(plaintext, reference, keys=keys)) != reference.cells:
                raise IntegrityError("a chunk has more or fewer cells than its manifest lists", chunk=reference.name.hex())
        if next(given, None) is not None:
            raise IntegrityError("there is a chunk too many")
        document = builder.document()
    except PerdureError as problem:
        problem.tenant, problem.agent, problem.version = manifest.tenant, manifest.agent, manifest.version
        raise
    return Folded(document, manifest.version, manifest.epoch, manifest.time_us, manifest.chain, list(manifest.warnings))
