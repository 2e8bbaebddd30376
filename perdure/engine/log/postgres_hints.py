"""Where agents have events: rows that say of an agent that it has some in a segment, so that readers leave the others out.

Invariants:

1. Of each agent's first event in a segment such a row is written, in the same statement. Segment 0 needs none: readers always look there for an
   agent that was made while it was the newest.
2. One is left out only where this process wrote it before, and that statement was committed. Written twice it does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from perdure import limits
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import SealedEvent

__all__ = ["SegmentHints"]

_NO_AGENTS: Final[set[int]] = set()


class SegmentHints:
    """The rows for one insert after another: `of` tells what goes with it, and `stand` that it is committed."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        # By partition: the newest segment that was written to, and the agents that are known to have events there.
        self._known: dict[int, tuple[int, set[int]]] = {}
        self._proposed: dict[tuple[int, int], SealedEvent] = {}

    def of(self, rows: Sequence[SealedEvent]) -> list[tuple[int, int, int]]:
        """(agent, segment, first version there) for an insert of these rows."""
        size, known = self._segments.size, self._known
        proposed: dict[tuple[int, int], SealedEvent] = {}
        for row in rows:
            if row.offset > size:
                segment = (row.offset - 1) // size
                newest, agents = known.get(row.partition, (0, _NO_AGENTS))
                if newest != segment or row.agent_key not in agents:
                    proposed.setdefault((row.agent_key, segment), row)
        self._proposed = proposed
        return [(agent, segment, row.version) for (agent, segment), row in proposed.items()]

    def stand(self) -> None:
        """What `of` told last is committed."""
        if not self._proposed:
            return
        for (agent, segment), row in self._proposed.items():
            newest, agents = self._known.get(row.partition, (0, _NO_AGENTS))
            if newest != segment:
                agents = set()
                self._known[row.partition] = segment, agents
            agents.add(agent)
        self._proposed = {}
        if sum(len(agents) for _, agents in self._known.values()) > limits.WRITER_HEADS_MAX:
            self._known.clear()
