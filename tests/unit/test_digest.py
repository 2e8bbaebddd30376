"""Canonical bytes and digests."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from perdure.engine.cells import shape, split, touched
from perdure.engine.digest import IncrementalDigest, canonical, digest, same
from perdure.engine.fold import apply

from .strategies import CHANGES, DOCUMENTS, VALUES


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_canonical_bytes_ignore_the_order_of_members_and_decode_to_the_value(value: Any) -> None:
    assert canonical(_reversed(value)) == canonical(value)
    assert canonical(msgspec.msgpack.decode(canonical(value))) == canonical(value)


def test_members_are_sorted_by_the_bytes_of_their_keys() -> None:
    keys = ["", "a", "aa", "b", "z", "ä", "€", "\U0001f600", "\uffff"]
    assert list(msgspec.msgpack.decode(canonical(dict.fromkeys(reversed(keys))))) == sorted(keys, key=str.encode)


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0, False), (0.0, -0.0), ("a", b"a"), (None, False), ([], {}), ([1], [True])]
)
def test_what_differs_by_type_alone_differs(one: Any, other: Any) -> None:
    assert canonical(one) != canonical(other)
    assert digest({"a": one}) != digest({"a": other})
    assert not same(one, other)


@given(DOCUMENTS, DOCUMENTS)
@settings(max_examples=200, deadline=None)
def test_documents_have_one_digest_if_and_only_if_they_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (digest(one) == digest(other)) is same(one, other)
    assert digest(_reversed(one)) == digest(one)


@given(DOCUMENTS, CHANGES)
@settings(max_examples=200, deadline=None)
def test_the_incremental_digest_follows_the_fold(document: dict[str, Any], changes: Any) -> None:
    kept = IncrementalDigest(split(document))
    before = shape(document, changes)
    after, _ = apply(copy.deepcopy(document), changes)
    kept.update(*touched(changes, before, after))
    assert kept.digest() == digest(after)


def test_the_digest_never_changes_between_releases() -> None:
    document = {"messages": [{"role": "user", "content": "hé"}], "status": "idle", "budget": 1.5, "tools": {}, "blob": b"\0"}
    assert digest(document).hex() == "d044624700eb91731a0419b3bc728b19bfa7a77d507f67e0846158f459546de6"
    assert digest({}).hex() == "3c63b80650a3e5f9fa5a6b31492ffcae92fd1028cbae2ff82e64a35f7c3bd111"
