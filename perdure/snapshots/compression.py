"""Compression by itself: batches, and which codec is worth it for given content.

Everything is synchronous and works in threads; codecs release the GIL.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Final, Literal, TypeVar

import msgspec

from perdure import limits
from perdure.errors import DictionaryNotFound, IntegrityError, InvalidInput, LimitExceeded
from perdure.snapshots.codecs import CODECS, NONE, CodecBroken, codec_named, codec_numbered
from perdure.snapshots.zstd import BUILTIN_DICTIONARIES, NO_DICTIONARY, ChunkDictionaries, ChunkDictionary

__all__ = [
    "Compressed",
    "Goal",
    "Measured",
    "benchmark_compression_algorithms",
    "compress_batch",
    "decompress_batch",
    "select_optimal_compression",
]

Goal = Literal["size", "speed", "balanced"]
STORE_BYTES_PER_S: Final = 100e6
"""What a store takes, for the balanced choice: compressing pays as long as it is faster than writing what it saves."""
T = TypeVar("T")
R = TypeVar("R")


class Compressed(msgspec.Struct, frozen=True):
    """Compressed bytes with all that is needed to get them back, and SHA-256 of the plaintext, because codecs do not notice corruption."""

    codec: int
    dictionary: int
    plain_bytes: int
    sha256: bytes
    content: bytes


class Measured(msgspec.Struct, frozen=True):
    """What a codec does with given content. saved: share of the bytes that it saves, 0 … 1. Rates are of plain bytes, in one thread."""

    codec: str
    dictionary: int
    plain_bytes: int
    compressed_bytes: int
    saved: float
    compress_mb_per_s: float
    decompress_mb_per_s: float


def compress_batch(
    plaintexts: Sequence[bytes], codec: str = "zstd", *, dictionary: ChunkDictionary = NO_DICTIONARY, threads: int | None = None
) -> list[Compressed]:
    """Compress each; what does not get smaller is kept as it is. threads: as many as there are processors by default.

    Raises InvalidInput (no such codec), LimitExceeded (one is larger than a chunk may be), MissingDependency.
    """
    chosen = codec_named(codec)
    used = dictionary if chosen.takes_dictionary else NO_DICTIONARY
    for number, plaintext in enumerate(plaintexts):
        if len(plaintext) > limits.CHUNK_PLAIN_BYTES_MAX:
            raise LimitExceeded(f"item {number} has {len(plaintext)} bytes, the limit is {limits.CHUNK_PLAIN_BYTES_MAX}", item=number)

    def one(plaintext: bytes) -> Compressed:
        content = chosen.compress(plaintext, used)
        if len(content) < len(plaintext):
            return Compressed(chosen.id, used.id, len(plaintext), sha256(plaintext).digest(), content)
        return Compressed(NONE.id, NO_DICTIONARY.id, len(plaintext), sha256(plaintext).digest(), plaintext)

    return _in_threads(one, plaintexts, threads)


def decompress_batch(
    batch: Sequence[Compressed], *, dictionaries: ChunkDictionaries = BUILTIN_DICTIONARIES, threads: int | None = None
) -> list[bytes]:
    """The plaintexts, each checked. Raises IntegrityError or DictionaryNotFound for the first that is damaged, with its number as `item`."""

    def one(numbered: tuple[int, Compressed]) -> bytes:
        number, item = numbered
        dictionary = dictionaries.find(item.dictionary) if item.dictionary else NO_DICTIONARY
        if dictionary is None:
            raise DictionaryNotFound(f"item {number} needs dictionary {item.dictionary}", item=number, dictionary=item.dictionary)
        if not 0 <= item.plain_bytes <= limits.CHUNK_PLAIN_BYTES_MAX:
            raise IntegrityError(f"item {number} says that it has {item.plain_bytes} bytes", item=number)
        try:
            plaintext = codec_numbered(item.codec).decompress(item.content, item.plain_bytes, dictionary)
        except CodecBroken as error:
            raise IntegrityError(f"item {number} cannot be decompressed: {error}", item=number) from error
        if sha256(plaintext).digest() != item.sha256:
            raise IntegrityError(f"item {number} decompresses to something else than was compressed", item=number)
        return plaintext

    return _in_threads(one, list(enumerate(batch)), threads)


def benchmark_compression_algorithms(
    samples: Sequence[bytes], *, codecs: Iterable[str] = tuple(CODECS), dictionary: ChunkDictionary = NO_DICTIONARY, rounds: int = 3
) -> list[Measured]:
    """Compress and decompress the samples with each codec, in this thread. Rates are of the best round, in seconds of this thread's CPU.

    dictionary: besides, zstd with it. Raises InvalidInput without a byte to measure, or for an unknown codec.
    """
    if not any(samples):
        raise InvalidInput("there is nothing to compress", hint="hand in samples of the content")
    variants = [(codec_named(name), NO_DICTIONARY) for name in codecs]
    if dictionary.id:
        variants += [(codec, dictionary) for codec, _ in variants if codec.takes_dictionary]
    plain_bytes = sum(map(len, samples))
    found = []
    for codec, used in variants:
        contents = [codec.compress(sample, used) for sample in samples]
        compress_s = _best(lambda codec=codec, used=used: [codec.compress(sample, used) for sample in samples], rounds)  # type: ignore[misc]
        pairs = list(zip(contents, map(len, samples), strict=True))
        decompress_s = _best(
            lambda codec=codec, used=used, pairs=pairs: [codec.decompress(content, size, used) for content, size in pairs],  # type: ignore[misc]
            rounds,
        )
        compressed_bytes = sum(map(len, contents))
        rates = (plain_bytes / compress_s / 1e6, plain_bytes / decompress_s / 1e6)
        found.append(Measured(codec.name, used.id, plain_bytes, compressed_bytes, 1 - compressed_bytes / plain_bytes, *rates))
    return found


def select_optimal_compression(
    samples: Sequence[bytes], *, goal: Goal = "balanced", dictionary: ChunkDictionary = NO_DICTIONARY
) -> Measured:
    """The codec to use for content like the samples.

    goal: `size` (the fewest bytes), `speed` (the fastest that saves a tenth, else none), `balanced` (the least time for compressing and writing to
    a store of `STORE_BYTES_PER_S`). Raises InvalidInput.
    """
    found = benchmark_compression_algorithms(samples, dictionary=dictionary)
    if goal == "size":
        return min(found, key=lambda each: (each.compressed_bytes, -each.compress_mb_per_s))
    if goal == "speed":
        worth = [each for each in found if each.saved >= 0.1]
        return max(worth, key=lambda each: each.compress_mb_per_s) if worth else next(each for each in found if each.codec == NONE.name)
    if goal == "balanced":
        return min(found, key=lambda each: each.plain_bytes / each.compress_mb_per_s / 1e6 + each.compressed_bytes / STORE_BYTES_PER_S)
    raise InvalidInput(f"there is no goal {goal!r}", hint="choose one of size, speed, balanced")


def _best(work: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(max(1, rounds)):
        before = time.thread_time()
        work()
        best = min(best, time.thread_time() - before)
    return max(best, 1e-9)


def _in_threads(work: Callable[[T], R], items: Sequence[T], threads: int | None) -> list[R]:
    count = min(len(items), threads or os.cpu_count() or 1)
    if count <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(count, thread_name_prefix="perdure-compression") as pool:
        return list(pool.map(work, items))
