"""What this process wrote last to a few agents, kept for whoever is about to take them over: it then need not be read from the log.

Invariants:

1. Only what is committed is in a trail.
2. A trail has no hole; it may begin later than it is asked for, and is then of no use.
3. Trails are few, and short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from perdure.engine.log.records import SealedEvent
from perdure.engine.remembering import forget_oldest

__all__ = ["Trails"]

AGENTS_MAX: Final = 128
EVENTS_MAX: Final = 64
"""Of one agent; its newest ones."""
EVENT_BYTES_MAX: Final = 4 * 1024
"""A longer event ends its agent's trail: whoever takes the agent over reads it as quickly from the log."""


class Trails:
    """One process's; agents are named by their keys in the log."""

    def __init__(self) -> None:
        self._trails: dict[int, deque[SealedEvent]] = {}

    def __bool__(self) -> bool:
        return bool(self._trails)

    def keep(self, agent_key: int) -> None:
        """From now on; where it is kept already nothing is lost."""
        trail = self._trails.pop(agent_key, None)
        self._trails[agent_key] = deque(maxlen=EVENTS_MAX) if trail is None else trail
        forget_oldest(self._trails, AGENTS_MAX)

    def drop(self, agent_key: int) -> None:
        """No more."""
        self._trails.pop(agent_key, None)

    def note(self, rows: Iterable[SealedEvent]) -> None:
        """These have just been committed, in order of version for each agent."""
        for row in rows:
            trail = self._trails.get(row.agent_key)
            if trail is None:
                continue
            if len(row.payload) > EVENT_BYTES_MAX or (trail and trail[-1].version + 1 != row.version):
                trail.clear()
            if len(row.payload) <= EVENT_BYTES_MAX:
                trail.append(row)

    def after(self, agent_key: int, version: int) -> Sequence[SealedEvent]:
        """What follows this version, as far as it is known here; nothing where there is a gap between."""
        found = [row for row in self._trails.get(agent_key, ()) if row.version > version]
        return found if found and found[0].version == version + 1 else ()
