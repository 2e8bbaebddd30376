"""zstd as chunks use it: magicless frames, a dictionary or none, tables sized for chunks, and decompression that is bounded."""

from __future__ import annotations

import threading
from functools import cache
from importlib.resources import files
from typing import Final, Protocol

import zstandard

from perdure import limits

__all__ = [
    "BUILTIN_CHUNK_DICTIONARY_ID",
    "BUILTIN_DICTIONARIES",
    "NO_DICTIONARY",
    "ChunkDictionaries",
    "ChunkDictionary",
    "CodecBroken",
    "builtin",
]

LEVEL: Final = 3
_FORMAT: Final = zstandard.FORMAT_ZSTD1_MAGICLESS
BUILTIN_CHUNK_DICTIONARY_ID: Final = 1
BUILTIN_HELPS_BYTES: Final = 32 * limits.KIB


class CodecBroken(Exception):
    """Content does not decompress to what was expected. Never seen outside of this room: it becomes a typed error that says where."""


class _Codecs(threading.local):
    """One compressor and one decompressor per thread: zstandard's objects must not be used by two threads at once."""

    def __init__(self, parameters: zstandard.ZstdCompressionParameters, data: zstandard.ZstdCompressionDict | None) -> None:
        self.compressor = zstandard.ZstdCompressor(dict_data=data, compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor(dict_data=data, format=_FORMAT)


class ChunkDictionary:
    """A dictionary for chunks, digested once and shared by all threads.

    id: as chunks name it, 0 for none. content: its bytes. agent_type: of the agents it was trained on, "" for the built-in one. helps_bytes: larger
    plaintexts are compressed without it, because it would cost a fifth of the speed and save next to nothing.
    """

    __slots__ = ("_codecs", "agent_type", "content", "helps_bytes", "id")

    def __init__(self, id: int, content: bytes = b"", agent_type: str = "") -> None:
        self.id = id
        self.content = content
        self.agent_type = agent_type
        self.helps_bytes = BUILTIN_HELPS_BYTES if id == BUILTIN_CHUNK_DICTIONARY_ID else limits.CHUNK_PLAIN_BYTES_MAX
        # Tables for the sizes that chunks have: a twentieth faster than zstd's own choice for input of unknown size.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL,
            source_size=limits.CHUNK_BYTES_MIN + limits.CHUNK_BYTES_STEP,
            dict_size=len(content),
            format=_FORMAT,
            write_content_size=1,
            write_checksum=0,
            write_dict_id=0,
        )
        data = zstandard.ZstdCompressionDict(content) if content else None
        if data is not None:
            data.precompute_compress(compression_params=parameters)
        self._codecs = _Codecs(parameters, data)

    def compress(self, plaintext: bytes) -> bytes:
        """One frame that declares the size of its content."""
        return self._codecs.compressor.compress(plaintext)

    def decompress(self, frame: bytes, plain_bytes: int) -> bytes:
        """The content of exactly one frame, refused before any memory is taken when it does not declare `plain_bytes`.

        zstandard ignores `max_output_size` for a frame that declares its size, hence the look into the header. Raises CodecBroken.
        """
        try:
            declared = zstandard.get_frame_parameters(frame, format=_FORMAT).content_size
            if declared != plain_bytes:
                raise CodecBroken(f"zstd: the frame declares {declared} bytes, not {plain_bytes}")
            return self._codecs.decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CodecBroken(f"zstd: {error}") from error


class ChunkDictionaries(Protocol):
    """The dictionaries that chunks of one tenant may name."""

    def find(self, id: int) -> ChunkDictionary | None:
        """The one with this id, or None where it is not loaded."""
        ...


NO_DICTIONARY: Final = ChunkDictionary(0)


@cache
def builtin() -> ChunkDictionary:
    """The dictionary that ships with the package, trained on generated conversations."""
    return ChunkDictionary(BUILTIN_CHUNK_DICTIONARY_ID, files("perdure.security").joinpath("builtin.zdict").read_bytes())


class _Builtin:
    """No dictionaries but the built-in one."""

    def find(self, id: int) -> ChunkDictionary | None:
        if id == BUILTIN_CHUNK_DICTIONARY_ID:
            return builtin()
        return None if id else NO_DICTIONARY


BUILTIN_DICTIONARIES: Final[ChunkDictionaries] = _Builtin()
