"""Read-only documents: equal to plain ones wherever they are only looked at, and never changed, whatever is done to them."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.engine.agent_state import from_document, to_document
from perdure.engine.blobs import take_out
from perdure.engine.cells import join, shape, split, touched
from perdure.engine.changes import Change
from perdure.engine.checks import check_changes
from perdure.engine.diff import diff
from perdure.engine.digest import canonical, digest
from perdure.engine.fold import apply, lookup
from perdure.engine.patches import from_json_patch, from_merge_patch
from perdure.engine.readonly import Freezing, ReadOnlyList, ReadOnlyMap, footprint, freeze, thaw
from perdure.engine.values import check_value
from perdure.errors import InvalidPatch, PerdureError, ReadOnly

from .strategies import CHANGES, DOCUMENTS, VALUES

SLOW = (HealthCheck.too_slow,)
"""A busy machine may draw slowly."""
LOOKS = {
    *(
        "__class__",
        "__class_getitem__",
        "__contains__",
        "__delattr__",
        "__dir__",
        "__doc__",
        "__eq__",
        "__format__",
        "__ge__",
        "__getattribute__",
    ),
    *(
        "__getitem__",
        "__getstate__",
        "__gt__",
        "__hash__",
        "__init_subclass__",
        "__iter__",
        "__le__",
        "__len__",
        "__lt__",
        "__ne__",
        "__new__",
    ),
    *("__reduce__", "__reduce_ex__", "__repr__", "__reversed__", "__sizeof__", "__str__", "__subclasshook__"),
    *("__add__", "__mul__", "__rmul__", "__or__", "__ror__"),
    *("copy", "count", "fromkeys", "get", "index", "items", "keys", "values"),
}
"""What a dict or a list has that changes nothing. All else must be refused, also what a later Python brings."""
BUSY: dict[str, Any] = {"a": {"b": [1, {"c": "x"}]}, "b": [[], {}, b"x"], "c": 1, "": None}


def containers(value: Any) -> list[Any]:
    """Every container of a value, itself among them."""
    if not isinstance(value, dict | list):
        return []
    return [value, *(inner for child in (value.values() if isinstance(value, dict) else value) for inner in containers(child))]


def attempts(container: Any) -> list[Any]:
    """Every way that a container has to be changed."""
    given: dict[str, tuple[Any, ...]] = {
        "__setitem__": (0, "new"),
        "__delitem__": (0,),
        "__imul__": (2,),
        "__init__": ([],),
        "__setattr__": ("__class__", dict),
    }
    given |= {"insert": (0, "new"), "append": ("new",), "remove": (1,), "setdefault": ("new", 1)}
    given |= {name: ([("new", 1)],) for name in ("__ior__", "__iadd__", "extend", "update")}
    found = []
    for name in sorted(set(dir(type(container).__mro__[1])) - LOOKS):
        arguments: tuple[Any, ...] = given.get(name, (next(iter(container), "a"),) if name == "pop" and isinstance(container, dict) else ())
        found.append(lambda name=name, arguments=arguments: getattr(container, name)(*arguments))
    return found


def test_whatever_would_change_a_container_in_place_says_how_to_get_a_copy() -> None:
    frozen = freeze(BUSY)
    assert {type(each) for each in containers(frozen)} == {ReadOnlyMap, ReadOnlyList}
    for container in containers(frozen):
        for attempt in attempts(container):
            with pytest.raises(ReadOnly, match="read-only") as refused:
                attempt()
            assert isinstance(refused.value, TypeError)
            assert "perdure.thaw" in refused.value.hint
    assert canonical(frozen) == canonical(BUSY)
    with pytest.raises(ReadOnly):
        ReadOnlyMap({"a": []})  # a container that was not frozen all the way down


@given(DOCUMENTS)
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
def test_a_read_only_document_is_taken_for_the_plain_one(document: dict[str, Any]) -> None:
    frozen = freeze(document)
    assert freeze(frozen) is frozen
    assert (frozen, digest(frozen), canonical(frozen)) == (document, digest(document), canonical(document))
    assert repr(frozen) == repr(document)
    assert msgspec.json.encode(frozen) == msgspec.json.encode(document)
    assert canonical(join(split(frozen))) == canonical(document)
    check_value(frozen)
    text = msgspec.to_builtins(document)  # bytes are no JSON
    assert json.dumps(freeze(text)) == json.dumps(text)
    for plain in (thaw(frozen), copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert canonical(plain) == canonical(document)
        assert {type(each) for each in containers(plain)} <= {dict, list}
        plain["new"] = [1]
    shallow = copy.copy(frozen)
    shallow["new"] = 1
    assert canonical(frozen) == canonical(document)


@given(DOCUMENTS, st.lists(CHANGES, min_size=1, max_size=4), st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
def test_nothing_that_is_done_with_one_version_changes_another(document: dict[str, Any], history: list[Any], data: Any) -> None:
    """Versions are folded on from one another and share what did not change; between them, everything is tried on all of them."""
    handed_in = canonical([document, history])
    versions = [freeze(document)]
    digests = [digest(document)]
    plain = thaw(document)
    for changes in history:
        own = data.draw(st.booleans())
        before, plain_before = shape(versions[-1], changes), shape(plain, changes)
        folded, warnings = apply(versions[-1], copy.deepcopy(changes) if own else changes, own=own)
        plain, expected_warnings = apply(plain, copy.deepcopy(changes))
        assert (canonical(folded), warnings) == (canonical(plain), expected_warnings)
        assert touched(changes, before, folded) == touched(changes, plain_before, plain)
        versions.append(freeze(folded))
        digests.append(digest(plain))
        if folded:
            folded[next(iter(folded))] = "the fold's own"
        for container in containers(data.draw(st.sampled_from(versions))):
            for attempt in attempts(container):
                with pytest.raises(ReadOnly):
                    attempt()
        assert [digest(version) for version in versions] == digests
    assert canonical(freeze([document, history])) == handed_in


@given(DOCUMENTS, DOCUMENTS, VALUES)
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
def test_parts_of_a_state_may_be_handed_in_again(one: dict[str, Any], other: dict[str, Any], value: Any) -> None:
    here, there, part = freeze(one), freeze(other), freeze(value)
    check_changes((Change("set", ("a",), part), Change("merge", (), here)))
    assert canonical(apply(there, diff(there, here))[0]) == canonical(one)
    assert [canonical(each) for each in diff(there, here)] == [canonical(each) for each in diff(other, one)]
    assert from_merge_patch(here) == from_merge_patch(one)
    patch = [
        {"op": "add", "path": "/a", "value": value},
        {"op": "copy", "from": "/a", "path": "/b"},
        {"op": "test", "path": "/b", "value": value},
    ]
    assert canonical(apply(here, from_json_patch(here, freeze(patch)))[0]) == canonical(apply(one, from_json_patch(one, patch))[0])
    with pytest.raises(InvalidPatch):
        from_json_patch(here, freeze([{"op": "remove", "path": "/nowhere"}]))
    assert take_out(part, lambda _: b"") == (value, 0)
    try:
        typed = from_document(one)
    except PerdureError:
        return
    assert canonical(to_document(from_document(here))) == canonical(to_document(typed))


def test_a_later_version_shares_what_did_not_change_and_counts_only_what_is_new() -> None:
    messages = [{"role": "user", "content": f"message {number}", "calls": [{"id": number}]} for number in range(5_000)]
    first = freeze({"messages": messages, "profile": {"name": "x"}})
    folded, _ = apply(first, [Change("append", ("messages",), {"role": "user"})], own=True)
    freezing = Freezing()
    second = freezing.value(folded)
    assert len(second["messages"]) == len(first["messages"]) + 1 == 5_001
    assert second["profile"] is first["profile"]
    assert all(mine is other for mine, other in zip(second["messages"], first["messages"], strict=False))
    assert freezing.size_bytes < footprint(first) / 20


@given(VALUES)
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
def test_a_value_takes_no_more_than_it_is_counted(value: Any) -> None:
    def taken(part: Any) -> int:
        inner = [*part.keys(), *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else []
        return int(part.__sizeof__()) + sum(map(taken, inner))

    frozen = freeze(value)
    assert taken(frozen) <= footprint(value) == footprint(frozen)
    deep = lookup(freeze({"a": [value]}), ("a", "0"))
    assert canonical(deep) == canonical(value)
