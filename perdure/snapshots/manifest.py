"""The manifest: what a snapshot is of, which chunks make it up, and the keys of these; sealed under the agent's data key.

The bytes are specified in docs/format/snapshot.md.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec

from perdure import limits
from perdure.errors import IntegrityError, KeyUnavailable, LimitExceeded, SealBroken
from perdure.snapshots.chunks import OVERHEAD_BYTES, ChunkReference
from perdure.snapshots.keys import SnapshotKeys

__all__ = ["Kind", "Manifest", "open_manifest", "seal_manifest"]

Kind = Literal["full", "incremental", "checkpoint"]
_MAGIC: Final = b"pdmf"
_VERSION: Final = 0x01
_HEADER: Final = struct.Struct(">4sBQQ")
_CONTEXT: Final = b"snapshot-manifest"
_ROOT: Final = b"perdure-snapshot-state-1"
_DIGEST_BYTES: Final = 32


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """A chunk, without what follows from the rest."""

    digest: bytes
    sha256: bytes
    codec: int
    dictionary: int
    cells: int
    plain_bytes: int
    stored_bytes: int
    first: bytes


class Body(msgspec.Struct, frozen=True, array_like=True):
    """The sealed part, as it is encoded."""

    kind: str
    epoch: int
    time_us: int
    chain: bytes
    previous: str
    created_us: int
    creator: str
    trigger: str
    reason: str
    warnings: tuple[str, ...]
    codec: int
    dictionary: int
    key_version: int
    chunks: tuple[_Row, ...]


class Manifest(msgspec.Struct, frozen=True):
    """One snapshot.

    version, epoch, time_us, chain: of the newest event in it. previous: object name of the manifest whose chunks it shares, or "". created_us,
    creator, trigger, reason: when, by whom and why it was made. warnings: of the fold. codec, dictionary, key_version (of the tenant's key): asked
    for when its chunks were made; a chunk that does not get smaller is stored with codec 0.
    """

    tenant: str
    agent: str
    version: int
    generation: int
    kind: str
    epoch: int
    time_us: int
    chain: bytes
    previous: str
    created_us: int
    creator: str
    trigger: str
    reason: str
    warnings: tuple[str, ...]
    codec: int
    dictionary: int
    key_version: int
    chunks: tuple[ChunkReference, ...]

    @property
    def state_digest(self) -> bytes:
        """The root over the chunks' digests, 32 bytes: states are equal if and only if theirs are, whatever codec and keys they are stored with."""
        return sha256(_ROOT + b"".join(chunk.digest for chunk in self.chunks)).digest()

    @property
    def plain_bytes(self) -> int:
        """Of all chunks before compression."""
        return sum(chunk.plain_bytes for chunk in self.chunks)

    @property
    def stored_bytes(self) -> int:
        """Of all chunks as they are stored, whoever stored them; without the manifest."""
        return sum(chunk.stored_bytes for chunk in self.chunks)

    @property
    def cells(self) -> int:
        """How many cells the state has."""
        return sum(chunk.cells for chunk in self.chunks)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Body).decode
_ROW: Final = _Row.__struct_fields__
_FIELDS: Final = Body.__struct_fields__[:-1]


def seal_manifest(manifest: Manifest, keys: SnapshotKeys) -> bytes:
    """The bytes to store. Raises LimitExceeded for more chunks than a manifest holds."""
    if len(manifest.chunks) > limits.SNAPSHOT_CHUNKS_MAX:
        raise LimitExceeded(
            f"a snapshot has {len(manifest.chunks)} chunks, the limit is {limits.SNAPSHOT_CHUNKS_MAX}",
            tenant=manifest.tenant,
            agent=manifest.agent,
            version=manifest.version,
        )
    header = _HEADER.pack(_MAGIC, _VERSION, manifest.version, manifest.generation)
    rows = tuple(_Row(*(getattr(chunk, name) for name in _ROW)) for chunk in manifest.chunks)
    body = Body(**{name: getattr(manifest, name) for name in _FIELDS}, chunks=rows)
    return header + keys.cipher.seal(_CONTEXT + header, _encode(body))


def open_manifest(sealed: bytes, *, keys: SnapshotKeys, tenant: str, agent: str, version: int, digest: bytes | None = None) -> Manifest:
    """The manifest inside. digest: SHA-256 of the sealed bytes as the registry has it, if it is known.

    Raises IntegrityError (another one than was asked for, e.g. an older one put in its place), SealBroken (changed, or another agent's or
    tenant's), DictionaryNotFound.
    """

    def wrong(kind: type[IntegrityError], reason: str) -> IntegrityError:
        hint = "take an older snapshot or fold the log; `perdure verify` tells what else is damaged"
        return kind(f"a manifest cannot be used: {reason}", hint=hint, tenant=tenant, agent=agent, version=version)

    if (keys.tenant, keys.agent) != (tenant, agent):
        raise wrong(SealBroken, f"the keys are of agent {keys.agent!r} of tenant {keys.tenant!r}")
    if digest is not None and sha256(sealed).digest() != digest:
        raise wrong(IntegrityError, "it is not the one that was registered")
    if len(sealed) < _HEADER.size:
        raise wrong(IntegrityError, "it is cut off")
    magic, form, stands, generation = _HEADER.unpack_from(sealed)
    if magic != _MAGIC or form != _VERSION:
        raise wrong(IntegrityError, "it is no manifest, or one of a format that is unknown to this release")
    if stands != version:
        raise wrong(IntegrityError, f"it says that it is of version {stands}")
    try:
        body = _decode(keys.cipher.open(_CONTEXT + sealed[: _HEADER.size], sealed[_HEADER.size :]))
    except SealBroken as error:
        raise wrong(SealBroken, "its authentication failed") from error
    except msgspec.MsgspecError as error:
        raise wrong(IntegrityError, f"it is not readable: {error}") from error
    if not _possible(body):
        raise wrong(IntegrityError, "it says what cannot be")
    try:
        chunks = tuple(_reference(row, body, keys) for row in body.chunks)
    except KeyUnavailable as error:
        error.agent, error.version = agent, version
        raise
    fields: dict[str, Any] = {name: getattr(body, name) for name in _FIELDS}
    return Manifest(tenant, agent, version, generation, chunks=chunks, **fields)


def _reference(row: _Row, body: Body, keys: SnapshotKeys) -> ChunkReference:
    key = keys.chunk_key(body.key_version, body.codec, body.dictionary, row.digest)
    return ChunkReference(**{name: getattr(row, name) for name in _ROW}, key=key)


def _possible(body: Body) -> bool:
    made_with = 0 <= body.codec < 1 << 8 and 0 <= body.dictionary < 1 << 32
    return made_with and len(body.chain) == _DIGEST_BYTES and all(map(_possible_row, body.chunks))


def _possible_row(row: _Row) -> bool:
    sizes_fit = 0 < row.plain_bytes <= limits.CHUNK_PLAIN_BYTES_MAX and 0 < row.stored_bytes <= row.plain_bytes + OVERHEAD_BYTES
    made_with = 0 <= row.codec < 1 << 8 and 0 <= row.dictionary < 1 << 32
    return sizes_fit and made_with and len(row.digest) == len(row.sha256) == _DIGEST_BYTES and row.cells > 0
