"""What recovery did, as events: the story of every lost node and every recovered agent, readable as any agent's history is."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from perdure.engine.changes import delete, set_value
from perdure.engine.event import Event
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, EventFilter, rfc3339
from perdure.errors import AgentNotFound
from perdure.projections.reader import StateReader

__all__ = ["JOURNAL", "SYSTEM_TENANT", "Entry", "Journal"]

SYSTEM_TENANT: Final = "perdure"
JOURNAL: Final = AgentName(SYSTEM_TENANT, "recovery")
"""The agent whose events are the journal; its state holds the recoveries that are under way."""


class Entry(msgspec.Struct, frozen=True):
    """One thing that happened. time: RFC 3339 in UTC, of the log. data: what the kind of entry tells."""

    version: int
    time: str
    type: str
    recovery: str
    data: dict[str, Any]


class Journal:
    """Writes and reads entries."""

    def __init__(self, log: EventLog, reader: StateReader) -> None:
        self._log = log
        self._reader = reader

    async def begun(self, recovery: str, data: dict[str, Any]) -> None:
        """A recovery begins."""
        await self._write("recovery_started", recovery, data, open_value={**data, "state": "started"})

    async def went_on(self, recovery: str, what: str, data: dict[str, Any]) -> None:
        """Something happened on the way: `recovery_<what>`."""
        await self._write(f"recovery_{what}", recovery, data)

    async def ended(self, recovery: str, how: str, data: dict[str, Any]) -> None:
        """It is over: `recovery_completed`, `recovery_failed`, `recovery_void`."""
        event = Event(f"recovery_{how}", changes=(delete(f"/open/{recovery}"),), data=data, correlation_id=recovery)
        await self._log.append_event(JOURNAL, event)

    async def open(self) -> dict[str, dict[str, Any]]:
        """The recoveries that were begun and have not ended, by id, with what was told of them at the beginning."""
        try:
            found: dict[str, dict[str, Any]] = (await self._reader.state(*JOURNAL)).document.get("open", {})
        except AgentNotFound:
            return {}
        return found

    async def entries(self, *, limit: int = 100, recovery: str | None = None) -> list[Entry]:
        """The newest entries, newest first."""
        try:
            events = await self._log.get_events(JOURNAL, EventFilter(correlation_id=recovery), limit=limit, descending=True)
        except AgentNotFound:
            return []
        return [Entry(event.version, rfc3339(event.time), event.type, event.correlation_id or "", event.data or {}) for event in events]

    async def _write(self, type: str, recovery: str, data: dict[str, Any], *, open_value: Any = None) -> None:
        changes = () if open_value is None else (set_value(f"/open/{recovery}", open_value),)
        await self._log.append_event(JOURNAL, Event(type, changes=changes, data=data, correlation_id=recovery))
