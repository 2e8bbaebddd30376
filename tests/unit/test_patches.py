"""Merge patches and JSON patches, against the standards' own examples and an independent implementation."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import jsonpatch
import jsonpointer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import limits
from perdure.engine.changes import append, delete, insert, merge
from perdure.engine.checks import check_changes
from perdure.engine.digest import canonical
from perdure.engine.fold import apply
from perdure.engine.patches import from_json_patch, from_merge_patch
from perdure.errors import InvalidEvent, InvalidPatch, LimitExceeded

KEYS = st.sampled_from(["a", "b", "0", "1", "~/"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(KEYS, JSON, max_size=3)
POINTERS = st.lists(st.sampled_from(["a", "b", "0", "1", "2", "-", "~0~1"]), min_size=1, max_size=3).map(
    lambda tokens: "/" + "/".join(tokens)
)


@st.composite
def operations(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(["add", "add", "remove", "replace", "move", "copy", "test"]))
    operation = {"op": name, "path": draw(POINTERS)}
    if name in ("add", "replace", "test"):
        operation["value"] = draw(JSON)
    if name in ("move", "copy"):
        operation["from"] = draw(POINTERS)
    return operation


def _merge_by_the_letter(target: Any, patch: Any) -> Any:
    """The pseudo code of RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = _merge_by_the_letter(target.get(name), value)
    return target


@given(DOCUMENTS, DOCUMENTS)
@settings(max_examples=200, deadline=None)
def test_a_merge_patch_does_what_the_standard_says(document: dict[str, Any], patch: dict[str, Any]) -> None:
    changes = from_merge_patch(patch)
    check_changes(changes)
    assert apply(document, changes) == (_merge_by_the_letter(document, patch), [])


def test_a_merge_patch_is_one_change_or_none() -> None:
    assert from_merge_patch({"a": None}) == (merge("", {"a": None}),)
    assert from_merge_patch({}) == ()


@pytest.mark.parametrize("patch", [None, [], "x", 1])
def test_a_merge_patch_of_a_state_is_a_map(patch: Any) -> None:
    with pytest.raises(InvalidPatch):
        from_merge_patch(patch)


def test_a_merge_patch_is_checked() -> None:
    with pytest.raises(InvalidEvent):
        from_merge_patch({"a": math.nan})


@given(DOCUMENTS, st.lists(operations(), max_size=4))
@settings(max_examples=400, deadline=None)
def test_a_json_patch_that_applies_gives_what_another_implementation_gives(document: dict[str, Any], patch: list[dict[str, Any]]) -> None:
    kept = canonical([document, patch])
    try:
        changes = from_json_patch(document, patch)
    except InvalidPatch:
        return
    finally:
        assert canonical([document, patch]) == kept
    check_changes(changes)
    try:
        expected = jsonpatch.apply_patch(copy.deepcopy(document), patch)
    except jsonpatch.JsonPatchTestFailed:
        # That implementation compares like Python and knows no more; ours has already compared.
        return
    result, warnings = apply(document, changes)
    assert json.dumps(result, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert warnings == []
    owned, _ = apply(copy.deepcopy(document), copy.deepcopy(changes), own=True)
    assert owned == result


@given(DOCUMENTS, operations())
@settings(max_examples=300, deadline=None)
def test_a_json_patch_that_does_not_apply_elsewhere_does_not_apply_here(document: dict[str, Any], operation: dict[str, Any]) -> None:
    try:
        jsonpatch.apply_patch(copy.deepcopy(document), [operation])
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException):
        if operation.get("from") == operation["path"]:
            return
        with pytest.raises(InvalidPatch):
            from_json_patch(document, [operation])


def test_operations_become_the_changes_one_would_write() -> None:
    patch = [
        {"op": "add", "path": "/messages/-", "value": "c"},
        {"op": "add", "path": "/messages/0", "value": "z"},
        {"op": "remove", "path": "/draft"},
        {"op": "test", "path": "/messages/3", "value": "c"},
    ]
    changes = from_json_patch({"messages": ["a", "b"], "draft": 1}, patch)
    assert changes == (append("/messages", "c"), insert("/messages/0", "z"), delete("/draft"))


def test_a_moved_value_is_not_changed_by_what_follows() -> None:
    patch = [
        {"op": "add", "path": "/a/x", "value": 1},
        {"op": "move", "from": "/a", "path": "/b"},
        {"op": "add", "path": "/b/y", "value": [1]},
        {"op": "copy", "from": "/b", "path": "/c"},
        {"op": "add", "path": "/b/y/-", "value": 2},
    ]
    changes = from_json_patch({"a": {}}, patch)
    assert apply({"a": {}}, changes)[0] == {"b": {"x": 1, "y": [1, 2]}, "c": {"x": 1, "y": [1]}}
    assert [change.value for change in changes if change.op == "set"] == [1, {"x": 1}, [1], {"x": 1, "y": [1]}]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "add", "path": "/missing/x", "value": 1},
        {"op": "add", "path": "/list/3", "value": 1},
        {"op": "add", "path": "/list/01", "value": 1},
        {"op": "add", "path": "/scalar/x", "value": 1},
        {"op": "add", "path": "/x"},
        {"op": "add", "path": "x", "value": 1},
        {"op": "add", "path": "/~2", "value": 1},
        {"op": "add", "path": "", "value": [1]},
        {"op": "add", "value": 1},
        {"op": "remove", "path": "/missing"},
        {"op": "remove", "path": "/list/-"},
        {"op": "remove", "path": ""},
        {"op": "replace", "path": "/missing", "value": 1},
        {"op": "move", "from": "/map", "path": "/map/x"},
        {"op": "move", "from": "/missing", "path": "/x"},
        {"op": "move", "path": "/x"},
        {"op": "copy", "from": "/missing", "path": "/x"},
        {"op": "test", "path": "/scalar", "value": True},
        {"op": "test", "path": "/list", "value": [1]},
        {"op": "test", "path": "/missing", "value": None},
        {"op": "spam", "path": "/x"},
        {"op": ["add"], "path": "/x"},
        {"path": "/x"},
        "add",
    ],
)
def test_a_broken_operation_is_named(operation: Any) -> None:
    document = {"list": [1, 2], "scalar": 1, "map": {}}
    with pytest.raises(InvalidPatch) as caught:
        from_json_patch(document, [{"op": "test", "path": "/scalar", "value": 1.0}, operation])
    assert caught.value.details["operation"] == 1


def test_a_patch_is_bounded() -> None:
    with pytest.raises(LimitExceeded):
        from_json_patch({}, [{"op": "add", "path": "/a", "value": 1}] * (limits.CHANGES_PER_EVENT_MAX + 1))
    with pytest.raises(InvalidPatch):
        from_json_patch({}, {"op": "add"})  # type: ignore[arg-type]
