"""Whatever is done to a stored snapshot gives a typed error that says what and where, and never a state."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import lz4.block
import msgspec
import pytest
import snappy
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from perdure import limits
from perdure.engine.digest import canonical
from perdure.errors import DictionaryNotFound, IntegrityError, InvalidInput, KeyUnavailable, LimitExceeded, PerdureError, SealBroken
from perdure.security.cipher import Cipher
from perdure.security.dictionary_set import BUILTIN
from perdure.security.tenant_key import TenantKey
from perdure.snapshots import chunks as chunk_module
from perdure.snapshots.check import check_snapshot
from perdure.snapshots.chunks import open_chunk, open_plaintext, seal_chunk
from perdure.snapshots.codecs import CODECS, CodecBroken, codec_named, codec_numbered
from perdure.snapshots.cut import Cut
from perdure.snapshots.keys import SnapshotKeys, chunk_secrets, cipher_key
from perdure.snapshots.manifest import open_manifest, seal_manifest
from perdure.snapshots.pack import pack, unpack
from perdure.snapshots.zstd import BUILTIN_DICTIONARIES, NO_DICTIONARY, ChunkDictionary
from tests.unit.fix_snapshots import Stored, check_keys, conversation, make_keys, small_chunks, state_of, store

KEYS = make_keys()


def small(codec: str = "zstd", version: int = 7, messages: int = 30) -> Stored:
    with small_chunks():
        return store(state_of(conversation(messages), version), KEYS, codec=codec)


def load(sealed: bytes, chunks: list[bytes], keys: SnapshotKeys = KEYS, version: int = 7) -> Any:
    manifest = open_manifest(sealed, keys=keys, tenant=keys.tenant, agent=keys.agent, version=version)
    return unpack(manifest, chunks, keys=keys)


def refused(kinds: Any, attempt: Callable[..., Any], *arguments: Any, **options: Any) -> PerdureError:
    with pytest.raises(kinds) as caught:
        attempt(*arguments, **options)
    problem: PerdureError = caught.value
    assert problem.tenant
    assert problem.agent
    return problem


# --- the sweep ---


def test_every_flipped_byte_of_a_manifest_is_noticed() -> None:
    stored = small()
    for place in range(len(stored.sealed)):
        for bits in (0x01, 0x80, 0xFF):
            changed = bytearray(stored.sealed)
            changed[place] ^= bits
            problem = refused(IntegrityError, load, bytes(changed), stored.in_order(KEYS))
            assert problem.version == 7


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_every_flipped_byte_of_every_chunk_is_noticed_with_its_name(codec: str) -> None:
    stored = small(codec)
    manifest, chunks = stored.manifest, stored.in_order(KEYS)
    assert len(chunks) > 5
    for number, reference in enumerate(manifest.chunks):
        for place in range(len(chunks[number])):
            changed = bytearray(chunks[number])
            changed[place] ^= 1 << place % 8
            problem = refused(IntegrityError, open_chunk, bytes(changed), reference, keys=KEYS, dictionaries=BUILTIN_DICTIONARIES)
            assert problem.details["chunk"] == reference.name.hex()


def test_every_flipped_byte_fails_the_authentication_too() -> None:
    # As if somebody could also change the SHA-256 and the sizes that the manifest lists.
    stored = small()
    for reference, sealed in zip(stored.manifest.chunks[:3], stored.in_order(KEYS)[:3], strict=True):
        for place in range(len(sealed)):
            changed = bytearray(sealed)
            changed[place] ^= 1 << place % 8
            forged = chunk_module.as_stored(bytes(changed), reference)
            with pytest.raises((IntegrityError, DictionaryNotFound)):
                open_chunk(bytes(changed), forged, keys=KEYS, dictionaries=BUILTIN_DICTIONARIES)


def test_every_cut_is_noticed() -> None:
    stored = small()
    chunks = stored.in_order(KEYS)
    for length in range(len(stored.sealed)):
        refused(IntegrityError, load, stored.sealed[:length], chunks)
    for length in range(len(chunks[0])):
        refused(IntegrityError, load, stored.sealed, [chunks[0][:length], *chunks[1:]])
    refused(IntegrityError, load, stored.sealed + b"\0", chunks)
    refused(IntegrityError, load, stored.sealed, [chunks[0] + b"\0", *chunks[1:]])


def test_dropped_swapped_repeated_and_foreign_chunks_are_noticed() -> None:
    stored, other = small(), small(version=8, messages=31)
    chunks = stored.in_order(KEYS)
    last = next(chunk for chunk in other.in_order(KEYS) if chunk not in chunks)
    for number in range(len(chunks)):
        dropped = chunks[:number] + chunks[number + 1 :]
        assert "chunk" in refused(IntegrityError, load, stored.sealed, dropped).details
        repeated = chunks[: number + 1] + chunks[number:]
        refused(IntegrityError, load, stored.sealed, repeated)
        foreign = [*chunks[:number], last, *chunks[number + 1 :]]
        refused(IntegrityError, load, stored.sealed, foreign)
        swapped = list(chunks)
        swapped[number], swapped[number - 1] = swapped[number - 1], swapped[number]
        refused(IntegrityError, load, stored.sealed, swapped)
    refused(IntegrityError, load, stored.sealed, [])


# --- wrong tenant, wrong key, wrong place ---


@pytest.mark.parametrize(
    "keys",
    [
        make_keys("umbrella"),
        make_keys(agent="two"),
        make_keys(data_key=9),
        make_keys("umbrella", "two", secret=3, data_key=4),
    ],
)
def test_another_tenant_agent_or_data_key_opens_nothing(keys: SnapshotKeys) -> None:
    stored = small()
    refused(SealBroken, open_manifest, stored.sealed, keys=keys, tenant=keys.tenant, agent=keys.agent, version=7)


def test_keys_of_another_agent_are_refused_before_anything_is_opened() -> None:
    stored = small()
    refused(SealBroken, open_manifest, stored.sealed, keys=KEYS, tenant="acme", agent="two", version=7)
    refused(SealBroken, open_manifest, stored.sealed, keys=KEYS, tenant="umbrella", agent="one", version=7)


def test_another_tenants_key_opens_no_chunk_although_the_agents_key_opens_the_manifest() -> None:
    stored = small()
    refused(SealBroken, load, stored.sealed, stored.in_order(KEYS), make_keys(secret=8))


def test_a_tenant_key_version_that_is_not_loaded_is_a_missing_key() -> None:
    both = SnapshotKeys(TenantKey("acme", {1: b"\1" * 32, 2: b"\5" * 32}), Cipher("acme", "one", b"\2" * 32, BUILTIN))
    stored = store(state_of(conversation(20)), both)
    refused(KeyUnavailable, open_manifest, stored.sealed, keys=KEYS, tenant="acme", agent="one", version=7)


def test_after_a_rotation_old_snapshots_open_and_new_chunks_have_new_keys() -> None:
    both = SnapshotKeys(TenantKey("acme", {1: b"\1" * 32, 2: b"\5" * 32}), Cipher("acme", "one", b"\2" * 32, BUILTIN))
    old = store(state_of(conversation(20)), KEYS)
    assert (both.tenant_mark, both.agent_mark) == (KEYS.tenant_mark, KEYS.agent_mark)
    assert load(old.sealed, old.in_order(both), both).document == conversation(20)
    new = store(state_of(conversation(20), 8), both, old, touched=())
    assert new.manifest.key_version == 2
    assert not {chunk.name for chunk in new.manifest.chunks} & {chunk.name for chunk in old.manifest.chunks}


def test_an_older_manifest_under_another_version_is_refused_by_name() -> None:
    stored = small()
    problem = refused(IntegrityError, load, stored.sealed, stored.in_order(KEYS), version=8)
    assert "version 7" in problem.message
    assert problem.version == 8


def test_another_manifest_of_the_same_version_is_refused_by_its_digest() -> None:
    stored, other = small(), small()
    digest = bytes(32)
    assert stored.sealed != other.sealed
    problem = refused(IntegrityError, open_manifest, stored.sealed, keys=KEYS, tenant="acme", agent="one", version=7, digest=digest)
    assert "registered" in problem.message


def test_a_format_of_a_later_release_is_refused() -> None:
    stored = small()
    later = stored.sealed[:4] + b"\2" + stored.sealed[5:]
    assert "format" in refused(IntegrityError, load, later, stored.in_order(KEYS)).message


def test_a_missing_dictionary_is_told_by_its_number() -> None:
    stored = store(state_of(conversation(300)), KEYS, dictionary=ChunkDictionary(77, BUILTIN.newest.content))
    problem = refused(DictionaryNotFound, load, stored.sealed, stored.in_order(KEYS))
    assert problem.details["dictionary"] == 77


# --- manifests and chunks that only somebody with the keys could write ---


def reseal(stored: Stored, **fields: Any) -> bytes:
    return seal_manifest(msgspec.structs.replace(stored.manifest, **fields), KEYS)


@pytest.mark.parametrize(
    "fields",
    [
        {"digest": b"short"},
        {"sha256": b""},
        {"plain_bytes": limits.CHUNK_PLAIN_BYTES_MAX + 1},
        {"plain_bytes": 0},
        {"stored_bytes": 1 << 40},
        {"stored_bytes": 0},
        {"cells": 0},
    ],
)
def test_a_manifest_that_lists_what_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    stored = small()
    first = msgspec.structs.replace(stored.manifest.chunks[0], **fields)
    sealed = reseal(stored, chunks=(first, *stored.manifest.chunks[1:]))
    assert "cannot be" in refused(IntegrityError, load, sealed, stored.in_order(KEYS)).message


@pytest.mark.parametrize(
    "fields", [{"cells": 3_000}, {"codec": 9}, {"codec": 2}, {"dictionary": 1}, {"plain_bytes": 5_000}, {"stored_bytes": 77}]
)
def test_a_chunk_that_is_not_as_its_manifest_says_is_refused(fields: dict[str, Any]) -> None:
    stored = small()
    first = msgspec.structs.replace(stored.manifest.chunks[0], **fields)
    sealed = reseal(stored, chunks=(first, *stored.manifest.chunks[1:]))
    assert refused(IntegrityError, load, sealed, stored.in_order(KEYS)).details["chunk"]


def test_more_chunks_than_a_manifest_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_CHUNKS_MAX", 3)
    refused(LimitExceeded, small)


def test_a_cell_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_CELL_BYTES_MAX", 100_000)
    with pytest.raises(LimitExceeded):
        store(state_of({"big": "x" * 100_001}), KEYS)


def test_the_previous_manifest_of_another_agent_is_refused() -> None:
    stored = small()
    with pytest.raises(InvalidInput):
        pack(state_of({}), keys=make_keys(agent="two"), created_us=1, previous=stored.manifest)


# --- bombs ---

BOMB = 64 * limits.MIB
ZEROS = bytes(BOMB)


def bombs() -> dict[str, bytes]:
    frame = zstandard.ZstdCompressionParameters(format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=1)
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    return {
        "zstd": zstandard.ZstdCompressor(compression_params=frame).compress(ZEROS),
        "lz4": lz4.block.compress(ZEROS, store_size=False),
        "snappy": snappy.compress(ZEROS),
        "gzip": stream.compress(ZEROS) + stream.flush(),
    }


@pytest.mark.parametrize("codec", ["zstd", "lz4", "snappy", "gzip"])
def test_a_bomb_is_refused_before_it_takes_memory(codec: str) -> None:
    import tracemalloc

    bomb = bombs()[codec]
    tracemalloc.start()
    try:
        with pytest.raises(CodecBroken):
            codec_named(codec).decompress(bomb, 1_000, NO_DICTIONARY)
        assert tracemalloc.get_traced_memory()[1] < limits.MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", ["zstd", "lz4", "snappy", "gzip"])
def test_a_bomb_within_an_authentic_chunk_is_refused(codec: str) -> None:
    chosen = codec_named(codec)
    content = Cut(b"hx", 1, b"\x91\x92\x02\x81\xa1x\xc0" * 40, bytes(32))
    reference, _ = seal_chunk(content, keys=KEYS, codec=chosen, dictionary=NO_DICTIONARY)
    sealed = chunk_module._seal(bombs()[codec], reference, KEYS.tenant)
    forged = chunk_module.as_stored(sealed, reference)
    assert chunk_secrets(reference.key, b"")[0]
    problem = refused(IntegrityError, open_plaintext, sealed, forged, keys=KEYS, dictionaries=BUILTIN_DICTIONARIES)
    assert codec in problem.message


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_content_of_another_size_is_refused(codec: str) -> None:
    chosen = CODECS[codec]
    plaintext = b"the same again and again " * 50
    content = chosen.compress(plaintext, NO_DICTIONARY)
    assert chosen.decompress(content, len(plaintext), NO_DICTIONARY) == plaintext
    for size in (0, 1, len(plaintext) - 1, len(plaintext) + 1):
        with pytest.raises(CodecBroken):
            chosen.decompress(content, size, NO_DICTIONARY)
    with pytest.raises(CodecBroken):
        chosen.decompress(content + b"\0", len(plaintext), NO_DICTIONARY)
    for length in range(0, len(content), 7):
        with pytest.raises(CodecBroken):
            chosen.decompress(content[:length], len(plaintext), NO_DICTIONARY)


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(InvalidInput):
        codec_named("brotli")
    with pytest.raises(CodecBroken):
        codec_numbered(200)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_content_that_is_not_what_was_digested_is_refused(codec: str) -> None:
    # As a codec would give it that does not give back what it was given: all seals hold.
    stored = small(codec)
    reference = stored.manifest.chunks[0]
    other = Cut(reference.first, reference.cells, b"\x91\x92\x02\x81\xa1x\xc0" * 9, reference.digest)
    forged, sealed = seal_chunk(other, keys=KEYS, codec=codec_named(codec), dictionary=NO_DICTIONARY)
    assert forged.name == reference.name
    assert "digested" in refused(IntegrityError, open_chunk, sealed, forged, keys=KEYS, dictionaries=BUILTIN_DICTIONARIES).message


def test_an_authentic_chunk_in_other_bytes_than_listed_is_refused() -> None:
    stored = small("none")
    reference, sealed = stored.manifest.chunks[0], stored.in_order(KEYS)[0]
    aes, nonce = cipher_key(reference.key), bytes(12)
    associated = chunk_module._associated("acme", reference.name, sealed[:10])
    again = sealed[:10] + nonce + AESGCM(aes).encrypt(nonce, AESGCM(aes).decrypt(sealed[10:22], sealed[22:], associated), associated)
    options = {"keys": KEYS, "dictionaries": BUILTIN_DICTIONARIES}
    assert "not the ones that were written" in refused(IntegrityError, open_chunk, again, reference, **options).message
    assert open_chunk(again, chunk_module.as_stored(again, reference), **options) == open_chunk(sealed, reference, **options)
    # The checker is stricter: a nonce that does not follow from the content could be one that was used before.
    listed = msgspec.structs.replace(stored.manifest, chunks=(chunk_module.as_stored(again, reference), *stored.manifest.chunks[1:]))
    chunks = stored.chunks | {KEYS.chunk_object(reference.name): again}
    (problem,) = check_snapshot(seal_manifest(listed, KEYS), 7, chunks.get, check_keys()).problems
    assert "nonce" in problem.what


def test_runs_that_do_not_fit_together_are_refused() -> None:
    def from_runs(*chunks: list[Any]) -> Any:
        cuts = [Cut(b"x", 1, canonical(runs), sha256(canonical(runs)).digest()) for runs in chunks]
        made = [seal_chunk(each, keys=KEYS, codec=CODECS["none"], dictionary=NO_DICTIONARY) for each in cuts]
        stored = small()
        manifest = msgspec.structs.replace(stored.manifest, codec=0, chunks=tuple(reference for reference, _ in made))
        return load(seal_manifest(manifest, KEYS), [sealed for _, sealed in made])

    assert from_runs([[2, {"a": 1}]]).document == {"a": 1}
    assert from_runs([[0, "a", 0, [7]]], [[2, {"a": []}]]).document == {"a": [7]}
    for wrong in (
        [[[0, "a", 1, [7]]], [[2, {"a": []}]]],  # a list that begins in the middle
        [[[0, "a", 0, [7]]], [[0, "a", 2, [8]]], [[2, {"a": []}]]],  # one with a gap
        [[[0, "a", 0, [7]]]],  # elements without a member
        [[[0, "a", 0, [7]]], [[2, {"a": {}}]]],  # a list that says it is a map
        [[[1, "a", {"k": 7}]], [[2, {"a": []}]]],
        [[[0, "a", 0, [7]]], [[2, {"a": 1}]]],
        [[[3, {"a": 1}]]],  # a kind of a later release
        [[[0, {"a": 1}]]],
        [[["2", {"a": 1}]]],
        [[[]]],
        [[[2, {"a": 1, "b": 2}]]],  # more cells than listed
    ):
        refused(IntegrityError, from_runs, *wrong)
