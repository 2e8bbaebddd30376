"""The independent checker agrees with what is written, and notices what is not as it should be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.engine.digest import canonical, digest
from perdure.security.dictionary_set import BUILTIN
from perdure.snapshots.check import Checked, CheckKeys, check_snapshot
from perdure.snapshots.check_msgpack import NotCanonical, read_all
from perdure.snapshots.codecs import CODECS
from perdure.snapshots.zstd import ChunkDictionary, builtin
from tests.unit.fix_snapshots import Stored, check_keys, conversation, make_keys, small_chunks, state_of, store
from tests.unit.strategies import DOCUMENTS, VALUES

KEYS = make_keys()


def check(stored: Stored, **changed: Any) -> Checked:
    keys: CheckKeys = check_keys()._replace(**changed)
    return check_snapshot(stored.sealed, stored.manifest.version, stored.chunks.get, keys)


@settings(max_examples=60)
@given(DOCUMENTS, st.sampled_from(sorted(CODECS)))
def test_every_snapshot_passes(document: dict[str, Any], codec: str) -> None:
    with small_chunks():
        stored = store(state_of(document), KEYS, codec=codec)
    found = check(stored)
    assert found.problems == []
    assert digest(found.document or {}) == digest(document)
    assert found.state_digest == stored.manifest.state_digest


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_long_conversation_passes(codec: str) -> None:
    document = conversation(1_000)
    stored = store(state_of(document), KEYS, codec=codec, dictionary=builtin())
    found = check(stored)
    assert found.problems == []
    assert found.document == document
    assert found.chunks == len(stored.manifest.chunks) > 1


@given(VALUES)
def test_it_reads_exactly_the_canonical_form(value: Any) -> None:
    assert canonical(read_all(canonical(value))) == canonical(value)


@pytest.mark.parametrize(
    "encoded",
    [
        *(b"\xcc\x7f", b"\xcd\x00\xff", b"\xce\x00\x00\xff\xff", b"\xcf" + bytes(8), b"\xd0\xff", b"\xd1\xff\xff", b"\xd9\x01a"),
        *(b"\xda\x00\x01a", b"\xc5\x00\x01a", b"\xdc\x00\x01\xc0", b"\xde\x00\x00", b"\x82\xa1b\xc0\xa1a\xc0", b"\x82\xa1a\xc0\xa1a\xc0"),
        *(
            b"\xca\x00\x00\x00\x00",
            b"\xc1",
            b"\xd4\x01\x00",
            b"\x81\x01\xc0",
            b"\xa1\xff",
            b"\x92\xc0",
            b"\xc0\xc0",
            b"",
            b"\xdd\xff\xff\xff\xff",
        ),
        b"\x91" * 1_000,
    ],
)
def test_it_refuses_any_other_form(encoded: bytes) -> None:
    with pytest.raises(NotCanonical):
        read_all(encoded)


def test_all_that_is_wrong_is_told_with_its_place() -> None:
    stored = store(state_of(conversation(2_000)), KEYS)
    first, second, third = list(stored.chunks)[:3]
    damaged = stored.chunks | {first: stored.chunks[second], third: stored.chunks[third][:-1]}
    del damaged[second]
    found = check(stored._replace(chunks=damaged))
    assert [problem.where for problem in found.problems] == [first, second, third]
    assert found.document is None


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant": "umbrella"},
        {"agent": "two"},
        {"data_key": bytes(32)},
        {"chunk_secrets": {1: bytes(32)}},
        {"chunk_secrets": {2: bytes(32)}},
        {"mark_secret": bytes(32)},
        {"event_dictionary": lambda _: None},
        {"chunk_dictionary": lambda _: None},
    ],
)
def test_a_wrong_key_a_wrong_tenant_and_a_missing_dictionary_are_told(changed: dict[str, Any]) -> None:
    shrinking = {"reason": "the manifest is compressed as well " * 9}
    stored = store(state_of(conversation(300)), KEYS, dictionary=ChunkDictionary(16, BUILTIN.newest.content), **shrinking)
    everything = {"chunk_dictionary": lambda _: BUILTIN.newest.content}
    assert check(stored, **everything).problems == []
    assert check(stored, **(everything | changed)).problems
