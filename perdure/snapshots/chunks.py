"""Chunks: neighbouring cells, cut where their content says, compressed and sealed under a key that follows from their content.

The bytes are specified in docs/format/snapshot.md. Everything here is synchronous, thread-safe and free of input and output.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from perdure import limits
from perdure.errors import DictionaryNotFound, IntegrityError, LimitExceeded, SealBroken
from perdure.security.framing import join_fields
from perdure.snapshots.codecs import NONE, Codec, CodecBroken, codec_numbered
from perdure.snapshots.keys import SnapshotKeys, chunk_name, chunk_secrets, cipher_key
from perdure.snapshots.zstd import NO_DICTIONARY, ChunkDictionaries, ChunkDictionary

__all__ = [
    "OVERHEAD_BYTES",
    "ChunkReference",
    "Cut",
    "as_stored",
    "content_digest",
    "cut",
    "decode_cells",
    "open_chunk",
    "open_plaintext",
    "row",
    "seal_chunk",
]

_DOMAIN: Final = b"perdure-chunk-1"
_SEAL: Final = b"perdure chunk"
_VERSION: Final = 0x01
_HEADER: Final = struct.Struct(">BBII")
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_ARRAY32: Final = b"\xdd"
OVERHEAD_BYTES: Final = _HEADER.size + _NONCE_BYTES + _TAG_BYTES
"""What a chunk adds to its compressed cells."""

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


class ChunkReference(msgspec.Struct, frozen=True, array_like=True):
    """A chunk as a manifest lists it. key: opens it. sha256: of the stored bytes. first: name of its first cell. sizes in bytes."""

    key: bytes
    sha256: bytes
    codec: int
    dictionary: int
    cells: int
    plain_bytes: int
    stored_bytes: int
    first: bytes

    @property
    def name(self) -> bytes:
        """The chunk's name, 32 bytes; it follows from the key."""
        return chunk_name(self.key)


class Cut(NamedTuple):
    """The cells of one chunk: names, canonical values, and digest of the content."""

    names: list[bytes]
    values: list[bytes]
    digest: bytes

    def plaintext(self) -> bytes:
        """The chunk before it is compressed."""
        count = len(self.names)
        lengths = struct.pack(f">I{count}H{count}I", count, *map(len, self.names), *map(len, self.values))
        return b"".join((lengths, *self.names, _ARRAY32, count.to_bytes(4, "big"), *self.values))


def row(name: bytes, value_sha256: bytes) -> bytes:
    """A cell as the digests of content and state see it."""
    return len(name).to_bytes(4, "big") + name + value_sha256


def content_digest(rows: bytes) -> bytes:
    """The digest of a chunk's content, 32 bytes. rows: of its cells, in order."""
    return sha256(_DOMAIN + rows).digest()


def cut(cells: Iterable[tuple[bytes, Any]], state: Any) -> Iterator[Cut]:
    """Cut cells, which come in the order of their names, into chunks. state: a hash that is fed the rows, for the state's digest.

    A chunk ends after a cell whose value's hash says so (the larger the cell, the likelier), so that equal runs of cells are cut equally wherever
    they stand; never below `CHUNK_BYTES_MIN` nor, but for a single larger cell, above `CHUNK_BYTES_MAX`.
    """
    names: list[bytes] = []
    values: list[bytes] = []
    rows: list[bytes] = []
    size_bytes = 0
    for name, value in cells:
        encoded = _encode(value)
        cell_bytes = len(name) + len(encoded)
        if names and size_bytes + cell_bytes > limits.CHUNK_BYTES_MAX:
            yield _finish(names, values, rows, state)
            names, values, rows, size_bytes = [], [], [], 0
        if cell_bytes > limits.CHUNK_CELL_BYTES_MAX:
            raise LimitExceeded(f"a cell has {cell_bytes} bytes, the limit is {limits.CHUNK_CELL_BYTES_MAX}", cell=name.hex())
        hashed = sha256(encoded).digest()
        names.append(name)
        values.append(encoded)
        rows.append(row(name, hashed))
        size_bytes += cell_bytes
        if size_bytes >= limits.CHUNK_BYTES_MIN and _ends(hashed, cell_bytes):
            yield _finish(names, values, rows, state)
            names, values, rows, size_bytes = [], [], [], 0
    if names:
        yield _finish(names, values, rows, state)


def _ends(hashed: bytes, cell_bytes: int) -> bool:
    return int.from_bytes(hashed[:4], "big") * limits.CHUNK_BYTES_STEP < cell_bytes << 32


def _finish(names: list[bytes], values: list[bytes], rows: list[bytes], state: Any) -> Cut:
    joined = b"".join(rows)
    state.update(joined)
    return Cut(names, values, content_digest(joined))


def seal_chunk(content: Cut, *, keys: SnapshotKeys, codec: Codec, dictionary: ChunkDictionary) -> tuple[ChunkReference, bytes]:
    """(what the manifest lists, the bytes to store). Deterministic within one release of the codec's library."""
    plaintext = content.plaintext()
    used = dictionary if codec.takes_dictionary else NO_DICTIONARY
    compressed = codec.compress(plaintext, used)
    # The key names the codec that was asked for, so that it is known before anything is compressed; the header names the one that was used.
    key = keys.chunk_key(codec.id, used.id, content.digest)
    stored_codec, stored_dictionary = (codec.id, used.id) if len(compressed) < len(plaintext) else (NONE.id, 0)
    if stored_codec == NONE.id:
        compressed = plaintext
    header = _HEADER.pack(_VERSION, stored_codec, stored_dictionary, len(plaintext))
    secret, nonce = chunk_secrets(key, compressed)
    sealed = header + nonce + AESGCM(secret).encrypt(nonce, compressed, _associated(keys.tenant, chunk_name(key), header))
    first = content.names[0]
    count = len(content.names)
    reference = ChunkReference(key, sha256(sealed).digest(), stored_codec, stored_dictionary, count, len(plaintext), len(sealed), first)
    return reference, sealed


def open_chunk(sealed: bytes, reference: ChunkReference, *, keys: SnapshotKeys, dictionaries: ChunkDictionaries) -> list[tuple[bytes, Any]]:
    """The cells of a chunk. Raises IntegrityError, SealBroken, DictionaryNotFound; each names tenant, agent and chunk."""
    names, values, _ = decode_cells(open_plaintext(sealed, reference, keys=keys, dictionaries=dictionaries), reference, keys=keys)
    return list(zip(names, values, strict=True))


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


def decode_cells(plaintext: bytes, reference: ChunkReference, *, keys: SnapshotKeys) -> tuple[list[bytes], list[Any], bytes]:
    """(names, values, rows) of a chunk's plaintext. Raises IntegrityError."""
    try:
        count = int.from_bytes(plaintext[:4], "big")
        if count != reference.cells:
            raise _damaged(keys, reference, f"it holds {count} cells, its manifest lists {reference.cells}")
        lengths = struct.unpack_from(f">{count}H{count}I", plaintext, 4)
        at = 4 + 6 * count
        names: list[bytes] = []
        for length in lengths[:count]:
            names.append(plaintext[at : at + length])
            at += length
        values = _decode(memoryview(plaintext)[at:])
        rows = _rows(plaintext, at + 5, names, lengths[count:])
    except (struct.error, msgspec.MsgspecError, ValueError) as error:
        raise _damaged(keys, reference, f"its cells are not readable: {error}") from error
    if len(values) != count or names[0] != reference.first:
        raise _damaged(keys, reference, "it begins with another cell than its manifest lists")
    return names, values, rows


def _rows(plaintext: bytes, at: int, names: Sequence[bytes], lengths: Sequence[int]) -> bytes:
    rows = []
    for name, length in zip(names, lengths, strict=True):
        rows.append(row(name, sha256(plaintext[at : at + length]).digest()))
        at += length
    if at != len(plaintext):
        raise ValueError("the lengths of its values do not add up")
    return b"".join(rows)


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
