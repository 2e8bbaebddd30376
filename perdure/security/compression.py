"""zstd as sealed values use it: frames without magic number, checksum and dictionary id, and decompression that is bounded.

A frame always lies inside an authenticated seal that names its dictionary, so those three would only repeat what is known.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import repeat

import zstandard

__all__ = ["NO_DICTIONARY", "Dictionary", "FrameBroken"]

_LEVEL = 3
_SOURCE_BYTES = 16 * 1024
_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
_LONG_SIZE = b"\x80"
"""Frames that begin with less declare their size in at most two bytes, or not at all; zstandard refuses those."""
_SHORT_SIZE_MAX = 256 + 0xFFFF


class FrameBroken(Exception):
    """A frame is not one of ours. Only the cipher sees it, and makes a typed error of it."""


class _Codecs(threading.local):
    """One compressor and one decompressor per thread: zstandard's objects must not be used by two threads at once."""

    def __init__(self, parameters: zstandard.ZstdCompressionParameters, data: zstandard.ZstdCompressionDict | None) -> None:
        self.compressor = zstandard.ZstdCompressor(dict_data=data, compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor(dict_data=data, format=_FORMAT)


class Dictionary:
    """A compression dictionary, digested once and shared by all threads.

    id: as sealed values name it. content: the dictionary's bytes, or empty for compression without one.
    """

    __slots__ = ("_codecs", "content", "id")

    def __init__(self, id: int, content: bytes = b"") -> None:
        self.id = id
        self.content = content
        # Tables sized for events: half the memory per tenant of zstd's own choice for input of unknown size, and no fewer bytes saved.
        sizes = {"source_size": _SOURCE_BYTES, "dict_size": len(content)} if content else {}
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, format=_FORMAT, write_content_size=1, write_checksum=0, write_dict_id=0, **sizes
        )
        data = zstandard.ZstdCompressionDict(content) if content else None
        if data is not None:
            data.precompute_compress(compression_params=parameters)
        self._codecs = _Codecs(parameters, data)

    def compress(self, plaintext: bytes) -> bytes:
        """One frame that declares the size of its content."""
        return self._codecs.compressor.compress(plaintext)

    def decompress(self, frames: Sequence[bytes], bytes_max: int) -> list[bytes]:
        """The contents, of exactly one frame each, refused before any memory is taken when one declares more than `bytes_max`.

        zstandard ignores `max_output_size` for a frame that declares its size, hence the look into the header. Raises FrameBroken.
        """
        decompress = self._codecs.decompressor.decompress
        # The two highest bits of a frame tell how many bytes its size takes (RFC 8878, 3.1.1.1): most cannot be large.
        long_size = _LONG_SIZE if bytes_max >= _SHORT_SIZE_MAX else b""
        if max(frames, default=b"") >= long_size:
            for frame in frames:
                if frame >= long_size:
                    _check_size(frame, bytes_max)
        try:
            # Positions: max_output_size, read_across_frames, allow_extra_data. Names would take half as long again.
            return list(map(decompress, frames, repeat(0), repeat(False), repeat(False)))
        except zstandard.ZstdError as error:
            raise FrameBroken(str(error)) from error


def _check_size(frame: bytes, bytes_max: int) -> None:
    try:
        declared = zstandard.get_frame_parameters(frame, format=_FORMAT).content_size
    except zstandard.ZstdError as error:
        raise FrameBroken(str(error)) from error
    if declared > bytes_max:  # an undeclared size is the largest number there is
        raise FrameBroken(f"the frame declares {declared} bytes, the limit is {bytes_max}")


NO_DICTIONARY = Dictionary(0)
