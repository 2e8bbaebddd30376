"""Batches of compressed bytes, and the choice of a codec."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import limits
from perdure.errors import DictionaryNotFound, IntegrityError, InvalidInput, LimitExceeded
from perdure.snapshots.codecs import CODECS
from perdure.snapshots.compression import (
    Compressed,
    benchmark_compression_algorithms,
    compress_batch,
    decompress_batch,
    select_optimal_compression,
)
from perdure.snapshots.zstd import ChunkDictionary, builtin

TEXT = [b'{"role": "user", "content": "please change my booking number %d"}' % number * 20 for number in range(40)]
NOISE = [Random(number).randbytes(300) for number in range(3)]


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=2_000) | st.binary(max_size=20).map(lambda part: part * 99), max_size=8), st.sampled_from(sorted(CODECS))
)
def test_a_batch_comes_back_as_it_was(batch: list[bytes], codec: str) -> None:
    compressed = compress_batch(batch, codec, dictionary=builtin())
    assert all(len(item.content) <= item.plain_bytes for item in compressed)
    assert decompress_batch(compressed) == batch


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_give_the_same(threads: int) -> None:
    assert decompress_batch(compress_batch(TEXT, threads=threads), threads=threads) == TEXT


def told(good: Compressed, damaged: Compressed) -> object:
    """The item that an error names; a few bits mean nothing (gzip's file system), and then the content is right."""
    try:
        content = decompress_batch([good, damaged], threads=1)
    except IntegrityError as problem:
        return problem.details["item"]
    return 1 if content == TEXT[:2] else None


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_damage_is_told_with_the_item(codec: str) -> None:
    batch = compress_batch(TEXT[:3], codec)
    for place in range(len(batch[1].content)):
        content = bytearray(batch[1].content)
        content[place] ^= 1 << place % 8
        damaged = msgspec.structs.replace(batch[1], content=bytes(content))
        assert told(batch[0], damaged) == 1


@pytest.mark.parametrize(
    "fields", [{"codec": 99}, {"plain_bytes": 1 << 40}, {"plain_bytes": -1}, {"plain_bytes": 5}, {"sha256": bytes(32)}]
)
def test_an_item_that_lies_about_itself_is_refused(fields: dict[str, object]) -> None:
    (item,) = compress_batch(TEXT[:1])
    with pytest.raises(IntegrityError):
        decompress_batch([msgspec.structs.replace(item, **fields)])


def test_a_missing_dictionary_and_bad_input_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = compress_batch(TEXT, dictionary=ChunkDictionary(99, builtin().content))
    with pytest.raises(DictionaryNotFound):
        decompress_batch(batch)
    with pytest.raises(InvalidInput):
        compress_batch(TEXT, "brotli")
    with pytest.raises(InvalidInput):
        benchmark_compression_algorithms([b""])
    with pytest.raises(InvalidInput):
        select_optimal_compression(TEXT, goal="prettiest")  # type: ignore[arg-type]
    monkeypatch.setattr(limits, "CHUNK_PLAIN_BYTES_MAX", 100)
    with pytest.raises(LimitExceeded):
        compress_batch(TEXT)


def test_every_codec_is_measured_and_zstd_with_the_dictionary_besides() -> None:
    found = benchmark_compression_algorithms(TEXT, dictionary=builtin(), rounds=1)
    assert [(each.codec, each.dictionary) for each in found] == [*((name, 0) for name in CODECS), ("zstd", 1)]
    for each in found:
        assert each.plain_bytes == sum(map(len, TEXT))
        assert each.compress_mb_per_s > 0 < each.decompress_mb_per_s
        assert each.saved == pytest.approx(1 - each.compressed_bytes / each.plain_bytes)


def test_the_choice_follows_the_goal_and_the_content() -> None:
    smallest = min(benchmark_compression_algorithms(TEXT, rounds=1), key=lambda each: each.compressed_bytes)
    assert select_optimal_compression(TEXT, goal="size").compressed_bytes == smallest.compressed_bytes
    assert select_optimal_compression(TEXT, goal="speed").saved >= 0.1
    assert select_optimal_compression(TEXT).codec != "none"
    assert select_optimal_compression(NOISE, goal="speed").codec == "none"
    assert select_optimal_compression(NOISE, goal="size").codec == "none"
