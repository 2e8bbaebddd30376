"""Tenant keys and the data keys that they wrap."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import KeyUnavailable, LimitExceeded, PerdureError, SealBroken
from perdure.security.keys import EnvironmentKeyProvider, FileKeyProvider
from perdure.security.ring import TENANT_KEYS_SCOPE, KeyRing
from perdure.security.tenant_key import WRAPPED_BYTES, TenantKey
from tests.unit.fix_security import MemoryDocuments

PROVIDER = EnvironmentKeyProvider("ROOT", {"ROOT": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="})
KEY = TenantKey("acme", {1: bytes(range(32))})


def make_ring(documents: MemoryDocuments) -> KeyRing:
    return KeyRing(PROVIDER, documents)


async def test_a_data_key_is_the_same_after_a_restart() -> None:
    documents = MemoryDocuments()
    wrapped, key = (await make_ring(documents).tenant_key("acme")).new_data_key("agent")
    assert len(key) == 32
    assert len(wrapped) == WRAPPED_BYTES <= 80
    assert (await make_ring(documents).tenant_key("acme")).unwrap_data_key("agent", wrapped) == key


async def test_tenant_keys_are_cached_and_differ() -> None:
    ring = make_ring(MemoryDocuments())
    assert await ring.tenant_key("acme") is await ring.tenant_key("acme")
    wrapped, _ = (await ring.tenant_key("acme")).new_data_key("agent")
    with pytest.raises(SealBroken):
        (await ring.tenant_key("other")).unwrap_data_key("agent", wrapped)
    assert await ring.tenants() == ["acme", "other"]


async def test_callers_at_once_get_one_key() -> None:
    documents = MemoryDocuments()
    ring = make_ring(documents)
    keys = await asyncio.gather(*(ring.tenant_key("acme") for _ in range(20)))
    assert all(key is keys[0] for key in keys)
    assert documents.stored[TENANT_KEYS_SCOPE, "acme"].revision == 1


async def test_a_process_that_loses_the_race_takes_the_winners_key() -> None:
    documents, faster = MemoryDocuments(), MemoryDocuments()
    winner = await make_ring(faster).tenant_key("acme")
    documents.before_put = lambda: documents.stored.update(faster.stored)
    loser = await make_ring(documents).tenant_key("acme")
    wrapped, key = winner.new_data_key("agent")
    assert loser.unwrap_data_key("agent", wrapped) == key


async def test_a_rotated_key_wraps_anew_and_opens_what_is_old() -> None:
    documents = MemoryDocuments()
    ring, elsewhere = make_ring(documents), make_ring(documents)
    old = await elsewhere.tenant_key("acme")
    before = old.new_data_key("agent")
    name, sealed = old.seal_blob(b"blob")
    rotated = await ring.rotate_tenant_key("acme")
    after = rotated.new_data_key("agent")
    assert (old.version, rotated.version) == (1, 2)
    assert rotated.unwrap_data_key("agent", before[0]) == before[1]
    assert rotated.open_blob(name, sealed) == b"blob"
    with pytest.raises(KeyUnavailable) as caught:
        old.unwrap_data_key("agent", after[0])
    assert caught.value.details["reason"] == "unknown_version"
    assert await elsewhere.unwrap_data_key("acme", "agent", after[0]) == after[1], "the other process looks again"
    assert (await elsewhere.tenant_key("acme")).version == 2


async def test_two_rotations_at_once_make_two_versions() -> None:
    documents = MemoryDocuments()
    rings = [make_ring(documents) for _ in range(2)]
    await asyncio.gather(*(ring.rotate_tenant_key("acme") for ring in rings))
    assert (await make_ring(documents).tenant_key("acme")).version == 3


async def test_rotations_end_at_their_limit() -> None:
    documents = MemoryDocuments()
    ring = make_ring(documents)
    await ring.tenant_key("acme")
    standing = documents.stored[TENANT_KEYS_SCOPE, "acme"]
    wrapped = msgspec.msgpack.decode(standing.value, type=tuple[int, dict[int, bytes]], strict=True)[1][1]
    documents.replace(TENANT_KEYS_SCOPE, "acme", msgspec.msgpack.encode([1, {255: wrapped}]))
    with pytest.raises(LimitExceeded):
        await ring.rotate_tenant_key("acme")


async def test_after_rewrapping_the_old_root_key_is_not_needed(tmp_path: object) -> None:
    provider = FileKeyProvider(f"{tmp_path}/keys/root.key")
    documents = MemoryDocuments()
    ring = KeyRing(provider, documents)
    wrapped, key = (await ring.tenant_key("acme")).new_data_key("agent")
    old_id, new_id = provider.key_id, await provider.add_key()
    await ring.rewrap("acme")
    value = documents.stored[TENANT_KEYS_SCOPE, "acme"].value
    assert new_id.encode() in value
    assert old_id.encode() not in value
    assert await KeyRing(provider, documents).unwrap_data_key("acme", "agent", wrapped) == key


@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode([2, {1: b""}]), msgspec.msgpack.encode([1, {1: b"xx"}])])
async def test_a_damaged_key_document_is_refused(value: bytes) -> None:
    documents = MemoryDocuments()
    await make_ring(documents).tenant_key("acme")
    documents.replace(TENANT_KEYS_SCOPE, "acme", value)
    with pytest.raises(SealBroken):
        await make_ring(documents).tenant_key("acme")


async def test_one_tenants_key_document_does_not_serve_another() -> None:
    documents = MemoryDocuments()
    ring = make_ring(documents)
    await ring.tenant_key("acme")
    await ring.tenant_key("other")
    documents.replace(TENANT_KEYS_SCOPE, "other", documents.stored[TENANT_KEYS_SCOPE, "acme"].value)
    with pytest.raises(SealBroken):
        await make_ring(documents).tenant_key("other")


async def test_destroyed_keys_are_not_made_again() -> None:
    documents = MemoryDocuments()
    await make_ring(documents).tenant_key("acme")
    documents.replace(TENANT_KEYS_SCOPE, "acme", msgspec.msgpack.encode([1, {}]))
    with pytest.raises(KeyUnavailable, match="destroyed"):
        await make_ring(documents).tenant_key("acme")


def test_an_empty_wrapped_key_was_destroyed() -> None:
    with pytest.raises(KeyUnavailable, match="destroyed") as caught:
        KEY.unwrap_data_key("agent", b"")
    assert (caught.value.tenant, caught.value.agent) == ("acme", "agent")


def test_a_wrapped_key_belongs_to_one_tenant_and_one_agent() -> None:
    wrapped, key = KEY.new_data_key("agent")
    assert KEY.unwrap_data_key("agent", wrapped) == key
    for other, agent in ((KEY, "agent2"), (TenantKey("acm", {1: bytes(range(32))}), "eagent")):
        with pytest.raises(SealBroken):
            other.unwrap_data_key(agent, wrapped)


def test_every_flipped_bit_and_every_cut_of_a_wrapped_data_key_is_refused() -> None:
    wrapped, _ = KEY.new_data_key("agent")
    for position in range(len(wrapped) * 8):
        broken = bytearray(wrapped)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises(KeyUnavailable if position // 8 == 1 else SealBroken):
            KEY.unwrap_data_key("agent", bytes(broken))
    for length in range(1, len(wrapped)):
        with pytest.raises(SealBroken):
            KEY.unwrap_data_key("agent", wrapped[:length])


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_garbage_never_raises_anything_but_a_typed_error(garbage: bytes) -> None:
    for call in (
        lambda: KEY.unwrap_data_key("agent", garbage),
        lambda: KEY.open(b"context", garbage),
        lambda: KEY.open_blob(b"x", garbage),
    ):
        with pytest.raises(PerdureError):
            call()


def test_blob_names_follow_content_within_a_tenant_only() -> None:
    other = TenantKey("other", {1: bytes(32)})
    assert KEY.blob_name(b"content") == KEY.blob_name(b"content")
    assert len({KEY.blob_name(b"content"), KEY.blob_name(b"content2"), other.blob_name(b"content")}) == 3


@pytest.mark.parametrize("size_bytes", [0, 1, 100_000, 5_000_000])
def test_blobs_open_under_their_own_name_only(size_bytes: int) -> None:
    plaintext = os.urandom(min(size_bytes, 1_000)) * (size_bytes // 1_000 or 1)
    name, sealed = KEY.seal_blob(plaintext)
    assert KEY.open_blob(name, sealed) == plaintext
    with pytest.raises(SealBroken):
        KEY.open_blob(KEY.blob_name(plaintext + b"x"), sealed)
    with pytest.raises(SealBroken):
        TenantKey("other", {1: bytes(range(32))}).open_blob(name, sealed)
