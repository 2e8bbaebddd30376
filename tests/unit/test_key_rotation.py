"""What a rotation means for ciphers, and how long a ring trusts what it has."""

from __future__ import annotations

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from perdure import limits
from perdure.client.keys import Keys
from perdure.errors import ConfigurationError, KeyUnavailable, SealBroken, Unavailable
from perdure.security.cipher import Cipher
from perdure.security.dictionary_set import BUILTIN
from perdure.security.keys import EnvironmentKeyProvider
from perdure.security.ring import TENANT_KEYS_SCOPE, KeyRing
from perdure.security.tenant_key import TenantKey
from tests.unit.fix_security import MemoryDocuments

PROVIDER = EnvironmentKeyProvider("ROOT", {"ROOT": base64.b64encode(bytes(range(32))).decode()})
KEYS = {version: bytes([version]) * 32 for version in range(1, 4)}
DATA_KEY = bytes(range(32))


class AwayProvider:
    """A provider that may be away or say no. error: what it raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.unwrapped = 0

    key_id = PROVIDER.key_id

    async def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        return await PROVIDER.wrap(plaintext, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        self.unwrapped += 1
        return await PROVIDER.unwrap(wrapped, context)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def cipher(key: TenantKey) -> Cipher:
    return Cipher("acme", "agent", DATA_KEY, BUILTIN, versions=key)


def test_a_cipher_seals_under_the_new_version_as_soon_as_its_tenants_key_has_it() -> None:
    key = TenantKey("acme", {1: KEYS[1]})
    working = cipher(key)
    old = working.seal(b"event", b"before")
    key.learn({1: KEYS[1], 2: KEYS[2]})
    new = working.seal(b"event", b"after")
    assert (old[1], new[1]) == (1, 2)
    assert [working.open(b"event", sealed) for sealed in (old, new)] == [b"before", b"after"]
    assert [cipher(TenantKey("acme", KEYS)).open(b"event", sealed) for sealed in (old, new)] == [b"before", b"after"]


def test_what_threads_seal_during_a_rotation_opens_under_the_version_that_it_names() -> None:
    key = TenantKey("acme", {1: KEYS[1]})
    shared, whole = [cipher(key) for _ in range(40)], cipher(TenantKey("acme", KEYS))

    def work(number: int) -> tuple[int, bool]:
        if number == 20:
            key.learn({1: KEYS[1], 2: KEYS[2]})
        sealed = [each.seal(b"event", b"%d" % number) for each in shared]
        return max(each[1] for each in sealed), all(whole.open(b"event", each) == b"%d" % number for each in sealed)

    with ThreadPoolExecutor(8) as pool:
        versions, right = zip(*pool.map(work, range(60)), strict=True)
    assert all(right)
    assert (min(versions), max(versions)) == (1, 2)


def test_who_has_the_data_key_and_the_old_version_cannot_open_what_is_new() -> None:
    new = cipher(TenantKey("acme", {1: KEYS[1], 2: KEYS[2]})).seal(b"event", b"after")
    for key in (DATA_KEY, KEYS[1], KEYS[2]):
        with pytest.raises(SealBroken):
            Cipher("acme", "agent", key, BUILTIN, key_version=2).open(b"event", new)
        with pytest.raises(InvalidTag):
            AESGCM(key).decrypt(new[3:15], new[15:], None)
    other = Cipher("acme", "agent", bytes(32), BUILTIN, versions=TenantKey("acme", KEYS))
    with pytest.raises(SealBroken):
        other.open(b"event", new)


def test_values_from_before_there_were_versions_stay_readable() -> None:
    old = Cipher("acme", "agent", DATA_KEY, BUILTIN).seal(b"event", b"content")
    assert cipher(TenantKey("acme", KEYS)).open(b"event", old) == b"content"


def test_a_version_that_is_not_known_is_a_key_to_be_loaded() -> None:
    sealed = cipher(TenantKey("acme", KEYS)).seal(b"event", b"content")
    with pytest.raises(KeyUnavailable) as caught:
        cipher(TenantKey("acme", {1: KEYS[1]})).open(b"event", sealed)
    assert (caught.value.details["reason"], caught.value.details["key_version"]) == ("unknown_version", 3)


def test_every_changed_bit_of_a_value_under_a_later_version_is_refused() -> None:
    working = cipher(TenantKey("acme", KEYS))
    sealed = working.seal(b"event", b"content")
    for position in range(len(sealed) * 8):
        broken = bytearray(sealed)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises((SealBroken, KeyUnavailable)):
            working.open(b"event", bytes(broken))


async def test_a_wrapped_data_key_is_wrapped_anew_and_stays_the_same() -> None:
    key = TenantKey("acme", {1: KEYS[1]})
    wrapped, data_key = key.new_data_key("agent")
    key.learn(KEYS)
    anew = key.wrap_data_key("agent", key.unwrap_data_key("agent", wrapped))
    assert (key.wrapped_by(wrapped), key.wrapped_by(anew)) == (1, 3)
    assert key.unwrap_data_key("agent", anew) == data_key
    assert TenantKey("acme", {3: KEYS[3]}).unwrap_data_key("agent", anew) == data_key
    assert [TenantKey.wrapped_by(value) for value in (b"", anew[:-1], b"\x02" + anew[1:])] == [0, 0, 0]


async def test_other_processes_follow_a_rotation_within_the_lifetime() -> None:
    documents, clock = MemoryDocuments(), Clock()
    here, there = KeyRing(PROVIDER, documents), KeyRing(PROVIDER, documents, clock=clock)
    key = await there.tenant_key("acme")
    working = cipher(key)
    await here.rotate_tenant_key("acme")
    assert working.seal(b"", b"")[1] == 1
    clock.now = limits.KEY_CACHE_LIFETIME_S
    assert not there.is_fresh("acme")
    assert await there.tenant_key("acme") is key, "it learns; those who hold it need not be told"
    assert working.seal(b"", b"")[1] == 2
    assert there.is_fresh("acme")


async def test_a_renewal_asks_the_provider_but_not_for_every_old_version() -> None:
    documents, clock, provider = MemoryDocuments(), Clock(), AwayProvider()
    ring = KeyRing(provider, documents, clock=clock)
    for _ in range(3):
        await ring.rotate_tenant_key("acme")
    clock.now, provider.unwrapped = 1_000.0, 0
    await asyncio.gather(*(ring.tenant_key("acme") for _ in range(10)))
    assert provider.unwrapped == 1


async def test_an_outage_is_bridged_for_a_while_and_not_asked_about_all_the_time() -> None:
    documents, clock, provider = MemoryDocuments(), Clock(), AwayProvider()
    ring = KeyRing(provider, documents, clock=clock)
    key = await ring.tenant_key("acme")
    provider.error = Unavailable("away")
    clock.now = limits.KEY_CACHE_LIFETIME_S + 1
    assert await ring.tenant_key("acme") is key
    assert ring.is_fresh("acme"), "the next attempt comes after a pause"
    clock.now += limits.KEY_CACHE_RETRY_S
    assert not ring.is_fresh("acme")
    clock.now = limits.KEY_CACHE_OUTAGE_S
    with pytest.raises(Unavailable):
        await ring.tenant_key("acme")
    provider.error = None
    assert await ring.tenant_key("acme") is key


async def test_a_provider_that_does_not_answer_holds_up_nobody_who_has_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEY_RENEWAL_WAIT_S", 0.01)
    documents, clock, provider, answer = MemoryDocuments(), Clock(), AwayProvider(), asyncio.Event()
    ring = KeyRing(provider, documents, clock=clock)
    key = await ring.tenant_key("acme")

    unwrap, asked = provider.unwrap, 0

    async def unwrap_late(wrapped: bytes, context: bytes) -> bytes:
        nonlocal asked
        asked += 1
        await answer.wait()
        return await unwrap(wrapped, context)

    provider.unwrap = unwrap_late  # type: ignore[method-assign]
    await KeyRing(PROVIDER, documents).rotate_tenant_key("acme")
    clock.now = limits.KEY_CACHE_LIFETIME_S
    assert await asyncio.wait_for(asyncio.gather(*(ring.tenant_key("acme") for _ in range(20))), 60) == [key] * 20
    assert (asked, key.version) == (1, 1)
    assert ring.is_fresh("acme")
    clock.now += limits.KEY_CACHE_RETRY_S
    assert await ring.tenant_key("acme") is key
    assert asked == 1, "the question that was asked still stands"
    answer.set()
    async with asyncio.timeout(60):
        while key.version == 1:
            await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["destroyed", "denied", "damaged", "gone"])
async def test_what_is_destroyed_denied_or_damaged_is_not_used_beyond_the_lifetime(how: str) -> None:
    documents, clock, provider = MemoryDocuments(), Clock(), AwayProvider()
    ring = KeyRing(provider, documents, clock=clock)
    await ring.tenant_key("acme")
    await ring.tenant_key("other")
    if how == "denied":
        provider.error = KeyUnavailable("denied")
    else:
        damaged = {"destroyed": msgspec.msgpack.encode([1, {}]), "damaged": b"\xc1", "gone": msgspec.msgpack.encode([9, {}])}
        documents.replace(TENANT_KEYS_SCOPE, "acme", damaged[how])
    clock.now = limits.KEY_CACHE_LIFETIME_S
    for _ in range(2):
        with pytest.raises((KeyUnavailable, SealBroken)):
            await ring.tenant_key("acme")
        assert not ring.is_fresh("acme")
    if how != "denied":
        assert await ring.tenant_key("other"), "the others go on"


async def test_a_slow_tenant_holds_up_no_other() -> None:
    documents, provider, stuck = MemoryDocuments(), AwayProvider(), asyncio.Event()
    ring = KeyRing(provider, documents)
    unwrap = provider.unwrap

    async def unwrap_slowly(wrapped: bytes, context: bytes) -> bytes:
        if b"slow" in context:
            await stuck.wait()
        return await unwrap(wrapped, context)

    provider.unwrap = unwrap_slowly  # type: ignore[method-assign]
    waiting = asyncio.create_task(ring.tenant_key("slow"))
    assert await asyncio.wait_for(ring.tenant_key("quick"), 60)
    assert not waiting.done()
    stuck.set()
    assert (await waiting).tenant == "slow"


async def test_who_asks_again_gets_what_was_made_before_the_question() -> None:
    documents = MemoryDocuments()
    here, there = KeyRing(PROVIDER, documents), KeyRing(PROVIDER, documents)
    await here.tenant_key("acme")
    for version in range(2, 6):
        await there.rotate_tenant_key("acme")
        keys = await asyncio.gather(*(here.tenant_key("acme", refresh=True) for _ in range(5)))
        assert {key.version for key in keys} == {version}
    sealed = (await there.tenant_key("acme")).seal(b"context", os.urandom(10))
    assert (await here.key_for("acme", sealed)).holds(sealed)


async def test_a_root_key_in_the_environment_is_rotated_by_whoever_sets_it() -> None:
    documents = MemoryDocuments()
    old, new = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
    before = KeyRing(EnvironmentKeyProvider("ROOT", {"ROOT": old}), documents)
    wrapped, data_key = (await before.tenant_key("acme")).new_data_key("agent")
    store: Any = None  # a rotation of the root key asks no log for agents
    with pytest.raises(ConfigurationError) as caught:
        await Keys(store, before).rotate_root_key()
    assert "comma" in caught.value.hint
    both = KeyRing(EnvironmentKeyProvider("ROOT", {"ROOT": f"{new},{old}"}), documents)
    steps: list[tuple[int, int]] = []
    done = await Keys(store, both).rotate_root_key(progress=lambda done, total: steps.append((done, total)))
    assert (done.tenants, done.left, steps) == (("acme",), {}, [(1, 1)])
    after = KeyRing(EnvironmentKeyProvider("ROOT", {"ROOT": new}), documents)
    assert (await after.tenant_key("acme")).unwrap_data_key("agent", wrapped) == data_key
    with pytest.raises(KeyUnavailable):
        await KeyRing(EnvironmentKeyProvider("ROOT", {"ROOT": old}), documents).tenant_key("acme")
