"""The cells of a snapshot, as the checker sees them: in order, without a gap, each where it belongs."""

from __future__ import annotations

from typing import Any

__all__ = ["StateCheck"]


class StateCheck:
    """Takes chunk after chunk."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}
        self._elements: dict[str, Any] = {}
        self._before = b""
        self.gap = False
        """A chunk is missing: what does not join is no news any more."""

    def take(self, runs: Any, *, cells: int, first: bytes) -> None:
        """The next chunk's runs. Raises ValueError for what must not be."""
        if type(runs) is not list or not runs:
            raise ValueError("a chunk is a list of runs, and holds one at least")
        count, place = 0, None
        for run in runs:
            names = self._names(run)
            if place == (run[0], run[1] if run[0] < 2 else ""):
                raise ValueError("neighbours of one member are in two runs")
            place = (run[0], run[1] if run[0] < 2 else "")
            if not count and names[0] != first:
                raise ValueError("it begins with another cell than its manifest lists")
            for name in names:
                if name <= self._before:
                    raise ValueError(f"cell {name.hex()} is not in order")
                self._before = name
            count += len(names)
        if count != cells:
            raise ValueError(f"it holds {count} cells, its manifest lists {cells}")

    def end(self) -> list[str]:
        """What is wrong with the state as a whole."""
        return [f"elements of {member!r} have no member" for member in self._elements]

    def _names(self, run: Any) -> list[bytes]:
        kinds = tuple(map(type, run)) if type(run) is list else ()
        if kinds == (int, str, int, list) and run[0] == 0 and run[3]:
            elements = self._elements.setdefault(run[1], [])
            if not self.gap and (type(elements) is not list or run[2] != len(elements)):
                raise ValueError(f"the list {run[1]!r} goes on at {run[2]}")
            if type(elements) is list:
                elements += run[3]
            return [_prefix(run[1]) + index.to_bytes(4, "big") for index in range(run[2], run[2] + len(run[3]))]
        if kinds == (int, str, dict) and run[0] == 1 and run[2]:
            elements = self._elements.setdefault(run[1], {})
            if type(elements) is not dict and not self.gap:
                raise ValueError(f"the list {run[1]!r} has keys")
            if type(elements) is dict:
                elements.update(run[2])
            return [_prefix(run[1]) + key.encode() for key in run[2]]
        if kinds == (int, dict) and run[0] == 2 and run[1]:
            for member, value in run[1].items():
                self._head(member, value)
            return [b"h" + member.encode() for member in run[1]]
        raise ValueError("a run is empty, or of a kind that is unknown")

    def _head(self, member: str, value: Any) -> None:
        elements = self._elements.pop(member, None)
        if type(value) in (list, dict) and value:
            raise ValueError(f"the head of {member!r} holds elements")
        if elements is not None and type(elements) is not type(value):
            raise ValueError(f"{member!r} has elements of another kind than itself")
        self.document[member] = value if elements is None else elements


def _prefix(member: str) -> bytes:
    name = member.encode()
    return b"e" + len(name).to_bytes(2, "big") + name
