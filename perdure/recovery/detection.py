"""When is a node lost? Pure: looks in, verdicts out.

A lease that has run out is a suspicion; only one that stays out for several looks in a row is a loss (hysteresis), so that a node which renews
late is not robbed of its agents for one late answer. Because the log fences, a wrong verdict costs a needless take-over and never data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from perdure.recovery.nodes import NodeState

__all__ = ["LOOKS_TO_LOSE", "Detector", "Verdict"]

LOOKS_TO_LOSE: Final = 3


class Verdict(NamedTuple):
    """What one look came to: node names. lost: newly lost. returned: were suspected or lost, and are alive."""

    suspected: tuple[str, ...]
    lost: tuple[str, ...]
    returned: tuple[str, ...]


class Detector:
    """Counts, per node, the looks in a row that found it without its lease."""

    def __init__(self, looks_to_lose: int = LOOKS_TO_LOSE) -> None:
        self._looks_to_lose = looks_to_lose
        self._missed: dict[str, int] = {}

    def look(self, states: Iterable[NodeState]) -> Verdict:
        """Take one look into account."""
        suspected, lost, returned = [], [], []
        seen = set()
        for node, alive in states:
            seen.add(node.name)
            missed = 0 if alive else self._missed.get(node.name, 0) + 1
            if alive and self._missed.pop(node.name, 0):
                returned.append(node.name)
            elif missed:
                self._missed[node.name] = missed
                if missed == self._looks_to_lose:
                    lost.append(node.name)
                elif missed < self._looks_to_lose:
                    suspected.append(node.name)
        for name in self._missed.keys() - seen:
            del self._missed[name]
        return Verdict(tuple(suspected), tuple(lost), tuple(returned))

    def lost(self) -> set[str]:
        """The nodes that count as lost now."""
        return {name for name, missed in self._missed.items() if missed >= self._looks_to_lose}
