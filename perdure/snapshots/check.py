"""An independent look at a stored snapshot, after docs/format/snapshot.md alone.

Shares no code with what writes, reads or names snapshots: own parsers, own derivation of keys, own hashing. So a mistake that writer and reader
have in common shows here. It tells all that is wrong, not only the first.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from perdure.snapshots.check_msgpack import NotCanonical, read_all
from perdure.snapshots.check_state import StateCheck

__all__ = ["CheckKeys", "Checked", "Problem", "check_snapshot"]

CHUNKS_MAX = 40_000
PLAIN_BYTES_MAX = 255 * 1024 * 1024 + 16 * 1024
Fetch = Callable[[str], bytes | None]


class CheckKeys(NamedTuple):
    """What opens an agent's snapshots.

    chunk_secrets: by version of the tenant's key. mark_secret: of its lowest version. event_dictionary, chunk_dictionary: content by id.
    """

    tenant: str
    agent: str
    data_key: bytes
    chunk_secrets: Mapping[int, bytes]
    mark_secret: bytes
    event_dictionary: Callable[[int], bytes | None]
    chunk_dictionary: Callable[[int], bytes | None]


class Problem(NamedTuple):
    """What is wrong, and where: "manifest", or the object's name."""

    where: str
    what: str


class Checked(NamedTuple):
    """problems: none for a whole snapshot. document, state_digest: only of a whole one. chunks, bytes_read: that were looked at."""

    problems: list[Problem]
    document: dict[str, Any] | None
    state_digest: bytes
    chunks: int
    bytes_read: int


class _Bad(Exception):
    pass


def check_snapshot(sealed_manifest: bytes, version: int, fetch: Fetch, keys: CheckKeys) -> Checked:
    """Check everything that a manifest lists. fetch: the object of a name, None where it is not there."""
    try:
        body = _manifest(sealed_manifest, version, keys)
    except (_Bad, NotCanonical, InvalidTag) as error:
        return Checked([Problem("manifest", _reason(error))], None, b"", 0, len(sealed_manifest))
    problems: list[Problem] = []
    state = StateCheck()
    read = len(sealed_manifest)
    for entry in body[13]:
        name = _chunk_object(entry[0], body, keys)
        stored = fetch(name)
        read += len(stored or b"")
        try:
            if stored is None:
                raise _Bad("it is not there")
            plaintext = _chunk(stored, entry, body, keys)
            state.take(read_all(plaintext), cells=entry[4], first=entry[7])
        except (_Bad, NotCanonical, InvalidTag, ValueError, OverflowError) as error:
            problems.append(Problem(name, _reason(error)))
            state.gap = True
    digest = hashlib.sha256(b"perdure-snapshot-state-1" + b"".join(entry[0] for entry in body[13])).digest()
    if not problems:
        problems += [Problem("state", what) for what in state.end()]
    whole = not problems
    return Checked(problems, state.document if whole else None, digest if whole else b"", len(body[13]), read)


def _reason(error: Exception) -> str:
    return "its authentication failed" if isinstance(error, InvalidTag) else str(error)


# --- the manifest ---


def _manifest(sealed: bytes, version: int, keys: CheckKeys) -> list[Any]:
    if len(sealed) < 21 or sealed[:5] != b"pdmf\x01":
        raise _Bad("it does not begin as a manifest does")
    stands, _ = struct.unpack(">QQ", sealed[5:21])
    if stands != version:
        raise _Bad(f"it is of version {stands}, not {version}")
    body = read_all(_open_sealed(sealed[21:], b"snapshot-manifest" + sealed[:21], keys))
    kinds = (str, int, int, bytes, str, int, str, str, str, list, int, int, int, list)
    if type(body) is not list or tuple(map(type, body)) != kinds:
        raise _Bad("its fields are not those of a manifest")
    if body[0] not in ("full", "incremental", "checkpoint") or len(body[3]) != 32 or body[12] not in keys.chunk_secrets:
        raise _Bad("its kind, chain or key version cannot be")
    if len(body[13]) > CHUNKS_MAX:
        raise _Bad(f"it lists {len(body[13])} chunks")
    for entry in body[13]:
        if type(entry) is not list or tuple(map(type, entry)) != (bytes, bytes, int, int, int, int, int, bytes):
            raise _Bad("an entry of its list is not that of a chunk")
        if len(entry[0]) != 32 or len(entry[1]) != 32 or not 0 < entry[5] <= PLAIN_BYTES_MAX:
            raise _Bad("an entry of its list cannot be")
    return body


def _open_sealed(sealed: bytes, context: bytes, keys: CheckKeys) -> bytes:
    """A sealed value (docs/format/sealed-payload.md)."""
    if len(sealed) < 31 or sealed[0] not in (0x01, 0x81):
        raise _Bad("its seal is cut off or of an unknown format")
    at, number, shift = 2, 0, 0
    while True:
        byte = sealed[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
        if shift > 14:
            raise _Bad("its dictionary id is too long")
    associated = _fields(b"perdure seal", keys.tenant.encode(), keys.agent.encode())
    associated += struct.pack(">I", len(context)) + context + sealed[:at]
    content = AESGCM(keys.data_key).decrypt(sealed[at : at + 12], sealed[at + 12 :], associated)
    if sealed[0] == 0x01:
        return content
    dictionary = keys.event_dictionary(number) if number else b""
    if dictionary is None:
        raise _Bad(f"dictionary {number} is not there")
    return _unzstd(content, dictionary, None)


# --- a chunk ---


def _chunk_object(digest: bytes, body: list[Any], keys: CheckKeys) -> str:
    name = _hmac(_chunk_key(digest, body, keys), b"name").hex()
    return f"chunks/{_hmac(keys.mark_secret, _fields(b'snapshots of tenant'))[:16].hex()}/{name[:2]}/{name}"


def _chunk_key(digest: bytes, body: list[Any], keys: CheckKeys) -> bytes:
    return _hmac(keys.chunk_secrets[body[12]], struct.pack(">BI", body[10], body[11]) + digest)


def _chunk(stored: bytes, entry: list[Any], body: list[Any], keys: CheckKeys) -> bytes:
    digest, sha256, codec, dictionary, _, plain_bytes, stored_bytes, _ = entry
    if len(stored) != stored_bytes:
        raise _Bad(f"it has {len(stored)} bytes, not {stored_bytes}")
    if hashlib.sha256(stored).digest() != sha256:
        raise _Bad("its SHA-256 is another one")
    if stored[:10] != struct.pack(">BBII", 1, codec, dictionary, plain_bytes):
        raise _Bad("its header is another one")
    key = _chunk_key(digest, body, keys)
    associated = _fields(b"perdure chunk", keys.tenant.encode(), _hmac(key, b"name")) + stored[:10]
    halves = hmac.new(key, b"seal", hashlib.sha512).digest()
    content = AESGCM(halves[:32]).decrypt(stored[10:22], stored[22:], associated)
    if stored[10:22] != _hmac(halves[32:], content)[:12]:
        raise _Bad("its nonce does not follow from its content")
    found = keys.chunk_dictionary(dictionary) if dictionary else b""
    if found is None:
        raise _Bad(f"dictionary {dictionary} is not there")
    plaintext = _decompress(codec, content, plain_bytes, found)
    if hashlib.sha256(plaintext).digest() != digest:
        raise _Bad("its content is not what its manifest lists")
    return plaintext


def _decompress(codec: int, content: bytes, plain_bytes: int, dictionary: bytes) -> bytes:
    if codec == 0:
        plaintext = content
    elif codec == 1:
        plaintext = _unzstd(content, dictionary, plain_bytes)
    elif codec == 2:
        import lz4.block

        try:
            plaintext = lz4.block.decompress(content, uncompressed_size=plain_bytes)
        except lz4.block.LZ4BlockError as error:
            raise _Bad(f"lz4: {error}") from error
    elif codec == 3:
        plaintext = _unsnappy(content, plain_bytes)
    elif codec == 4:
        stream = zlib.decompressobj(31)
        try:
            plaintext = stream.decompress(content, plain_bytes + 1)
        except zlib.error as error:
            raise _Bad(f"gzip: {error}") from error
        if not stream.eof or stream.unused_data:
            raise _Bad("gzip: it does not end where it should")
    else:
        raise _Bad(f"codec {codec} is unknown")
    if len(plaintext) != plain_bytes:
        raise _Bad(f"it decompresses to {len(plaintext)} bytes, not {plain_bytes}")
    return plaintext


def _unzstd(content: bytes, dictionary: bytes, plain_bytes: int | None) -> bytes:
    form = zstandard.FORMAT_ZSTD1_MAGICLESS
    try:
        declared = zstandard.get_frame_parameters(content, format=form).content_size
        if declared > PLAIN_BYTES_MAX or (plain_bytes is not None and declared != plain_bytes):
            raise _Bad(f"zstd: its frame declares {declared} bytes")
        data = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        return zstandard.ZstdDecompressor(dict_data=data, format=form).decompress(content, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _Bad(f"zstd: {error}") from error


def _unsnappy(content: bytes, plain_bytes: int) -> bytes:
    """Raw snappy, element by element."""
    out, at, size, shift = bytearray(), 0, 0, 0
    try:
        while True:
            byte = content[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        if size != plain_bytes:
            raise _Bad(f"snappy: it declares {size} bytes")
        while at < len(content):
            at = _snappy_element(content, at, out)
            if len(out) > plain_bytes:
                raise _Bad("snappy: it holds more than it declares")
    except IndexError as error:
        raise _Bad("snappy: it ends too early") from error
    return bytes(out)


def _snappy_element(content: bytes, at: int, out: bytearray) -> int:
    tag = content[at]
    kind, at = tag & 3, at + 1
    if kind == 0:
        length = tag >> 2
        if length >= 60:
            width = length - 59
            length, at = int.from_bytes(content[at : at + width], "little"), at + width
        if at + length + 1 > len(content):
            raise _Bad("snappy: it ends too early")
        out += content[at : at + length + 1]
        return at + length + 1
    if kind == 1:
        length, offset, at = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | content[at], at + 1
    else:
        width = 2 if kind == 2 else 4
        length, offset, at = (tag >> 2) + 1, int.from_bytes(content[at : at + width], "little"), at + width
    if not 0 < offset <= len(out):
        raise _Bad("snappy: it copies from before its beginning")
    for _ in range(length):
        out.append(out[-offset])
    return at


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def _fields(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)
