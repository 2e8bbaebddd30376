"""A document cut into cells, so that one appended message costs one cell and not one document.

Every member of the document has a head cell; every element of a member that is a list or a map has a cell of its own.

==============================================================  ===========================================================
name                                                            value
==============================================================  ===========================================================
`h` + member name (UTF-8)                                       the member itself; `[]` or `{}` where elements follow
`e` + length of the member name (2 bytes, big endian) + member  the element
name + (list) index, 4 bytes, big endian, or (map) its name
==============================================================  ===========================================================

Names are unambiguous whatever keys hold, and a list's elements sort by index. Which cells an event touches follows from its changes, from
the shape of the members that they name as it was before (`shape`, taken before the fold: the fold may be in place), and from the document
after::

    before = shape(document, changes)
    document, warnings = apply(document, changes, own=True)
    put, remove = touched(changes, before, document)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from perdure.engine.changes import Change
from perdure.engine.fold import is_index
from perdure.engine.readonly import ReadOnlyList, ReadOnlyMap
from perdure.errors import IntegrityError

__all__ = ["Shape", "count", "join", "shape", "split", "touched"]

_INDEX_BYTES: Final = 4
_KINDS: Final[dict[type[Any], str]] = {dict: "map", list: "list", tuple: "list", ReadOnlyMap: "map", ReadOnlyList: "list"}


class _Member(NamedTuple):
    """A top-level member as it was: kind (map, list, scalar or missing), a list's length, and a map's keys where they may be needed."""

    kind: str
    length: int
    keys: tuple[str, ...]


class _Touch:
    """What the changes do to one member: `whole` (anything may have happened), or single keys, and for lists the lowest index that moved."""

    __slots__ = ("keys", "moved_from", "whole")

    def __init__(self) -> None:
        self.whole = False
        self.keys: set[str] = set()
        self.moved_from: int | None = None


class Shape(NamedTuple):
    """What `touched` must know of the document before: the members that the changes name, or (a change at the root) all cell names."""

    members: dict[str, _Member]
    names: frozenset[bytes] | None


def split(document: Mapping[str, Any]) -> dict[bytes, Any]:
    """The cells of a document by name. The values are the document's own, not copies."""
    cells: dict[bytes, Any] = {}
    for member, value in document.items():
        _split_member(member, value, cells)
    return cells


def join(cells: Mapping[bytes, Any]) -> dict[str, Any]:
    """The document of the cells, in any order. Raises IntegrityError where cells are missing or too many."""
    document: dict[str, Any] = {}
    elements = []
    for name in sorted(cells):
        if name[:1] == b"h":
            value = cells[name]
            document[name[1:].decode()] = {"list": list, "map": dict}[_kind(value)]() if type(value) in _KINDS else value
        else:
            elements.append(name)
    for name in elements:
        _join_element(document, name, cells[name])
    return document


def count(document: Mapping[str, Any]) -> int:
    """How many cells a document has; it costs no more than its number of top-level members."""
    return len(document) + sum(len(value) for value in document.values() if type(value) in _KINDS)


def shape(document: Mapping[str, Any], changes: Sequence[Change]) -> Shape:
    """What `touched` must know of the document before the changes."""
    touches = _touches(changes)
    if touches is None:
        return Shape({}, frozenset(split(document)))
    members: dict[str, _Member] = {}
    for member, touch in touches.items():
        value = document.get(member, members)
        kind = "missing" if value is members else _kind(value)
        length = len(value) if kind == "list" else 0
        members[member] = _Member(kind, length, tuple(value) if kind == "map" and touch.whole else ())
    return Shape(members, None)


def touched(changes: Sequence[Change], before: Shape, after: Mapping[str, Any]) -> tuple[dict[bytes, Any], set[bytes]]:
    """The cells to put, and the names to remove (some may not be there), that lead from the cells before to those of the document after."""
    put: dict[bytes, Any] = {}
    remove: set[bytes] = set()
    touches = _touches(changes)
    if touches is None:
        put = split(after)
        return put, set(before.names or ()) - put.keys()
    for member, touch in touches.items():
        was = before.members[member]
        kind = _kind(after[member]) if member in after else "missing"
        if touch.whole or kind != was.kind:
            if member in after:
                _split_member(member, after[member], put)
            remove.update(name for name in _names(member, was) if name not in put)
        elif kind == "list":
            _touch_list(member, touch, was.length, after[member], put, remove)
        elif kind == "map":
            _touch_map(member, touch, after[member], put, remove)
    return put, remove


def _touches(changes: Iterable[Change]) -> dict[str, _Touch] | None:
    """What the changes do to each member, by the rules of the fold; None: a change replaces the whole document."""
    touches: dict[str, _Touch] = {}
    for change in changes:
        path, operation, value = change.path, change.op, change.value
        if path:
            _touch(touches.setdefault(path[0], _Touch()), change)
        elif operation == "merge" and isinstance(value, dict):
            for member, patch in value.items():
                _touch_merge(touches.setdefault(member, _Touch()), patch)
        elif operation == "delete" or (operation == "set" and isinstance(value, dict)):
            return None
    return touches


def _touch(touch: _Touch, change: Change) -> None:
    path, operation = change.path, change.op
    if len(path) == 1:
        if operation == "merge":
            _touch_merge(touch, change.value)
        elif operation != "append":  # an append makes a list grow, makes one of what is none, or is ignored
            touch.whole = True
        return
    token = path[1]
    touch.keys.add(token)
    if len(path) == 2 and operation in ("insert", "delete") and is_index(token):
        index = int(token)
        touch.moved_from = index if touch.moved_from is None else min(index, touch.moved_from)


def _touch_merge(touch: _Touch, patch: Any) -> None:
    if isinstance(patch, dict):
        touch.keys.update(patch)
    else:
        touch.whole = True


def _touch_list(member: str, touch: _Touch, length_before: int, after: Sequence[Any], put: dict[bytes, Any], remove: set[bytes]) -> None:
    prefix = _prefix(member)
    length = len(after)
    # From where elements moved, and from the old end on, everything is new; before that only the indices that were named.
    start = length_before if touch.moved_from is None else min(length_before, touch.moved_from)
    for index in range(start, length):
        put[prefix + index.to_bytes(_INDEX_BYTES, "big")] = after[index]
    for token in touch.keys:
        if is_index(token) and int(token) < length:
            put[prefix + int(token).to_bytes(_INDEX_BYTES, "big")] = after[int(token)]
    remove.update(prefix + index.to_bytes(_INDEX_BYTES, "big") for index in range(length, length_before))


def _touch_map(member: str, touch: _Touch, after: Mapping[str, Any], put: dict[bytes, Any], remove: set[bytes]) -> None:
    prefix = _prefix(member)
    for key in touch.keys:
        name = prefix + key.encode()
        if key in after:
            put[name] = after[key]
        else:
            remove.add(name)


def _split_member(member: str, value: Any, cells: dict[bytes, Any]) -> None:
    kind = _kind(value)
    head = b"h" + member.encode()
    if kind == "list":
        cells[head] = []
        prefix = _prefix(member)
        for index, element in enumerate(value):
            cells[prefix + index.to_bytes(_INDEX_BYTES, "big")] = element
    elif kind == "map":
        cells[head] = {}
        prefix = _prefix(member)
        for key, element in value.items():
            cells[prefix + key.encode()] = element
    else:
        cells[head] = value


def _join_element(document: dict[str, Any], name: bytes, value: Any) -> None:
    end = 3 + int.from_bytes(name[1:3], "big")
    container: Any = document.get(name[3:end].decode())
    if name[:1] != b"e" or len(name) < end or type(container) not in _KINDS:
        raise IntegrityError("a cell belongs to no member of the document", cell=name.hex())
    if type(container) is dict:
        container[name[end:].decode()] = value
        return
    if name[end:] != len(container).to_bytes(_INDEX_BYTES, "big"):
        raise IntegrityError("a list lacks a cell, or has one too many", cell=name.hex())
    container.append(value)


def _names(member: str, was: _Member) -> Iterable[bytes]:
    if was.kind != "missing":
        yield b"h" + member.encode()
    prefix = _prefix(member)
    for index in range(was.length):
        yield prefix + index.to_bytes(_INDEX_BYTES, "big")
    for key in was.keys:
        yield prefix + key.encode()


def _prefix(member: str) -> bytes:
    name = member.encode()
    return b"e" + len(name).to_bytes(2, "big") + name


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "scalar")
