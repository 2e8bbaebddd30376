"""The audit trail: who did what to the log and its copies, with which arguments, and what came of it, as events of an agent."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from perdure.engine.changes import Change, delete, set_value
from perdure.engine.event import Event
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, EventFilter, rfc3339
from perdure.errors import AgentNotFound
from perdure.projections.reader import StateReader
from perdure.recovery.journal import SYSTEM_TENANT

__all__ = ["AUDIT", "AuditEntry", "AuditTrail"]

AUDIT: Final = AgentName(SYSTEM_TENANT, "audit")
"""The agent whose events are the trail; its state holds the operations that are under way."""


class AuditEntry(msgspec.Struct, frozen=True):
    """One thing that happened. id: of the operation or approval that it belongs to; time: RFC 3339 in UTC, of the log; data: what this kind of entry
    tells, `actor` always."""

    version: int
    time: str
    type: str
    id: str
    data: dict[str, Any]


class AuditTrail:
    """Writes and reads entries; an operation that began and has no end was cut off, and is listed by `open`."""

    def __init__(self, log: EventLog, reader: StateReader) -> None:
        self._log = log
        self._reader = reader

    async def started(self, id: str, data: dict[str, Any]) -> None:
        """An operation begins."""
        await self._write("operation_started", id, data, set_value(f"/open/{id}", data))

    async def ended(self, id: str, how: str, data: dict[str, Any]) -> None:
        """It is over: completed or failed."""
        await self._write(f"operation_{how}", id, data, delete(f"/open/{id}"))

    async def tell(self, type: str, id: str, data: dict[str, Any]) -> None:
        """Something that is over at once."""
        await self._write(type, id, data)

    async def open(self) -> dict[str, dict[str, Any]]:
        """Operations that began and have not ended, by id, with what was told of them then."""
        try:
            found: dict[str, dict[str, Any]] = (await self._reader.state(*AUDIT)).document.get("open", {})
        except AgentNotFound:
            return {}
        return found

    async def entries(self, *, limit: int = 100, id: str | None = None) -> list[AuditEntry]:
        """The newest entries, newest first."""
        try:
            events = await self._log.get_events(AUDIT, EventFilter(correlation_id=id), limit=limit, descending=True)
        except AgentNotFound:
            return []
        return [
            AuditEntry(event.version, rfc3339(event.time), event.type, event.correlation_id or "", event.data or {}) for event in events
        ]

    async def _write(self, type: str, id: str, data: dict[str, Any], *changes: Change) -> None:
        await self._log.append_event(AUDIT, Event(type, changes=changes, data=data, correlation_id=id, actor=data["actor"]))
