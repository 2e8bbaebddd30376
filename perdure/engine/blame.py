"""Which event made a path of a state what it is. Pure.

A value that stands in a list moves when others are inserted before it or taken away; its origin is followed, as `git blame` follows a line. So
the history is read forwards once, to see how long each list was, and judged backwards.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from perdure.engine.changes import Change, Path
from perdure.engine.fold import END, MISSING, is_index, lookup

__all__ = ["Tracker", "concerns", "through_lists"]


class _Step(NamedTuple):
    """A change that may concern the path. length: of the list that its last token stands in (append: its path), None where that is no list."""

    version: int
    change: Change
    length: int | None


def through_lists(path: Path) -> bool:
    """Whether a path may lead through a list."""
    return any(is_index(token) for token in path)


def concerns(change: Change, wanted: Path) -> bool:
    """Whether a change touches what is at a path that leads through no list, above it or below it."""
    path = change.path
    if change.op == "merge" and len(path) < len(wanted) and wanted[: len(path)] == path:
        return _merged(change.value, wanted[len(path) :])
    shorter = min(len(path), len(wanted))
    return path[:shorter] == wanted[:shorter]


class Tracker:
    """Takes all changes of an agent in order, and says which version made the path."""

    def __init__(self, wanted: Path) -> None:
        self._wanted = wanted
        first = next((depth for depth, token in enumerate(wanted) if is_index(token)), len(wanted))
        self._fixed = wanted[:first]
        self._steps: list[_Step] = []

    def take(self, version: int, document: dict[str, Any], change: Change) -> None:
        """A change, and the document that it is about to change."""
        shorter = min(len(change.path), len(self._fixed))
        if change.path[:shorter] == self._fixed[:shorter]:
            path = _resolved(document, change.path)
            target = lookup(document, path if change.op == "append" else path[:-1])
            # An append or an insert where nothing is makes a list.
            made = (target is MISSING or target is None) and change.op in ("append", "insert")
            length = len(target) if isinstance(target, list | tuple) else 0 if made else None
            self._steps.append(_Step(version, Change(change.op, path, change.value), length))

    def version(self) -> int | None:
        """The version that made the path what it is; None: none has touched it."""
        wanted: Path | None = self._wanted
        for step in reversed(self._steps):
            assert wanted is not None
            before = _before(step, wanted)
            if before is None:
                return step.version
            wanted = before
        return None


def _resolved(document: Any, path: Path) -> Path:
    """The path with the indices that the fold takes for places at or beyond a list's end, except the last: that one the operation decides."""
    tokens = list(path)
    for depth, token in enumerate(path[:-1]):
        if isinstance(document, list | tuple) and (token == END or (is_index(token) and int(token) > len(document))):
            tokens[depth] = str(len(document))
        document = lookup(document, (tokens[depth],))
    return tuple(tokens)


def _before(step: _Step, wanted: Path) -> Path | None:
    """Where what is at the path stood before the change; None: the change made it what it is."""
    change, length = step.change, step.length
    path = change.path if change.op == "append" else change.path[:-1]
    if length is None or len(wanted) <= len(path) or wanted[: len(path)] != path or not is_index(wanted[len(path)]):
        return None if concerns(change, wanted) else wanted
    here, rest = int(wanted[len(path)]), wanted[len(path) + 1 :]
    token = END if change.op == "append" else change.path[-1]
    if token != END and not is_index(token):
        return None  # the list was replaced by a map
    at = length if token == END else min(int(token), length)
    if change.op == "delete":
        beyond = token == END or int(token) >= length
        return wanted if beyond or here < at else (*path, str(here + 1), *rest)
    if change.op == "insert" and here > at:
        return (*path, str(here - 1), *rest)
    if here != at:
        return wanted
    return None if change.op != "merge" or _merged(change.value, rest) else wanted


def _merged(patch: Any, rest: Path) -> bool:
    """Whether a merge patch says anything about a path below it."""
    for token in rest:
        if not isinstance(patch, dict):
            return True
        if token not in patch:
            return False
        patch = patch[token]
    return True
