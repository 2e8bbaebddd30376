"""A state to chunks and a manifest, and back. Large states: one chunk at a time is in memory.

Invariant: a manifest's state digest is the engine's digest of the document that was packed, every chunk that it lists holds exactly the cells
that were digested, and `unpack` gives out nothing whose digest is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from perdure.engine.replay import Folded
from perdure.errors import IntegrityError, InvalidInput, PerdureError
from perdure.snapshots.cells import StateBuilder, ordered_cells
from perdure.snapshots.chunks import ChunkReference, cut, decode_cells, open_plaintext, seal_chunk
from perdure.snapshots.codecs import codec_named
from perdure.snapshots.keys import SnapshotKeys
from perdure.snapshots.manifest import Kind, Manifest, seal_manifest
from perdure.snapshots.zstd import BUILTIN_DICTIONARIES, NO_DICTIONARY, ChunkDictionaries, ChunkDictionary

__all__ = ["NewChunk", "Packed", "pack", "unpack"]

_STATE: Final = b"perdure-state-1"


class NewChunk(NamedTuple):
    """A chunk to store. object: its name in the store."""

    object: str
    sealed: bytes
    reference: ChunkReference


class Packed:
    """A snapshot in the making: first take `chunks` to its end, storing each, then `manifest`."""

    def __init__(self, head: Manifest, keys: SnapshotKeys, chunks: Iterator[tuple[ChunkReference, bytes | None]], state: Any) -> None:
        self._head = head
        self._keys = keys
        self._references: list[ChunkReference] = []
        self._state = state
        self._manifest: Manifest | None = None
        self.chunks: Iterator[NewChunk] = self._run(chunks)
        """The chunks that the previous manifest does not list, made as they are asked for."""

    @property
    def manifest(self) -> Manifest:
        """The manifest; all chunks must have been taken."""
        if self._manifest is None:
            raise RuntimeError("the manifest of a snapshot is there when all its chunks have been taken")
        return self._manifest

    def sealed_manifest(self) -> bytes:
        """The manifest as it is stored; each call seals anew, so keep the bytes."""
        return seal_manifest(self.manifest, self._keys)

    def _run(self, chunks: Iterator[tuple[ChunkReference, bytes | None]]) -> Iterator[NewChunk]:
        for reference, sealed in chunks:
            self._references.append(reference)
            if sealed is not None:
                yield NewChunk(self._keys.chunk_object(reference.name), sealed, reference)
        self._manifest = msgspec.structs.replace(self._head, state_digest=self._state.digest(), chunks=tuple(self._references))


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
    generation: int = 0,
) -> Packed:
    """Pack a state, which must not change until all chunks are taken.

    previous: an earlier manifest of the agent, whose chunks are stored and are not made again; previous_object: where it is stored. dictionary: for
    codecs that take one. Raises InvalidInput, LimitExceeded.
    """
    if previous is not None and (previous.tenant, previous.agent) != (keys.tenant, keys.agent):
        raise InvalidInput("the previous manifest is of another agent", tenant=keys.tenant, agent=keys.agent)
    chosen = codec_named(codec)
    used = dictionary if chosen.takes_dictionary else NO_DICTIONARY
    known = {chunk.key: chunk for chunk in previous.chunks} if previous else {}
    digest = sha256(_STATE)

    def chunks() -> Iterator[tuple[ChunkReference, bytes | None]]:
        for piece in cut(ordered_cells(state.document), digest):
            reference = known.get(keys.chunk_key(chosen.id, used.id, piece.digest))
            yield (reference, None) if reference else seal_chunk(piece, keys=keys, codec=chosen, dictionary=used)

    head = Manifest(
        *(keys.tenant, keys.agent, state.version, generation, kind, state.epoch, state.time_us, state.chain, b"", previous_object),
        *(created_us, creator, trigger, reason, tuple(state.warnings), ()),
    )
    return Packed(head, keys, chunks(), digest)


def unpack(
    manifest: Manifest, chunks: Iterable[bytes], *, keys: SnapshotKeys, dictionaries: ChunkDictionaries = BUILTIN_DICTIONARIES
) -> Folded:
    """The state of a manifest from its chunks as they are stored, in the manifest's order; verified before it is given out.

    Raises IntegrityError, SealBroken, DictionaryNotFound; each names tenant, agent, version and chunk.
    """
    digest, builder = sha256(_STATE), StateBuilder()
    given = iter(chunks)
    try:
        for position, reference in enumerate(manifest.chunks):
            sealed = next(given, None)
            if sealed is None:
                raise IntegrityError("a chunk is missing", chunk=reference.name.hex(), position=position)
            names, values, rows = decode_cells(
                open_plaintext(sealed, reference, keys=keys, dictionaries=dictionaries), reference, keys=keys
            )
            builder.add(names, values)
            digest.update(rows)
        if next(given, None) is not None:
            raise IntegrityError("there is a chunk too many")
        if digest.digest() != manifest.state_digest:
            raise IntegrityError("the state's digest is not the one that was written")
        document = builder.document()
    except PerdureError as problem:
        problem.tenant, problem.agent, problem.version = manifest.tenant, manifest.agent, manifest.version
        raise
    return Folded(document, manifest.version, manifest.epoch, manifest.time_us, manifest.chain, list(manifest.warnings))
