"""Cells in the order of their names, streamed: neither the cells of a large state nor their names are ever held as a whole.

The order is that of `engine.cells.split`, sorted: all elements (members by the length of their name, then by name; list elements by index, map
elements by key), then all heads. Names are made only where somebody asks for them: neighbours of one member stand together in a run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from perdure.errors import IntegrityError

__all__ = ["HEADS", "LIST", "MAP", "CellWalk", "Group", "StateBuilder", "cell_name"]

LIST: Final = 0
MAP: Final = 1
HEADS: Final = 2
"""Kinds of runs, as they are stored."""
LIST_STEP: Final = 16
"""A list's elements are taken so many at a time, from an index that this divides."""
_INDEX_BYTES: Final = 4
_Names = list[tuple[bytes, str]]


class Group(NamedTuple):
    """Neighbouring cells of one member: the elements of a list from `start` on, an element of a map, or a head.

    member: whose elements they are, "" for heads. key: of a map's element or the head's member. values: the whole list, or the one value.
    """

    kind: int
    member: str
    start: int
    key: str
    values: Sequence[Any]


def cell_name(kind: int, member: str, start: int, key: str) -> bytes:
    """A cell's name, as in `engine.cells`."""
    if kind == HEADS:
        return b"h" + key.encode()
    return _prefix(member.encode()) + (start.to_bytes(_INDEX_BYTES, "big") if kind == LIST else key.encode())


class CellWalk:
    """Walks a document's cells, from the first or from a later one; the document must not change meanwhile."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._members = _sorted(document)
        containers = [(name, member) for name, member in self._members if isinstance(document[member], dict | list | tuple)]
        self._containers = sorted(containers, key=lambda each: (len(each[0]), each[0]))
        self._keys: dict[str, _Names] = {}

    def groups(self, start: bytes = b"") -> Iterator[Group]:
        """All cells whose names are not below `start`."""
        for name, member in self._containers:
            prefix = _prefix(name)
            if start[: len(prefix)] > prefix:
                continue
            value = self._document[member]
            suffix = start[len(prefix) :] if start.startswith(prefix) else b""
            if isinstance(value, dict):
                yield from self._map_groups(member, value, suffix)
            else:
                index = int.from_bytes(suffix, "big")
                if index < len(value):
                    yield Group(LIST, member, index, "", value)
        first = bisect_left(self._members, (start[1:], "")) if start[:1] == b"h" else 0
        for _, member in self._members[first:]:
            value = self._document[member]
            head: Any = {} if isinstance(value, dict) else [] if isinstance(value, list | tuple) else value
            yield Group(HEADS, "", 0, member, (head,))

    def inside_step(self, name: bytes) -> bool:
        """Whether a cell is an element of a list, and not the first one of those that are taken together."""
        end = 3 + int.from_bytes(name[1:3], "big")
        if name[:1] != b"e" or len(name) != end + _INDEX_BYTES or int.from_bytes(name[end:], "big") % LIST_STEP == 0:
            return False
        return isinstance(self._document.get(name[3:end].decode()), list | tuple)

    def _map_groups(self, member: str, value: dict[str, Any], suffix: bytes) -> Iterator[Group]:
        keys = self._keys.get(member)
        if keys is None:
            keys = self._keys[member] = _sorted(value)
        for _, key in keys[bisect_left(keys, (suffix, "")) :] if suffix else keys:
            yield Group(MAP, member, 0, key, (value[key],))


class _Elements:
    """The elements of one member until its head comes."""

    __slots__ = ("as_list", "as_map")

    def __init__(self) -> None:
        self.as_list: list[Any] = []
        self.as_map: dict[str, Any] = {}


class StateBuilder:
    """Puts a document together from its runs in their order."""

    def __init__(self) -> None:
        self._elements: dict[str, _Elements] = {}
        self._document: dict[str, Any] = {}

    def add(self, runs: Sequence[Sequence[Any]]) -> int:
        """Take over further runs, as `chunks.decode_runs` gives them; how many cells they have. Raises IntegrityError."""
        cells = 0
        for run in runs:
            if run[0] == HEADS:
                for member, value in run[1].items():
                    self._document[member] = self._with_elements(member, value)
                cells += len(run[1])
                continue
            elements = self._elements.get(run[1])
            if elements is None:
                elements = self._elements[run[1]] = _Elements()
            if run[0] == LIST:
                if run[2] != len(elements.as_list):
                    raise IntegrityError("a list lacks a cell, or has one too many", member=run[1], index=len(elements.as_list))
                elements.as_list.extend(run[3])
            else:
                elements.as_map.update(run[2])
            cells += len(run[-1])
        return cells

    def document(self) -> dict[str, Any]:
        """The whole document. Raises IntegrityError when elements are left whose member is not there."""
        if self._elements:
            raise IntegrityError("cells belong to no member of the document", member=next(iter(self._elements)))
        return self._document

    def _with_elements(self, member: str, value: Any) -> Any:
        elements = self._elements.pop(member, None)
        if elements is None:
            return value
        if value == [] and not elements.as_map:
            return elements.as_list
        if value == {} and not elements.as_list:
            return elements.as_map
        raise IntegrityError("a member has elements of another kind than itself", member=member)


def _sorted(mapping: Mapping[str, Any]) -> _Names:
    """Keys with their UTF-8 bytes, by these."""
    return sorted((key.encode(), key) for key in mapping)


def _prefix(member: bytes) -> bytes:
    return b"e" + len(member).to_bytes(2, "big") + member
