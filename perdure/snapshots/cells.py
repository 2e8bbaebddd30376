"""Cells in the order of their names, streamed: neither the cells of a large state nor their names are ever held as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from perdure.errors import IntegrityError

__all__ = ["StateBuilder", "ordered_cells"]

_INDEX_BYTES: Final = 4


def ordered_cells(document: Mapping[str, Any]) -> Iterator[tuple[bytes, Any]]:
    """The cells of `engine.cells.split`, sorted by name: all elements (members by the length of their name, then by name), then all heads."""
    members = _encoded(document)
    containers = [(name, value) for name, value in members if type(value) in (dict, list, tuple)]
    for name, value in sorted(containers, key=lambda each: (len(each[0]), each[0])):
        prefix = b"e" + len(name).to_bytes(2, "big") + name
        if type(value) is dict:
            for key, element in _encoded(value):
                yield prefix + key, element
        else:
            for index, element in enumerate(value):
                yield prefix + index.to_bytes(_INDEX_BYTES, "big"), element
    for name, value in members:
        kind = type(value)
        yield b"h" + name, {} if kind is dict else [] if kind in (list, tuple) else value


def _encoded(mapping: Mapping[str, Any]) -> list[tuple[bytes, Any]]:
    return sorted(((key.encode(), value) for key, value in mapping.items()), key=lambda each: each[0])


class _Elements:
    """The elements of one member until its head comes: what stands after the member's name in theirs, and their values."""

    __slots__ = ("suffixes", "values")

    def __init__(self) -> None:
        self.suffixes: list[bytes] = []
        self.values: list[Any] = []

    def as_list(self) -> list[Any]:
        """The values; their suffixes must count 0, 1, 2 …"""
        for index, suffix in enumerate(self.suffixes):
            if suffix != index.to_bytes(_INDEX_BYTES, "big"):
                raise IntegrityError("a list lacks a cell, or has one too many", index=index)
        return self.values

    def as_map(self) -> dict[str, Any]:
        """The values by their suffixes."""
        return {suffix.decode(): value for suffix, value in zip(self.suffixes, self.values, strict=True)}


class StateBuilder:
    """Puts a document together from its cells in the order of their names."""

    def __init__(self) -> None:
        self._elements: dict[bytes, _Elements] = {}
        self._document: dict[str, Any] = {}

    def add(self, names: Iterable[bytes], values: Iterable[Any]) -> None:
        """Take over further cells. Raises IntegrityError for one that belongs nowhere."""
        for name, value in zip(names, values, strict=True):
            if name[:1] == b"e":
                end = 3 + int.from_bytes(name[1:3], "big")
                member = name[3:end]
                elements = self._elements.get(member)
                if elements is None:
                    elements = self._elements[member] = _Elements()
                elements.suffixes.append(name[end:])
                elements.values.append(value)
            elif name[:1] == b"h":
                self._document[name[1:].decode()] = self._with_elements(name[1:], value)
            else:
                raise IntegrityError("a cell has a name that none can have", cell=name.hex())

    def document(self) -> dict[str, Any]:
        """The whole document. Raises IntegrityError when elements are left whose member is not there."""
        if self._elements:
            raise IntegrityError("cells belong to no member of the document", member=next(iter(self._elements)).hex())
        return self._document

    def _with_elements(self, member: bytes, value: Any) -> Any:
        elements = self._elements.pop(member, None)
        if type(value) is list and not value:
            return elements.as_list() if elements else value
        if type(value) is dict and not value:
            return elements.as_map() if elements else value
        if elements or type(value) in (list, dict):
            raise IntegrityError("a member has elements and a value", member=member.hex())
        return value
