"""Chunks: neighbouring cells, cut where their content says, compressed and sealed under a key that follows from their content.

The bytes are specified in docs/format/snapshot.md. Everything here is synchronous, thread-safe and free of input and output.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from perdure.errors import DictionaryNotFound, IntegrityError, SealBroken
from perdure.security.framing import join_fields
from perdure.snapshots.cells import HEADS, LIST, MAP, cell_name
from perdure.snapshots.codecs import NONE, Codec, CodecBroken, codec_numbered
from perdure.snapshots.cut import Cut
from perdure.snapshots.keys import SnapshotKeys, chunk_name, chunk_secrets, cipher_key
from perdure.snapshots.zstd import NO_DICTIONARY, ChunkDictionaries, ChunkDictionary

__all__ = [
    "OVERHEAD_BYTES",
    "ChunkReference",
    "as_stored",
    "decode_runs",
    "open_chunk",
    "open_plaintext",
    "seal_chunk",
]

_SEAL: Final = b"perdure chunk"
_VERSION: Final = 0x01
_HEADER: Final = struct.Struct(">BBII")
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_RUN_TYPES: Final[dict[tuple[type, ...], int]] = {(int, str, int, list): LIST, (int, str, dict): MAP, (int, dict): HEADS}
OVERHEAD_BYTES: Final = _HEADER.size + _NONCE_BYTES + _TAG_BYTES
"""What a chunk adds to its compressed cells."""

_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode


class ChunkReference(msgspec.Struct, frozen=True, gc=False):
    """A chunk as a manifest lists it. digest: SHA-256 of its plaintext. sha256: of its stored bytes. key: opens it, follows from the digest.
    first: name of its first cell. sizes in bytes."""

    digest: bytes
    sha256: bytes
    codec: int
    dictionary: int
    cells: int
    plain_bytes: int
    stored_bytes: int
    first: bytes
    key: bytes

    @property
    def name(self) -> bytes:
        """The chunk's name, 32 bytes; it follows from the key."""
        return chunk_name(self.key)


def seal_chunk(content: Cut, *, keys: SnapshotKeys, codec: Codec, dictionary: ChunkDictionary) -> tuple[ChunkReference, bytes]:
    """(what the manifest lists, the bytes to store). Deterministic within one release of the codec's library."""
    plaintext = content.plaintext
    asked = dictionary if codec.takes_dictionary else NO_DICTIONARY
    used = asked if len(plaintext) <= asked.helps_bytes else NO_DICTIONARY
    compressed = codec.compress(plaintext, used)
    # The key names what was asked for, so that it is known before anything is compressed; the header names what was used.
    key = keys.chunk_key(keys.version, codec.id, asked.id, content.digest)
    stored = (codec.id, used.id) if len(compressed) < len(plaintext) else (NONE.id, NO_DICTIONARY.id)
    if stored[0] == NONE.id:
        compressed = plaintext
    sizes = (content.cells, len(plaintext), len(compressed) + OVERHEAD_BYTES)
    reference = ChunkReference(content.digest, b"", *stored, *sizes, content.first, key)
    sealed = _seal(compressed, reference, keys.tenant)
    return msgspec.structs.replace(reference, sha256=sha256(sealed).digest()), sealed


def _seal(compressed: bytes, reference: ChunkReference, tenant: str) -> bytes:
    header = _HEADER.pack(_VERSION, reference.codec, reference.dictionary, reference.plain_bytes)
    secret, nonce = chunk_secrets(reference.key, compressed)
    associated = _associated(tenant, reference.name, header)
    return b"".join((header, nonce, AESGCM(secret).encrypt(nonce, compressed, associated)))


def open_chunk(sealed: bytes, reference: ChunkReference, *, keys: SnapshotKeys, dictionaries: ChunkDictionaries) -> list[tuple[bytes, Any]]:
    """The cells of a chunk. Raises IntegrityError, SealBroken, DictionaryNotFound; each names tenant, agent and chunk."""
    runs = decode_runs(open_plaintext(sealed, reference, keys=keys, dictionaries=dictionaries), reference, keys=keys)
    return list(_named(runs))


def open_plaintext(sealed: bytes, reference: ChunkReference, *, keys: SnapshotKeys, dictionaries: ChunkDictionaries) -> bytes:
    """A chunk decrypted and decompressed. Raises IntegrityError, SealBroken, DictionaryNotFound."""
    if len(sealed) != reference.stored_bytes:
        raise _damaged(keys, reference, f"it has {len(sealed)} bytes, {reference.stored_bytes} were written")
    if sha256(sealed).digest() != reference.sha256:
        raise _damaged(keys, reference, "its bytes are not the ones that were written")
    header, body = sealed[: _HEADER.size], _HEADER.size + _NONCE_BYTES
    if header != _HEADER.pack(_VERSION, reference.codec, reference.dictionary, reference.plain_bytes):
        raise _damaged(keys, reference, "its header is not the one that its manifest lists")
    try:
        associated = _associated(keys.tenant, reference.name, header)
        content = AESGCM(cipher_key(reference.key)).decrypt(sealed[_HEADER.size : body], sealed[body:], associated)
    except (InvalidTag, ValueError) as error:
        raise SealBroken("a chunk failed its authentication", tenant=keys.tenant, agent=keys.agent, chunk=reference.name.hex()) from error
    dictionary = NO_DICTIONARY if not reference.dictionary else dictionaries.find(reference.dictionary)
    if dictionary is None:
        raise DictionaryNotFound(
            f"a chunk needs dictionary {reference.dictionary}",
            hint="load the tenant's chunk dictionaries and open it again",
            tenant=keys.tenant,
            agent=keys.agent,
            chunk=reference.name.hex(),
            dictionary=reference.dictionary,
        )
    try:
        return codec_numbered(reference.codec).decompress(content, reference.plain_bytes, dictionary)
    except CodecBroken as error:
        raise _damaged(keys, reference, str(error)) from error


def as_stored(sealed: bytes, reference: ChunkReference) -> ChunkReference:
    """The reference to these stored bytes of a chunk: another release of a codec may have made others than `reference` lists. Nothing is
    checked, `open_plaintext` does that. Raises IntegrityError for bytes that are cut off."""
    if len(sealed) < OVERHEAD_BYTES:
        raise IntegrityError("a chunk is cut off", chunk=reference.name.hex())
    _, codec, dictionary, plain_bytes = _HEADER.unpack_from(sealed)
    facts = {"codec": codec, "dictionary": dictionary, "plain_bytes": plain_bytes}
    return msgspec.structs.replace(reference, sha256=sha256(sealed).digest(), stored_bytes=len(sealed), **facts)


def decode_runs(plaintext: bytes, reference: ChunkReference, *, keys: SnapshotKeys) -> list[list[Any]]:
    """The runs of a chunk: `[LIST, member, start, values]`, `[MAP, member, {key: value}]`, `[HEADS, {member: value}]`. Raises IntegrityError."""
    if sha256(plaintext).digest() != reference.digest:
        raise _damaged(keys, reference, "its content is not what was digested")
    try:
        runs = _decode(plaintext)
    except msgspec.MsgspecError as error:
        raise _damaged(keys, reference, f"its cells are not readable: {error}") from error
    for run in runs:
        kind = _RUN_TYPES.get(tuple(map(type, run)))
        if kind is None or kind != run[0]:
            raise _damaged(keys, reference, "it holds a run of a kind that is unknown to this release")
    return runs


def _named(runs: list[list[Any]]) -> Iterator[tuple[bytes, Any]]:
    for run in runs:
        if run[0] == LIST:
            for index, value in enumerate(run[3], run[2]):
                yield cell_name(LIST, run[1], index, ""), value
        else:
            for key, value in run[-1].items():
                yield cell_name(run[0], run[1] if run[0] == MAP else "", 0, key), value


def _associated(tenant: str, name: bytes, header: bytes) -> bytes:
    return join_fields(_SEAL, tenant.encode(), name) + header


def _damaged(keys: SnapshotKeys, reference: ChunkReference, reason: str) -> IntegrityError:
    return IntegrityError(
        f"a chunk cannot be used: {reason}",
        hint="take an older snapshot or fold the log; `perdure scrub` finds and replaces damaged chunks",
        tenant=keys.tenant,
        agent=keys.agent,
        chunk=reference.name.hex(),
    )
