"""Changes from the two standard ways to write an update: RFC 7396 (merge patch) and RFC 6902 (JSON patch).

A JSON patch is strict: it is checked, operation by operation, against the document it was written for. What comes out are plain changes,
which hold on every document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from perdure import limits
from perdure.engine.changes import Change, Path, parse_path
from perdure.engine.fold import END, MISSING, Fresh, fold_into, is_index, lookup
from perdure.engine.values import LISTS, MAPS, check_value
from perdure.errors import InvalidInput, InvalidPatch, LimitExceeded

__all__ = ["from_json_patch", "from_merge_patch"]

_OPERATIONS: Final = frozenset({"add", "remove", "replace", "move", "copy", "test"})


def from_merge_patch(patch: Mapping[str, Any]) -> tuple[Change, ...]:
    """The changes of an RFC 7396 merge patch of the whole document; none for an empty patch.

    Raises InvalidPatch (not a map), InvalidEvent, LimitExceeded.
    """
    if type(patch) not in MAPS:
        raise InvalidPatch(f"a merge patch of a state is a map, not a {type(patch).__qualname__}")
    check_value(patch, "the merge patch")
    return (Change("merge", (), patch),) if patch else ()


def from_json_patch(document: Mapping[str, Any], operations: Sequence[Mapping[str, Any]]) -> tuple[Change, ...]:
    """The changes of an RFC 6902 JSON patch, which must apply to the document.

    Raises InvalidPatch with the index of the operation as `details["operation"]`, LimitExceeded, InvalidEvent (a value).
    """
    if type(operations) not in LISTS:
        raise InvalidPatch(f"a JSON patch is a list of operations, not a {type(operations).__qualname__}")
    if len(operations) > limits.CHANGES_PER_EVENT_MAX:
        raise LimitExceeded(f"a JSON patch of {len(operations)} operations, the limit is {limits.CHANGES_PER_EVENT_MAX}")
    patch = _Patch(dict(document))
    for index, operation in enumerate(operations):
        patch.index = index
        patch.run(operation)
    if len(patch.changes) > limits.CHANGES_PER_EVENT_MAX:
        raise LimitExceeded(f"a JSON patch of {len(patch.changes)} changes, the limit is {limits.CHANGES_PER_EVENT_MAX}")
    return tuple(patch.changes)


class _Patch:
    """A document under a patch. It is folded change by change, and only containers that this patch copied itself are mutated."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.fresh: Fresh = {id(document): document}
        self.changes: list[Change] = []
        self.index = 0

    def run(self, operation: Any) -> None:
        if type(operation) not in MAPS:
            self.fail(f"is a {type(operation).__qualname__}, not a map")
        name = operation.get("op")
        if type(name) is not str or name not in _OPERATIONS:
            self.fail(f"has the op {name!r:.40}", hint="one of " + ", ".join(sorted(_OPERATIONS)))
        path = self.pointer(operation, "path")
        match name:
            case "add":
                self.add(path, self.value(operation))
            case "remove":
                self.remove(path)
            case "replace":
                self.read(path)
                self.put(Change("set", path, self.value(operation)))
            case "copy":
                self.add(path, self.frozen(self.read(self.pointer(operation, "from"))))
            case "move":
                self.move(self.pointer(operation, "from"), path)
            case _:
                expected = self.value(operation)
                check_value(expected, f"the value of operation {self.index}")
                if not _equal(self.read(path), expected):
                    self.fail("tests for a value that is not there")

    def add(self, path: Path, value: Any) -> None:
        if not path:
            self.put(Change("set", path, value))
            return
        container = self.read(path[:-1])
        token = path[-1]
        if isinstance(container, dict):
            self.put(Change("set", path, value))
        elif not isinstance(container, list | tuple):
            self.fail("adds to what is neither a map nor a list")
        elif token == END or token == str(len(container)):
            self.put(Change("append", path[:-1], value))
        elif is_index(token) and int(token) < len(container):
            self.put(Change("insert", path, value))
        else:
            self.fail(f"adds at {token!r:.40} of a list of {len(container)}")

    def remove(self, path: Path) -> None:
        if not path:
            self.fail("removes the whole document", hint="replace it by {} to empty it")
        self.read(path)
        self.put(Change("delete", path))

    def move(self, source: Path, path: Path) -> None:
        value = self.frozen(self.read(source))
        if source == path:
            return
        if path[: len(source)] == source:
            self.fail("moves a value into itself")
        self.remove(source)
        self.add(path, value)

    def put(self, change: Change) -> None:
        if not change.path and not isinstance(change.value, dict):
            self.fail("would make the document something else than a map")
        if change.op != "delete":
            check_value(change.value, f"the value of operation {self.index}", depth=len(change.path))
        self.changes.append(change)
        self.document = fold_into(self.document, (change,), self.fresh, [])

    def read(self, path: Path) -> Any:
        value = lookup(self.document, path)
        if value is MISSING:
            self.fail("names a place where nothing is")
        return value

    def frozen(self, value: Any) -> Any:
        """A value that will stand in a change must not be mutated by the operations that follow, so it is no longer ours to mutate.

        What is fresh stands in fresh containers only, so the walk ends at the first that is not.
        """
        stack = [value]
        while stack:
            item = stack.pop()
            if self.fresh.pop(id(item), None) is not None:
                stack.extend(item.values() if type(item) is dict else item)
        return value

    def pointer(self, operation: dict[str, Any], member: str) -> Path:
        pointer = operation.get(member)
        if type(pointer) is not str:
            self.fail(f"has no {member!r}")
        try:
            return parse_path(pointer)
        except InvalidInput as error:
            self.fail(f"has a bad {member!r}: {error.message}", cause=error)

    def value(self, operation: dict[str, Any]) -> Any:
        if "value" not in operation:
            self.fail("has no 'value'")
        return operation["value"]

    def fail(self, reason: str, *, hint: str = "", cause: Exception | None = None) -> NoReturn:
        raise InvalidPatch(f"operation {self.index} of the patch {reason}", hint=hint, operation=self.index) from cause


def _equal(one: Any, other: Any) -> bool:
    """Equality by RFC 6902, 4.6: numbers by their value, everything else by kind and content."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_equal(*pair) for pair in zip(one, other, strict=True))
    if type(one) is bool or type(other) is bool:
        return one is other
    return bool(one == other)
