"""Chunk dictionaries: trained per tenant and agent type, sealed, shared, and missed by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure import limits
from perdure.errors import InvalidInput, LimitExceeded, SealBroken
from perdure.security.keys import EnvironmentKeyProvider
from perdure.security.ring import KeyRing
from perdure.snapshots.dictionaries import CHUNK_DICTIONARIES_SCOPE, DictionaryStore, samples_of
from perdure.snapshots.pack import unpack
from perdure.snapshots.zstd import NO_DICTIONARY, builtin
from tests.unit.fix_security import MemoryDocuments
from tests.unit.fix_snapshots import make_keys, state_of, store

PROVIDER = EnvironmentKeyProvider("ROOT", {"ROOT": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="})


def open_store(documents: MemoryDocuments) -> DictionaryStore:
    return DictionaryStore(KeyRing(PROVIDER, documents), documents)


def orders(seed: int, messages: int = 60) -> dict[str, Any]:
    """Conversations about things that the built-in dictionary does not know."""
    texts = [
        f"the {place * seed % 97} quokkas of {place % 7} want {seed + place} marmalade trolleys at the zeppelin quay"
        for place in range(messages)
    ]
    return {"messages": [{"role": "user", "content": text} for text in texts]}


SAMPLES = [sample for seed in range(1, 120) for sample in samples_of([orders(seed)])]


async def test_a_dictionary_serves_its_type_and_tenant_and_every_process() -> None:
    documents = MemoryDocuments()
    book, other = open_store(documents), open_store(documents)
    assert (await other.newest("acme", "support")).id == builtin().id
    id = await book.add("acme", "support", SAMPLES)
    assert id == 16
    assert (await book.newest("acme", "support")).id == id
    assert (await book.newest("acme", "research")).id == builtin().id
    assert (await book.newest("umbrella", "support")).id == builtin().id
    assert (await other.known("acme", [id])).find(id) is not None
    assert (await other.known("acme")).newest("support").id == id
    assert (await open_store(documents).known("acme")).ids == [id]


async def test_a_newer_one_is_used_and_the_older_one_still_opens() -> None:
    documents = MemoryDocuments()
    book = open_store(documents)
    first = await book.add("acme", "support", SAMPLES)
    keys, state = make_keys(), state_of(orders(7))
    stored = store(state, keys, dictionary=await book.newest("acme", "support"))
    plain = store(state, keys, dictionary=NO_DICTIONARY)
    assert stored.manifest.stored_bytes < 0.8 * plain.manifest.stored_bytes
    second = await book.add("acme", "support", SAMPLES[::2])
    assert (first, second) == (16, 17)
    assert (await book.newest("acme", "support")).id == second
    dictionaries = await open_store(documents).known("acme")
    assert unpack(stored.manifest, stored.in_order(keys), keys=keys, dictionaries=dictionaries) == state


async def test_two_processes_that_train_at_once_both_keep_theirs() -> None:
    documents = MemoryDocuments()
    ids = await asyncio.gather(*(open_store(documents).add("acme", kind, SAMPLES) for kind in ("one", "two", "three")))
    assert sorted(ids) == [16, 17, 18]


async def test_dictionaries_are_sealed_and_damage_is_noticed() -> None:
    documents = MemoryDocuments()
    await open_store(documents).add("acme", "support", SAMPLES)
    scope = CHUNK_DICTIONARIES_SCOPE + "acme"
    sealed = documents.stored[scope, "16"].value
    assert b"marmalade" not in sealed
    documents.replace(scope, "16", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(SealBroken):
        await open_store(documents).known("acme")
    documents.replace(scope, "16", sealed)
    await documents.put_document(scope, "17", sealed, expected=0)  # one that stands under another's id
    with pytest.raises(SealBroken):
        await open_store(documents).known("acme")


async def test_too_few_samples_and_too_many_dictionaries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    book = open_store(MemoryDocuments())
    with pytest.raises(InvalidInput):
        await book.add("acme", "support", SAMPLES[:3])
    await book.add("acme", "support", SAMPLES)
    monkeypatch.setattr(limits, "DICTIONARIES_PER_TENANT_MAX", 1)
    with pytest.raises(LimitExceeded):
        await book.add("acme", "support", SAMPLES)


def test_samples_end_when_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRAINING_BYTES_MAX", 10_000)
    assert 10_000 < sum(map(len, samples_of(orders(seed) for seed in range(1_000)))) < 40_000


async def test_a_type_of_which_enough_was_seen_gets_a_dictionary_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_TRAINING_SAMPLES_MIN", 100)
    documents = MemoryDocuments()
    book = open_store(documents)
    for number in range(40):
        await book.see("acme", "support", f"agent {number % 10}", orders(number, 900))
    assert (await book.newest("acme", "support")).id == builtin().id  # ten agents are too few, however often they are seen
    for number in range(40):
        await book.see("acme", "support", f"agent {number}", orders(number, 900))
        await book.see("acme", "research", "the only one", orders(number, 900))
    assert (await book.known("acme")).ids == [16]
    assert (await book.newest("acme", "support")).id == 16
    other = open_store(documents)
    for number in range(40):
        await other.see("acme", "support", f"agent {number}", orders(number, 900))
    assert (await open_store(documents).known("acme")).ids == [16]


async def test_who_does_not_want_to_learn_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_TRAINING_AGENTS_MIN", 1)
    monkeypatch.setattr(limits, "CHUNK_TRAINING_SAMPLES_MIN", 1)
    documents = MemoryDocuments()
    still = DictionaryStore(KeyRing(PROVIDER, documents), documents, learns=False)
    await still.see("acme", "support", "one", orders(1, 900))
    assert (await still.known("acme")).ids == []
    too_little = open_store(documents)
    await too_little.see("acme", "support", "one", {"a": 1})  # the trainer refuses it, the snapshot does not fail
    await too_little.see("acme", "support", "two", orders(1, 9_000))
    assert (await too_little.known("acme")).ids == []
