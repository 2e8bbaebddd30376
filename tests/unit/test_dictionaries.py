"""Dictionaries: the built-in one, and those that tenants train."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import importlib.util
import json
import sys
from importlib.resources import files
from pathlib import Path
from random import Random
from types import ModuleType

import msgspec
import pytest

from perdure import limits
from perdure.errors import DictionaryNotFound, InvalidInput, LimitExceeded, SealBroken
from perdure.security.cipher import Cipher
from perdure.security.compression import NO_DICTIONARY, Dictionary
from perdure.security.dictionaries import DICTIONARIES_SCOPE, DictionaryBook
from perdure.security.dictionary_set import BUILTIN, BUILTIN_ID, BUILTIN_SHA256, TENANT_ID_FIRST
from perdure.security.keys import EnvironmentKeyProvider
from perdure.security.ring import KeyRing
from perdure.security.training import train
from tests.unit.fix_security import MemoryDocuments

PROVIDER = EnvironmentKeyProvider("ROOT", {"ROOT": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="})
KEY, CONTEXT = bytes(32), b"event" + bytes(16)


def load_tool(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generated(seed: int, conversations: int) -> list[bytes]:
    return [msgspec.msgpack.encode(payload) for payload in load_tool("generated_events").generate(seed, conversations)]


def samples_of(seed: int, count: int = 400) -> list[bytes]:
    """Messages about things that neither the built-in dictionary nor another seed's tenant knows."""
    random = Random(seed)
    words = [f"{random.getrandbits(48):x}" for _ in range(60)]
    return [(" ".join(random.choices(words, k=30))).encode() for _ in range(count)]


@pytest.fixture
def documents() -> MemoryDocuments:
    return MemoryDocuments()


def make_book(documents: MemoryDocuments) -> DictionaryBook:
    return DictionaryBook(KeyRing(PROVIDER, documents), documents)


def test_the_builtin_dictionary_is_the_one_that_this_release_knows() -> None:
    content = files("perdure.security").joinpath("builtin.zdict").read_bytes()
    assert hashlib.sha256(content).hexdigest() == BUILTIN_SHA256
    assert BUILTIN.newest.id == BUILTIN_ID
    assert BUILTIN.newest.content == content


def test_the_generator_of_its_samples_is_deterministic_and_its_dictionary_helps_with_others() -> None:
    fresh = generated(99, 40)
    assert fresh == generated(99, 40)
    without = sum(len(NO_DICTIONARY.compress(sample)) for sample in fresh)
    assert sum(len(BUILTIN.newest.compress(sample)) for sample in fresh) < 0.6 * without


def test_on_real_conversations_a_trained_dictionary_saves_most_of_every_message(trajectories: Path) -> None:
    runs = json.loads((trajectories / "tau-bench" / "gpt-4o-airline.json").read_bytes())
    payloads = [
        [msgspec.msgpack.encode([[["append", ["messages"], message]], None, {}, "", "", 1, True]) for message in run["traj"]]
        for run in runs
    ]
    half = len(payloads) // 2
    trained = Dictionary(TENANT_ID_FIRST, train([payload for run in payloads[:half] for payload in run]))
    unseen = [payload for run in payloads[half:] for payload in run]
    raw_bytes = sum(map(len, unseen))
    builtin_bytes, trained_bytes = (sum(len(each.compress(payload)) for payload in unseen) for each in (BUILTIN.newest, trained))
    assert trained_bytes < 0.24 * raw_bytes
    assert trained_bytes < builtin_bytes < 0.5 * raw_bytes


async def test_a_trained_dictionary_is_used_from_then_on_and_old_seals_still_open(documents: MemoryDocuments) -> None:
    book = make_book(documents)
    cipher = Cipher("acme", "agent", KEY, await book.ensure("acme"))
    samples = samples_of(1)
    before = cipher.seal(CONTEXT, samples[0])
    assert await book.add("acme", samples) == TENANT_ID_FIRST
    after = cipher.seal(CONTEXT, samples[0])
    assert after[2] == TENANT_ID_FIRST
    assert len(after) < 0.6 * len(before)
    assert cipher.open(CONTEXT, before) == cipher.open(CONTEXT, after) == samples[0]


async def test_a_process_that_meets_an_unknown_dictionary_loads_it_and_opens(documents: MemoryDocuments) -> None:
    here, elsewhere = make_book(documents), make_book(documents)
    cipher = Cipher("acme", "agent", KEY, await elsewhere.ensure("acme"))
    await here.add("acme", samples_of(1))
    sealed = Cipher("acme", "agent", KEY, await here.ensure("acme")).seal(CONTEXT, samples_of(1)[0])
    with pytest.raises(DictionaryNotFound):
        cipher.open(CONTEXT, sealed)
    await elsewhere.load("acme")
    assert cipher.open(CONTEXT, sealed) == samples_of(1)[0]


async def test_a_restarted_process_uses_the_newest_of_several(documents: MemoryDocuments) -> None:
    book = make_book(documents)
    first, second = await book.add("acme", samples_of(1)), await book.add("acme", samples_of(2))
    dictionaries = await make_book(documents).ensure("acme")
    assert dictionaries.ids == [first, second] == [TENANT_ID_FIRST, TENANT_ID_FIRST + 1]
    assert dictionaries.newest.id == second


async def test_processes_that_add_at_once_take_different_ids(documents: MemoryDocuments) -> None:
    books = [make_book(documents) for _ in range(3)]
    ids = await asyncio.gather(*(book.add("acme", samples_of(seed)) for seed, book in enumerate(books)))
    assert sorted(ids) == [16, 17, 18]


async def test_a_book_opens_a_dictionary_that_was_sealed_after_a_rotation_elsewhere(documents: MemoryDocuments) -> None:
    ring = KeyRing(PROVIDER, documents)
    here, elsewhere = DictionaryBook(ring, documents), make_book(documents)
    await elsewhere.add("acme", samples_of(1))
    await ring.rotate_tenant_key("acme")
    await here.add("acme", samples_of(2))
    assert (await elsewhere.load("acme")).ids == [16, 17]


async def test_tenants_do_not_share_dictionaries(documents: MemoryDocuments) -> None:
    book = make_book(documents)
    await book.add("acme", samples_of(1))
    assert (await book.ensure("other")).newest.id == BUILTIN_ID
    scope = DICTIONARIES_SCOPE + "other"
    await documents.put_document(scope, "16", documents.stored[DICTIONARIES_SCOPE + "acme", "16"].value, expected=0)
    with pytest.raises(SealBroken):
        await book.load("other")


async def test_a_stored_dictionary_holds_no_plaintext_and_no_changed_one_is_loaded(documents: MemoryDocuments) -> None:
    await make_book(documents).add("acme", samples_of(1))
    scope = DICTIONARIES_SCOPE + "acme"
    value = documents.stored[scope, "16"].value
    assert samples_of(1)[0][:12] not in value
    await documents.put_document(scope, "17", value, expected=0)
    with pytest.raises(SealBroken):
        await make_book(documents).load("acme")
    del documents.stored[scope, "17"]
    documents.replace(scope, "16", value[:-1] + bytes((value[-1] ^ 1,)))
    with pytest.raises(SealBroken):
        await make_book(documents).load("acme")


@pytest.mark.parametrize("name", ["1", "15", "x", "-16", "²²", "99999999"])
async def test_a_document_under_a_name_that_is_no_id_is_refused(documents: MemoryDocuments, name: str) -> None:
    await documents.put_document(DICTIONARIES_SCOPE + "acme", name, b"", expected=0)
    with pytest.raises(SealBroken):
        await make_book(documents).load("acme")


async def test_dictionaries_of_tenants_that_rest_are_let_go_but_not_while_a_cipher_holds_them(
    documents: MemoryDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DICTIONARY_TENANTS_CACHED_MAX", 2)
    book = make_book(documents)
    cipher = Cipher("acme", "agent", KEY, await book.ensure("acme"))
    for number in range(5):
        await book.ensure(f"tenant-{number}")
    gc.collect()
    assert len(book._alive) == 3
    await book.add("acme", samples_of(1))
    assert cipher.seal(CONTEXT, samples_of(1)[0])[2] == TENANT_ID_FIRST


async def test_the_number_of_a_tenants_dictionaries_is_bounded(documents: MemoryDocuments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DICTIONARIES_PER_TENANT_MAX", 1)
    book = make_book(documents)
    await book.add("acme", samples_of(1))
    with pytest.raises(LimitExceeded):
        await book.add("acme", samples_of(2))


@pytest.mark.parametrize("samples", [[], [b"x" * 10] * 1_000, [b"x" * 100_000] * 10, [b""] * 1_000])
def test_too_few_samples_are_a_typed_error(samples: list[bytes]) -> None:
    with pytest.raises(InvalidInput) as caught:
        train(samples)
    assert caught.value.hint


@pytest.mark.parametrize("samples", [[b"x" * 1_000] * 100, [bytes(400_000)] * 100, [b"a"] * 40_000, [b"", b"y" * 700] * 200])
def test_samples_that_teach_nothing_give_a_dictionary_or_a_typed_error(samples: list[bytes]) -> None:
    try:
        assert len(train(samples)) <= limits.DICTIONARY_BYTES_MAX
    except InvalidInput as error:
        assert error.hint  # noqa: PT017 - either outcome is right, another exception is not
