"""The fold: its table, line by line, and its promises as properties."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import limits
from perdure.engine import fold
from perdure.engine.changes import Change, append, delete, insert, merge, set_value
from perdure.engine.checks import check_changes
from perdure.engine.digest import canonical
from perdure.engine.fold import MISSING, apply, lookup
from perdure.engine.values import check_value
from perdure.errors import InvalidEvent

from .strategies import CHANGES, DOCUMENTS


def fold_step_by_step(document: dict[str, Any], changes: tuple[Change, ...], fresh: fold.Fresh | None) -> tuple[dict[str, Any], list[str]]:
    """The fold as its table says, without the short ways that are taken for what is frequent."""
    warnings: list[str] = []
    for change in changes:
        if change.path:
            fold._fold_one(document, change, fresh, warnings)
        else:
            document = fold._fold_root(document, change, fresh, warnings)
    return document, warnings


TABLE = [
    # document, change, result, warnings
    ({}, set_value("/a/b", 1), {"a": {"b": 1}}, 0),
    ({"a": None}, set_value("/a/b", 1), {"a": {"b": 1}}, 0),
    ({"a": 5}, set_value("/a/b", 1), {"a": {"b": 1}}, 1),
    ({"a": [1, 2]}, set_value("/a/1", 3), {"a": [1, 3]}, 0),
    ({"a": [1]}, set_value("/a/1", 3), {"a": [1, 3]}, 0),
    ({"a": [1]}, set_value("/a/-", 3), {"a": [1, 3]}, 0),
    ({"a": [1]}, set_value("/a/9", 3), {"a": [1, 3]}, 1),
    ({"a": [1]}, set_value("/a/" + "9" * 1000, 3), {"a": [1, 3]}, 1),
    ({"a": [1]}, set_value("/a/01", 3), {"a": {"01": 3}}, 1),
    ({"a": [1]}, set_value("/a/²", 3), {"a": {"²": 3}}, 1),
    ({"a": [1]}, set_value("/a/x/y", 3), {"a": {"x": {"y": 3}}}, 1),
    ({"a": [[1]]}, set_value("/a/0/x", 3), {"a": [{"x": 3}]}, 1),
    ({"a": [1]}, set_value("/a/1/x", 3), {"a": [1, {"x": 3}]}, 0),
    ({"a": 1}, set_value("", {"b": 2}), {"b": 2}, 0),
    ({"a": 1}, Change("set", (), 5), {"a": 1}, 1),
    ({"a": 1, "b": 2}, delete("/a"), {"b": 2}, 0),
    ({"a": 1}, delete("/b/c/d"), {"a": 1}, 0),
    ({"a": 1}, delete("/a/b"), {"a": 1}, 0),
    ({"a": [1, 2, 3]}, delete("/a/0"), {"a": [2, 3]}, 0),
    ({"a": [1]}, delete("/a/1"), {"a": [1]}, 0),
    ({"a": [1]}, delete("/a/-"), {"a": [1]}, 0),
    ({"a": [1]}, delete("/a/x"), {"a": [1]}, 0),
    ({"a": 1}, delete(""), {}, 0),
    ({}, append("/a", 1), {"a": [1]}, 0),
    ({}, append("/a/b", 1), {"a": {"b": [1]}}, 0),
    ({"a": None}, append("/a", 1), {"a": [1]}, 0),
    ({"a": [1]}, append("/a", 2), {"a": [1, 2]}, 0),
    ({"a": 1}, append("/a", 2), {"a": [1, 2]}, 1),
    ({"a": {}}, append("/a", 2), {"a": {}}, 1),
    ({"a": [1]}, append("/a/0", 2), {"a": [[1, 2]]}, 1),
    ({"a": [1]}, append("/a/1", 2), {"a": [1, [2]]}, 0),
    ({"a": 1}, Change("append", (), 2), {"a": 1}, 1),
    ({"a": [1, 2]}, insert("/a/0", 0), {"a": [0, 1, 2]}, 0),
    ({"a": [1]}, insert("/a/1", 2), {"a": [1, 2]}, 0),
    ({"a": [1]}, insert("/a/-", 2), {"a": [1, 2]}, 0),
    ({"a": [1]}, insert("/a/5", 2), {"a": [1, 2]}, 1),
    ({}, insert("/a/5", 2), {"a": [2]}, 1),
    ({}, insert("/a/0", 2), {"a": [2]}, 0),
    ({"a": 7}, insert("/a/0", 2), {"a": [2]}, 1),
    ({"a": {"0": 1}}, insert("/a/0", 2), {"a": {"0": 2}}, 0),
    ({"a": 1}, Change("insert", (), 2), {"a": 1}, 1),
    ({"a": 1, "b": {"c": 1, "d": 2}}, merge("", {"a": None, "b": {"c": None, "e": {"f": None}}}), {"b": {"d": 2, "e": {}}}, 0),
    ({"a": [1]}, merge("/a", {"x": 1}), {"a": {"x": 1}}, 0),
    ({"a": [1]}, merge("/a/0", {"x": None}), {"a": [{}]}, 0),
    ({"a": {"b": 1}}, merge("/a", [None]), {"a": [None]}, 0),
    ({"a": 1}, Change("merge", (), 5), {"a": 1}, 1),
    ({"a": (1,)}, append("/a", 2), {"a": [1, 2]}, 0),
]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("document", "change", "result", "warnings"), TABLE)
def test_the_table_holds(document: Any, change: Change, result: Any, warnings: int, own: bool) -> None:
    folded, said = apply(copy.deepcopy(document), copy.deepcopy([change]), own=own)
    assert canonical(folded) == canonical(result)
    assert len(said) == warnings


@given(DOCUMENTS, CHANGES)
@settings(max_examples=200, deadline=None)
def test_every_accepted_change_folds_and_leaves_a_document_that_is_accepted(document: dict[str, Any], changes: tuple[Change, ...]) -> None:
    check_changes(changes)
    folded, _ = apply(document, changes)
    check_value(folded)
    assert type(folded) is dict


@given(DOCUMENTS, CHANGES, CHANGES)
@settings(max_examples=200, deadline=None)
def test_in_place_and_copying_folds_agree_and_copying_never_mutates(document: dict[str, Any], first: Any, second: Any) -> None:
    before = canonical([document, first, second])
    middle, one = apply(document, first)
    kept = canonical(middle)
    after, two = apply(middle, second)
    assert canonical([document, first, second]) == before
    assert canonical(middle) == kept
    owned, warnings = apply(copy.deepcopy(document), copy.deepcopy(first + second), own=True)
    assert canonical(owned) == canonical(after)
    assert warnings == one + two


@given(DOCUMENTS, CHANGES)
@settings(max_examples=100, deadline=None)
def test_what_did_not_change_is_shared(document: dict[str, Any], changes: tuple[Change, ...]) -> None:
    document["untouched"] = {"deep": [1]}
    if all(change.path for change in changes):
        folded, _ = apply(document, changes)
        assert folded["untouched"] is document["untouched"]


def test_no_sequence_of_accepted_changes_nests_deeper_than_the_limit() -> None:
    deep: Any = 1
    for _ in range(limits.NESTING_DEPTH_MAX - 1):
        deep = [deep]
    changes = [set_value("/a", deep)]
    changes += [append("/a" + "/0" * level, 1) for level in range(limits.PATH_DEPTH_MAX)] * 2
    check_changes(changes)
    document, _ = apply({}, changes)
    check_value(document)


def test_appends_in_place_take_the_same_list() -> None:
    messages: list[int] = []
    document, warnings = apply({"messages": messages}, [append("/messages", number) for number in range(1000)], own=True)
    assert document["messages"] is messages
    assert messages == list(range(1000))
    assert warnings == []


def test_an_operation_of_another_age_is_an_error() -> None:
    with pytest.raises(InvalidEvent):
        apply({}, [Change("rotate", ("a",), 1)])  # type: ignore[arg-type]


def test_lookup_finds_what_a_path_names() -> None:
    document = {"a": [{"b": None}]}
    assert lookup(document, ("a", "0", "b")) is None
    assert lookup(document, ("a", "1")) is MISSING
    assert lookup(document, ("a", "x")) is MISSING
    assert lookup(document, ("a", "0", "b", "c")) is MISSING
    assert lookup(document, ()) is document


@settings(deadline=None, max_examples=80)
@given(DOCUMENTS, st.lists(CHANGES, max_size=3))
def test_the_short_ways_lead_where_the_long_ones_do(document: dict[str, Any], history: list[tuple[Change, ...]]) -> None:
    short, long, shared = copy.deepcopy(document), copy.deepcopy(document), document
    kept = copy.deepcopy(document)
    for event in history:
        short, warnings = apply(short, copy.deepcopy(event), own=True)
        long, expected = fold_step_by_step(long, copy.deepcopy(event), None)
        assert (canonical(short), warnings) == (canonical(long), expected)
        shared, warnings = apply(shared, event)
        assert (canonical(shared), warnings) == (canonical(long), expected)
    assert canonical(document) == canonical(kept)
