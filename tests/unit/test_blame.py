"""The event that made a path what it is: followed through lists."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from perdure.engine.blame import Tracker, concerns
from perdure.engine.changes import Change, append, delete, insert, merge, parse_path, set_value
from perdure.engine.fold import apply


def blamed(path: str, *changes: Change) -> int | None:
    """The number, from 1, of the change that made the path."""
    tracker = Tracker(parse_path(path))
    document: dict[str, Any] = {}
    for version, change in enumerate(changes, start=1):
        tracker.take(version, document, change)
        document, _warnings = apply(document, (change,))
    return tracker.version()


THREE = (append("/m", {"n": 1}), append("/m", {"n": 2}), append("/m", {"n": 3}))


@pytest.mark.parametrize(
    ("path", "changes", "made_by"),
    [
        ("/m/1", (*THREE, set_value("/other", 1)), 2),
        ("/m/1/n", THREE, 2),
        ("/m", THREE, 3),
        ("/m/1", (*THREE, set_value("/m/1/n", 9)), 4),
        ("/m/0", (*THREE, delete("/m/0")), 2),
        ("/m/2", (*THREE, delete("/m/0")), None),
        ("/m/0", (*THREE, insert("/m/0", "new")), 4),
        ("/m/3", (*THREE, insert("/m/0", "new")), 3),
        ("/m/3", (*THREE, insert("/m/99", "new")), 4),
        ("/m/3", (*THREE, set_value("/m/-", "new")), 4),
        ("/m/3/x", (*THREE, set_value("/m/-/x", "new")), 4),
        ("/m/2", (*THREE, delete("/m/7")), 3),
        ("/m/0/n", (*THREE, merge("/m/0", {"k": 1})), 1),
        ("/m/0/n", (*THREE, merge("/m/0", {"n": 1})), 4),
        ("/m/0", (*THREE, merge("", {"m": [1]})), 4),
        ("/m/0", (*THREE, set_value("/m/x", 1)), 4),
        ("/m/5", THREE, None),
        ("/a/0", (set_value("/a", {"0": "a map's member"}), append("/m", 1)), 1),
        ("/a/0/b", (merge("/a", {"0": {"b": 1}}), merge("/a", {"1": {"b": 1}})), 1),
    ],
)
def test_a_value_is_followed_to_the_change_that_made_it(path: str, changes: tuple[Change, ...], made_by: int | None) -> None:
    assert blamed(path, *changes) == made_by


@pytest.mark.parametrize("seed", range(40))
def test_the_origin_of_every_element_is_found_whatever_happens_to_the_list(seed: int) -> None:
    random = Random(seed)
    changes: list[Change] = []
    document: dict[str, Any] = {}
    for version in range(1, 60):
        length = len(document.get("m", []))
        at = random.randint(0, length + 1)
        made = [append("/m", version), insert(f"/m/{at}", version), set_value(f"/m/{at}", version), delete(f"/m/{at}")]
        changes.append(random.choice(made if length else made[:1]))
        document, _warnings = apply(document, changes[-1:])
    for place, version in enumerate(document.get("m", [])):
        assert blamed(f"/m/{place}", *changes) == version


def test_without_lists_a_merge_concerns_what_it_names() -> None:
    for path, expected in (("/a", True), ("/a/b", True), ("/a/c", False), ("/d", False), ("", True), ("/a/b/x", True)):
        assert concerns(merge("", {"a": {"b": 1}}), parse_path(path)) is expected
