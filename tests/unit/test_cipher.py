"""Sealing: what goes in comes out, and nothing else does."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import limits
from perdure.errors import DictionaryNotFound, LimitExceeded, SealBroken
from perdure.security.cipher import OVERHEAD_BYTES_MAX, Cipher
from perdure.security.compression import Dictionary
from perdure.security.dictionary_set import BUILTIN, DictionarySet
from perdure.security.framing import join_fields, read_varint, write_varint

KEY = bytes(range(32))
CONTEXT = b"event" + bytes(16)
TEXT = b'{"role": "assistant", "content": "Thank you for providing your information."}' * 3


def make_cipher(tenant: str = "acme", agent: str = "agent", key: bytes = KEY, dictionaries: DictionarySet = BUILTIN, **more: int) -> Cipher:
    return Cipher(tenant, agent, key, dictionaries, **more)


def seal_by_hand(header: bytes, content: bytes, tag_header: bytes | None = None) -> bytes:
    """As docs/format/sealed-payload.md says, written a second time without the cipher."""
    nonce = os.urandom(12)
    associated = join_fields(b"perdure seal", b"acme", b"agent", CONTEXT) + (tag_header or header)
    return header + nonce + AESGCM(KEY).encrypt(nonce, content, associated)


@settings(deadline=None)
@given(st.binary(max_size=3_000), st.binary(max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_what_is_sealed_opens_again(plaintext: bytes, context: bytes, tenant: str, agent: str) -> None:
    sealed = make_cipher(tenant, agent).seal(context, plaintext)
    assert make_cipher(tenant, agent).open(context, sealed) == plaintext
    assert len(sealed) <= len(plaintext) + OVERHEAD_BYTES_MAX
    assert OVERHEAD_BYTES_MAX <= 34


@pytest.mark.parametrize("plaintext", [b"", b"x", TEXT, bytes(range(256)), bytes(300_000), os.urandom(300_000)])
def test_edges_of_size_and_entropy_open_again(plaintext: bytes) -> None:
    cipher = make_cipher()
    assert cipher.open(CONTEXT, cipher.seal(CONTEXT, plaintext)) == plaintext


ID = st.binary(min_size=16, max_size=16)


@settings(deadline=None)
@given(st.lists(st.tuples(ID, st.sampled_from([b"", b"x", TEXT, TEXT[:40], bytes(range(256))]), st.integers(1, 3)), max_size=12), st.data())
def test_many_open_as_each_does_and_none_when_one_is_broken(values: list[tuple[bytes, bytes, int]], data: st.DataObject) -> None:
    """With and without compression, a dictionary of the tenant's, and several versions of the key in one list."""
    learned = DictionarySet()
    learned.learn(Dictionary(300, TEXT * 10))
    sealing = {1: make_cipher(), 2: make_cipher(dictionaries=learned), 3: make_cipher(key_version=9)}
    opening = make_cipher(dictionaries=learned)
    sealed = [sealing[which].seal(b"event" + id, plaintext) for id, plaintext, which in values]
    ids = [id for id, _, _ in values]
    assert opening.open_many(b"event", ids, sealed) == [plaintext for _, plaintext, _ in values]
    if values:
        number = data.draw(st.integers(0, len(values) - 1))
        broken = bytearray(sealed[number])
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(SealBroken):
            opening.open_many(b"event", ids, [*sealed[:number], bytes(broken), *sealed[number + 1 :]])
        with pytest.raises(SealBroken):
            opening.open_many(b"event", [*ids[:number], bytes(16), *ids[number + 1 :]] if ids[number] != bytes(16) else ids[:-1], sealed)


@pytest.mark.parametrize("plaintext", [b"", b"x", TEXT, random.Random(40).randbytes(40)])
def test_every_flipped_bit_is_noticed(plaintext: bytes) -> None:
    cipher = make_cipher()
    sealed = cipher.seal(CONTEXT, plaintext)
    for position in range(len(sealed) * 8):
        broken = bytearray(sealed)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises(SealBroken):
            cipher.open(CONTEXT, bytes(broken))


def test_every_cut_and_every_addition_is_noticed() -> None:
    cipher = make_cipher()
    sealed = cipher.seal(CONTEXT, TEXT)
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            cipher.open(CONTEXT, sealed[:length])
    with pytest.raises(SealBroken):
        cipher.open(CONTEXT, sealed + b"\0")


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_garbage_is_never_anything_but_broken(garbage: bytes) -> None:
    for value in (garbage, b"\x81\x01\x01" + garbage):
        with pytest.raises(SealBroken):
            make_cipher().open(CONTEXT, value)


@settings(deadline=None)
@given(st.text(max_size=8), st.text(max_size=8), st.binary(max_size=8), st.text(max_size=8), st.text(max_size=8), st.binary(max_size=8))
def test_a_seal_opens_for_its_own_tenant_agent_and_context_only(
    tenant: str, agent: str, context: bytes, tenant2: str, agent2: str, context2: bytes
) -> None:
    sealed = make_cipher(tenant, agent).seal(context, TEXT)
    if (tenant, agent, context) != (tenant2, agent2, context2):
        with pytest.raises(SealBroken):
            make_cipher(tenant2, agent2).open(context2, sealed)


def test_names_that_run_together_are_told_apart() -> None:
    sealed = make_cipher("ab", "c").seal(b"d", TEXT)
    for tenant, agent, context in (("a", "bc", b"d"), ("ab", "cd", b""), ("abc", "", b"d")):
        with pytest.raises(SealBroken):
            make_cipher(tenant, agent).open(context, sealed)


def test_another_key_opens_nothing_and_the_error_says_where() -> None:
    sealed = make_cipher().seal(CONTEXT, TEXT)
    with pytest.raises(SealBroken) as caught:
        make_cipher(key=bytes(32)).open(CONTEXT, sealed)
    assert (caught.value.tenant, caught.value.agent) == ("acme", "agent")
    assert caught.value.hint


def test_equal_plaintexts_are_sealed_differently() -> None:
    cipher = make_cipher()
    assert len({cipher.seal(CONTEXT, TEXT) for _ in range(100)}) == 100


def test_the_bytes_are_the_documented_ones() -> None:
    sealed = make_cipher(key_version=7).seal(CONTEXT, TEXT)
    assert sealed[:3] == b"\x81\x07\x01"
    content = AESGCM(KEY).decrypt(sealed[3:15], sealed[15:], join_fields(b"perdure seal", b"acme", b"agent", CONTEXT) + sealed[:3])
    assert content != TEXT
    raw = make_cipher(key_version=7).seal(CONTEXT, b"x")
    assert raw[:3] == b"\x01\x07\x00"
    assert make_cipher().open(CONTEXT, seal_by_hand(b"\x01\x01\x00", b"stored")) == b"stored"


def test_a_dictionary_that_is_not_loaded_is_named_and_opens_once_it_is() -> None:
    dictionaries, elsewhere = DictionarySet(), DictionarySet()
    elsewhere.learn(Dictionary(300, TEXT * 10))
    sealed = make_cipher(dictionaries=elsewhere).seal(CONTEXT, TEXT)
    cipher = make_cipher(dictionaries=dictionaries)
    with pytest.raises(DictionaryNotFound) as caught:
        cipher.open(CONTEXT, sealed)
    assert caught.value.details["dictionary"] == 300
    dictionaries.learn(Dictionary(300, TEXT * 10))
    assert cipher.open(CONTEXT, sealed) == TEXT


def test_a_changed_dictionary_id_is_broken_not_missing() -> None:
    sealed = bytearray(make_cipher().seal(CONTEXT, TEXT))
    sealed[2] = 99
    with pytest.raises(SealBroken):
        make_cipher().open(CONTEXT, bytes(sealed))


def frame(content: bytes, **options: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 20,
        frame(bytes(1_001), write_content_size=1),  # declares more than the limit
        frame(bytes(1_001), write_content_size=0),  # declares nothing
        frame(bytes(900), write_content_size=1) + b"x",
        frame(os.urandom(900), write_content_size=1)[:-10],
        b"\xe0" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00",  # declares an exabyte
    ],
    ids=["empty", "garbage", "bomb", "undeclared", "trailing", "cut", "exabyte"],
)
def test_an_authentic_frame_that_is_not_ours_is_broken(content: bytes) -> None:
    cipher = make_cipher(plaintext_bytes_max=1_000)
    with pytest.raises(SealBroken):
        cipher.open(CONTEXT, seal_by_hand(b"\x81\x01\x00", content))


def test_an_authentic_raw_content_above_the_limit_is_broken() -> None:
    with pytest.raises(SealBroken):
        make_cipher(plaintext_bytes_max=10).open(CONTEXT, seal_by_hand(b"\x01\x01\x00", bytes(11)))


def test_more_than_the_limit_is_not_sealed() -> None:
    cipher = make_cipher()
    largest = bytes(limits.SEALED_PLAINTEXT_BYTES_MAX)
    assert cipher.open(CONTEXT, cipher.seal(CONTEXT, largest)) == largest
    with pytest.raises(LimitExceeded):
        cipher.seal(CONTEXT, largest + b"x")


def test_threads_share_a_cipher() -> None:
    cipher = make_cipher()

    def work(number: int) -> bool:
        plaintext = TEXT * (number % 50) + str(number).encode()
        return cipher.open(CONTEXT, cipher.seal(CONTEXT, plaintext)) == plaintext

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(2_000)))


@given(st.integers(0, (1 << 21) - 1), st.binary(max_size=4))
def test_varints_come_back(number: int, rest: bytes) -> None:
    encoded = write_varint(number)
    assert read_varint(encoded + rest, 0) == (number, len(encoded))


@pytest.mark.parametrize("encoded", [b"", b"\x80", b"\x80\x80", b"\x80\x80\x80\x01", b"\x81\x00", b"\x80\x80\x00"])
def test_varints_that_are_cut_long_or_not_shortest_are_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="varint"):
        read_varint(encoded, 0)
