"""Events of many agents at once in SQLite; it blocks."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from perdure.engine.log import sqlite_events
from perdure.engine.log.records import AgentRecord, EventFilter, SealedEvent
from perdure.errors import Compacted

__all__ = ["read_many"]


def read_many(connection: sqlite3.Connection, wanted: Sequence[tuple[AgentRecord, int, int]]) -> list[list[SealedEvent]]:
    """Of each agent its events from one version to another; none where some of them were removed."""
    return [_read(connection, record, first, last) for record, first, last in wanted]


def _read(connection: sqlite3.Connection, record: AgentRecord, first: int, last: int) -> list[SealedEvent]:
    where = EventFilter(from_version=first, to_version=last)
    try:
        return sqlite_events.read_agent(connection, record, where, max(0, last - first + 1), False)
    except Compacted:
        return []  # who needs them is told by `read_agent`
