"""The changes that lead from one document to another.

`apply(before, diff(before, after))` is `after`, to the last bit and without a warning. Maps are compared member by member; of lists the
common beginning and end are kept and what lies between is changed element by element, so that an appended message is one change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from perdure import limits
from perdure.engine.changes import Change, Path
from perdure.engine.digest import same

__all__ = ["diff"]

_MISSING: Final = object()
_LISTS: Final = (list, tuple)
_CONTAINERS: Final = (dict, list, tuple)
_WHOLE_LIST_CHANGES: Final = 8
"""A list of which more elements than this differ, and more than half, is set as a whole: a vector of numbers, for instance."""


def diff(before: Mapping[str, Any], after: Mapping[str, Any], *, changes_max: int = limits.CHANGES_PER_EVENT_MAX) -> tuple[Change, ...]:
    """The changes from one document to another, at most `changes_max`: where there would be more, whole members are set, or the root."""
    changes: list[Change] = []
    _maps((), before, after, changes)
    if len(changes) > changes_max:
        changes = [Change("delete", (key,)) for key in before if key not in after]
        changes += [Change("set", (key,), value) for key, value in after.items() if not same(before.get(key, _MISSING), value)]
    if len(changes) > changes_max:
        changes = [Change("set", (), dict(after))]
    return tuple(changes)


def _values(path: Path, before: Any, after: Any, changes: list[Change]) -> None:
    if same(before, after):
        return
    # Deeper than a path may reach, the whole value is set.
    if len(path) < limits.PATH_DEPTH_MAX:
        if isinstance(before, dict) and isinstance(after, dict):
            _maps(path, before, after, changes)
            return
        if _is_list(before) and _is_list(after) and _lists(path, before, after, changes):
            return
    changes.append(Change("set", path, after))


def _maps(path: Path, before: Mapping[str, Any], after: Mapping[str, Any], changes: list[Change]) -> None:
    changes.extend(Change("delete", (*path, key)) for key in before if key not in after)
    for key, value in after.items():
        if key in before:
            _values((*path, key), before[key], value, changes)
        else:
            changes.append(Change("set", (*path, key), value))


def _lists(path: Path, before: Any, after: Any, changes: list[Change]) -> bool:
    """Add the changes between two lists; False: the whole list should be set instead."""
    start, end = _common(before, after)
    kept = min(len(before), len(after)) - start - end
    differing = sum(1 for index in range(start, start + kept) if not same(before[index], after[index]))
    edits = differing + abs(len(before) - len(after))
    if not after or (edits > _WHOLE_LIST_CHANGES and edits * 2 > len(after)):
        scalars = not any(isinstance(item, _CONTAINERS) for item in before)
        if not after or scalars or start + end == 0:
            return False
    for index in range(start, start + kept):
        _values((*path, str(index)), before[index], after[index], changes)
    changes.extend(Change("delete", (*path, str(index))) for index in range(len(before) - end - 1, start + kept - 1, -1))
    for index in range(start + kept, len(after) - end):
        if end:
            changes.append(Change("insert", (*path, str(index)), after[index]))
        else:
            changes.append(Change("append", path, after[index]))
    return True


def _common(before: Any, after: Any) -> tuple[int, int]:
    """How many elements at the beginning and at the end are the same."""
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and same(before[start], after[start]):
        start += 1
    end = 0
    while end < shorter - start and same(before[-1 - end], after[-1 - end]):
        end += 1
    return start, end


def _is_list(value: Any) -> bool:
    return isinstance(value, _LISTS)
