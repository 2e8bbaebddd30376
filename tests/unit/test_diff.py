"""diff: exact, and small."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from perdure import limits
from perdure.engine.changes import append, delete, insert, set_value
from perdure.engine.checks import check_changes
from perdure.engine.diff import diff
from perdure.engine.digest import canonical
from perdure.engine.fold import apply

from .strategies import CHANGES, DOCUMENTS


@given(DOCUMENTS, DOCUMENTS)
@settings(max_examples=300, deadline=None)
def test_applying_the_diff_gives_the_other_document(before: dict[str, Any], after: dict[str, Any]) -> None:
    changes = diff(before, after)
    check_changes(changes)
    result, warnings = apply(before, changes)
    assert canonical(result) == canonical(after)
    assert warnings == []


@given(DOCUMENTS, CHANGES)
@settings(max_examples=300, deadline=None)
def test_the_diff_of_a_document_and_its_successor_is_exact_under_any_bound(before: dict[str, Any], changes: Any) -> None:
    after, _ = apply(before, changes)
    for changes_max in (limits.CHANGES_PER_EVENT_MAX, 2, 1):
        found = diff(before, after, changes_max=changes_max)
        assert len(found) <= changes_max
        assert canonical(apply(before, found)[0]) == canonical(after)
    assert diff(after, after) == ()


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"a": 1}, {"a": 1.0}, (set_value("/a", 1.0),)),
        ({"a": 1}, {"a": True}, (set_value("/a", True),)),
        ({"a": 1, "b": 2}, {"b": 2, "c": 3}, (delete("/a"), set_value("/c", 3))),
        ({"a": [{"x": 1}]}, {"a": [{"x": 1}, {"y": 2}]}, (append("/a", {"y": 2}),)),
        ({"a": [1, 3]}, {"a": [1, 2, 3]}, (insert("/a/1", 2),)),
        ({"a": [1, 2, 3]}, {"a": [1, 3]}, (delete("/a/1"),)),
        ({"a": [{"x": 1, "y": 1}, 5]}, {"a": [{"x": 2, "y": 1}, 5]}, (set_value("/a/0/x", 2),)),
        ({"a": [1]}, {"a": []}, (set_value("/a", []),)),
        ({"a": (1, 2)}, {"a": [1, 2]}, ()),
    ],
)
def test_differences_are_small(before: Any, after: Any, changes: Any) -> None:
    assert diff(before, after) == changes


def test_a_vector_of_other_numbers_is_set_as_a_whole() -> None:
    after = {"vector": [number + 0.5 for number in range(500)]}
    assert diff({"vector": [float(number) for number in range(500)]}, after) == (set_value("/vector", after["vector"]),)


def test_documents_deeper_than_a_path_are_told_apart() -> None:
    def deep(value: Any) -> dict[str, Any]:
        for _ in range(limits.NESTING_DEPTH_MAX - 1):
            value = {"a": value}
        return {"a": value}

    changes = diff(deep(1), deep(2))
    check_changes(changes)
    assert apply(deep(1), changes)[0] == deep(2)
