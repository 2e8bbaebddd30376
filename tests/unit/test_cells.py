"""Cells: reversible, and an event touches its own only."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings

from perdure.engine.cells import count, join, shape, split, touched
from perdure.engine.changes import Change, append, delete, insert, merge, set_value
from perdure.engine.digest import canonical
from perdure.engine.fold import apply
from perdure.errors import IntegrityError

from .strategies import CHANGES, DOCUMENTS


@given(DOCUMENTS)
@settings(max_examples=300, deadline=None)
def test_splitting_and_joining_gives_the_document_back(document: dict[str, Any]) -> None:
    cells = split(document)
    assert canonical(join(cells)) == canonical(document)
    assert canonical(join(dict(reversed(cells.items())))) == canonical(document)
    assert count(document) == len(cells)


@given(DOCUMENTS, CHANGES)
@settings(max_examples=400, deadline=None)
def test_the_touched_cells_lead_from_the_cells_before_to_those_after(document: dict[str, Any], changes: tuple[Change, ...]) -> None:
    cells = {name: canonical(value) for name, value in split(document).items()}
    before = shape(document, changes)
    after, _ = apply(copy.deepcopy(document), copy.deepcopy(changes), own=True)
    put, remove = touched(changes, before, after)
    assert not remove & put.keys()
    for name in remove:
        cells.pop(name, None)
    cells.update({name: canonical(value) for name, value in put.items()})
    assert cells == {name: canonical(value) for name, value in split(after).items()}


@pytest.mark.parametrize(
    ("change", "puts", "removes"),
    [
        (append("/messages", 1), 1, 0),
        (set_value("/messages/17", 1), 1, 0),
        (set_value("/messages/17/deep", 1), 1, 0),
        (delete("/messages/4999"), 0, 1),
        (delete("/messages/4990"), 9, 1),
        (insert("/messages/4998", 1), 3, 0),
        (set_value("/tools/t7/x", 1), 1, 0),
        (delete("/tools/t7"), 0, 1),
        (merge("", {"tools": {"t7": None, "t8": 1}, "status": "busy"}), 2, 1),
        (set_value("/status", "busy"), 1, 0),
        (set_value("/messages", []), 1, 5000),
        (delete("/tools"), 0, 5001),
        (delete("/missing"), 0, 0),
    ],
)
def test_a_change_costs_its_own_cells(change: Change, puts: int, removes: int) -> None:
    document: dict[str, Any] = {"messages": [{} for _ in range(5000)], "tools": {f"t{n}": {} for n in range(5000)}, "status": "idle"}
    before = shape(document, [change])
    after, _ = apply(document, [change])
    put, remove = touched([change], before, after)
    assert (len(put), len(remove)) == (puts, removes)


def test_a_lists_cells_sort_by_index() -> None:
    elements = [name for name in sorted(split({"list": list(range(1000))})) if name.startswith(b"e")]
    assert [split({"list": list(range(1000))})[name] for name in elements] == list(range(1000))


def test_names_do_not_run_together() -> None:
    document = {"a": {"bc": 1}, "ab": {"c": 2}, "": {"": {}, "\0": []}, "\0": [0], "h": 1, "e": {}}
    assert len(split(document)) == count(document)
    assert join(split(document)) == document


@pytest.mark.parametrize("lost", range(3))
def test_a_lost_cell_is_noticed(lost: int) -> None:
    cells = split({"list": [1, 2, 3]})
    del cells[sorted(name for name in cells if (name[:1] == b"e" and not name.endswith(b"\2")) or name[:1] == b"h")[lost]]
    with pytest.raises(IntegrityError):
        join(cells)


def test_a_cell_of_nobody_is_noticed() -> None:
    with pytest.raises(IntegrityError):
        join({b"x": 1})
