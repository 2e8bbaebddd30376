"""The manifest: what a snapshot is of, which chunks make it up, and the keys of these; sealed under the agent's data key.

The bytes are specified in docs/format/snapshot.md.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec

from perdure import limits
from perdure.errors import IntegrityError, LimitExceeded, SealBroken
from perdure.snapshots.chunks import ChunkReference
from perdure.snapshots.keys import CHUNK_KEY_BYTES, SnapshotKeys

__all__ = ["Kind", "Manifest", "open_manifest", "seal_manifest"]

Kind = Literal["full", "incremental", "checkpoint"]
_MAGIC: Final = b"pdmf"
_VERSION: Final = 0x01
_HEADER: Final = struct.Struct(">4sBQQ")
_CONTEXT: Final = b"snapshot-manifest"


class Body(msgspec.Struct, frozen=True, array_like=True):
    """The sealed part, as it is encoded."""

    kind: str
    epoch: int
    time_us: int
    chain: bytes
    state_digest: bytes
    previous: str
    created_us: int
    creator: str
    trigger: str
    reason: str
    warnings: tuple[str, ...]
    chunks: tuple[ChunkReference, ...]


class Manifest(msgspec.Struct, frozen=True):
    """One snapshot.

    version, epoch, time_us, chain: of the newest event in it. state_digest: as `engine.digest`. previous: object name of the manifest whose chunks
    it shares, or "". created_us, creator, trigger, reason: when, by whom and why it was made. warnings: of the fold.
    """

    tenant: str
    agent: str
    version: int
    generation: int
    kind: str
    epoch: int
    time_us: int
    chain: bytes
    state_digest: bytes
    previous: str
    created_us: int
    creator: str
    trigger: str
    reason: str
    warnings: tuple[str, ...]
    chunks: tuple[ChunkReference, ...]

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
    body = Body(**{name: getattr(manifest, name) for name in Body.__struct_fields__})
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
    if any(len(chunk.key) != CHUNK_KEY_BYTES or chunk.plain_bytes > limits.CHUNK_PLAIN_BYTES_MAX for chunk in body.chunks):
        raise wrong(IntegrityError, "it lists a chunk that cannot be")
    fields: dict[str, Any] = {name: getattr(body, name) for name in Body.__struct_fields__}
    return Manifest(tenant, agent, version, generation, **fields)
