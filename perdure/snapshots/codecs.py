"""Compression codecs behind one small protocol. Bounded: a codec gives out exactly as many bytes as it was told to expect, or an error.

A codec does not notice corruption (a flipped bit may give other bytes silently); what it decompresses has therefore been authenticated before.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, Protocol

from perdure.errors import InvalidInput, MissingDependency
from perdure.snapshots.zstd import ChunkDictionary, CodecBroken

__all__ = ["CODECS", "NONE", "Codec", "CodecBroken", "codec_named", "codec_numbered"]


class Codec(Protocol):
    """A way to make bytes smaller. Thread-safe; releases the GIL while it works on more than a few bytes."""

    @property
    def name(self) -> str:
        """As people write it."""
        ...

    @property
    def id(self) -> int:
        """As stored; an id is never given to another codec."""
        ...

    @property
    def takes_dictionary(self) -> bool:
        """Whether a dictionary helps it; others are handed `NO_DICTIONARY`."""
        ...

    def compress(self, plaintext: bytes, dictionary: ChunkDictionary) -> bytes:
        """The same plaintext gives the same bytes within one release of the codec's library."""
        ...

    def decompress(self, content: bytes, plain_bytes: int, dictionary: ChunkDictionary) -> bytes:
        """Exactly `plain_bytes` bytes. Takes no memory beyond that whatever the content claims. Raises CodecBroken."""
        ...


class _None:
    name, id, takes_dictionary = "none", 0, False

    def compress(self, plaintext: bytes, dictionary: ChunkDictionary) -> bytes:  # noqa: ARG002 - the protocol's
        return plaintext

    def decompress(self, content: bytes, plain_bytes: int, dictionary: ChunkDictionary) -> bytes:  # noqa: ARG002
        return _exactly(content, plain_bytes)


class _Zstd:
    """zstd level 3; frames without magic number, checksum and dictionary id, and with their content's size."""

    name, id, takes_dictionary = "zstd", 1, True

    def compress(self, plaintext: bytes, dictionary: ChunkDictionary) -> bytes:
        return dictionary.compress(plaintext)

    def decompress(self, content: bytes, plain_bytes: int, dictionary: ChunkDictionary) -> bytes:
        return dictionary.decompress(content, plain_bytes)


class _Lz4:
    """Raw LZ4 blocks; the size is the caller's, so none is stored."""

    name, id, takes_dictionary = "lz4", 2, False

    def compress(self, plaintext: bytes, dictionary: ChunkDictionary) -> bytes:  # noqa: ARG002
        compressed: bytes = _library("lz4.block").compress(plaintext, store_size=False)
        return compressed

    def decompress(self, content: bytes, plain_bytes: int, dictionary: ChunkDictionary) -> bytes:  # noqa: ARG002
        block = _library("lz4.block")
        try:
            # The size given is the size of the buffer: a block that holds more fails, it never grows.
            return _exactly(block.decompress(content, uncompressed_size=plain_bytes), plain_bytes)
        except (block.LZ4BlockError, ValueError) as error:
            raise CodecBroken(f"lz4: {error}") from error


class _Snappy:
    """Raw snappy, which begins with the size of its content."""

    name, id, takes_dictionary = "snappy", 3, False

    def compress(self, plaintext: bytes, dictionary: ChunkDictionary) -> bytes:  # noqa: ARG002
        compressed: bytes = _library("snappy").compress(plaintext)
        return compressed

    def decompress(self, content: bytes, plain_bytes: int, dictionary: ChunkDictionary) -> bytes:  # noqa: ARG002
        library = _library("snappy")
        declared = _snappy_size(content)
        if declared != plain_bytes:
            raise CodecBroken(f"snappy: the block declares {declared} bytes, not {plain_bytes}")
        try:
            return _exactly(library.uncompress(content), plain_bytes)
        except library.UncompressError as error:
            raise CodecBroken(f"snappy: {error}") from error


class _Gzip:
    """gzip (RFC 1952), one member, no time stamp: for exchange with other programs."""

    name, id, takes_dictionary = "gzip", 4, False

    def compress(self, plaintext: bytes, dictionary: ChunkDictionary) -> bytes:  # noqa: ARG002
        compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
        return compressor.compress(plaintext) + compressor.flush()

    def decompress(self, content: bytes, plain_bytes: int, dictionary: ChunkDictionary) -> bytes:  # noqa: ARG002
        decompressor = zlib.decompressobj(31)
        try:
            # One byte more than expected is asked for: zero would mean "without limit", and a longer content shows itself by it.
            plaintext = decompressor.decompress(content, plain_bytes + 1)
        except zlib.error as error:
            raise CodecBroken(f"gzip: {error}") from error
        if not decompressor.eof or decompressor.unused_data:
            raise CodecBroken("gzip: the stream does not end where it should")
        return _exactly(plaintext, plain_bytes)


NONE: Final[Codec] = _None()
CODECS: Final[dict[str, Codec]] = {codec.name: codec for codec in (NONE, _Zstd(), _Lz4(), _Snappy(), _Gzip())}
"""All codecs by name."""
_BY_ID: Final = {codec.id: codec for codec in CODECS.values()}


def codec_named(name: str) -> Codec:
    """The codec of this name. Raises InvalidInput."""
    codec = CODECS.get(name)
    if codec is None:
        raise InvalidInput(f"there is no codec {name!r}", hint=f"choose one of {', '.join(CODECS)}")
    return codec


def codec_numbered(id: int) -> Codec:
    """The codec with this id. Raises CodecBroken."""
    codec = _BY_ID.get(id)
    if codec is None:
        raise CodecBroken(f"codec {id} is unknown to this release")
    return codec


def _exactly(plaintext: bytes, plain_bytes: int) -> bytes:
    if len(plaintext) != plain_bytes:
        raise CodecBroken(f"{len(plaintext)} bytes came out, {plain_bytes} were written")
    return plaintext


def _snappy_size(content: bytes) -> int:
    size = 0
    for index, byte in enumerate(content[:5]):
        size |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return size
    raise CodecBroken("snappy: the block does not begin with its size")


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(f"the codec's library {name!r} is not installed", hint="pip install 'perdure[snapshots]'") from error
