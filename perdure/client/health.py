"""How an agent is: what its state says now, and what its events have said for the last ninety days.

There is no second record of it. An agent tells by events of the vocabulary (`perdure.engine.types`: `instance_created`, `status_changed`,
`error_occurred`); its current health is in its state, and so in the cache, and the history is its log.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from perdure import limits
from perdure.client.filters import check_limit, event_filter
from perdure.client.log import Log
from perdure.client.states import Consistency, States
from perdure.engine.event import RecordedEvent
from perdure.engine.fold import MISSING, lookup
from perdure.engine.log.records import AgentName
from perdure.engine.types import ErrorOccurred, InstanceCreated, StatusChanged

__all__ = ["HEALTH_TYPES", "Health", "HealthDesk", "HealthEntry"]

HEALTH_TYPES: Final = (InstanceCreated.type_name, StatusChanged.type_name, ErrorOccurred.type_name)
_LAST_ERROR: Final = ("execution_state", "process_state", "last_error")
_TASK: Final = ("execution_state", "current_task")


class Health(msgspec.Struct, frozen=True):
    """An agent now. status, task, last_error: as its state says, None where it does not. seen: its newest event; silent_s: how long ago."""

    tenant: str
    agent: str
    version: int
    status: str | None
    task: str | None
    last_error: dict[str, Any] | None
    seen: datetime | None
    silent_s: float | None


class HealthEntry(msgspec.Struct, frozen=True):
    """What an agent said of itself at a time. status: the new one, of an error None; detail: its reason, or the error's code and message."""

    version: int
    time: datetime
    type: str
    status: str | None
    detail: str


class HealthDesk:
    """`engine.health`: status, task, last error and silence of an agent, from its cached state; its status changes and errors, from the log."""

    def __init__(self, states: States, log: Log) -> None:
        self._states = states
        self._log = log

    async def now(self, name: AgentName, *, consistency: Consistency = "eventual") -> Health:
        """How the agent is; from the cache unless `strong`. Raises AgentNotFound."""
        state = await self._states.get_current_state(name, consistency=consistency)
        error = lookup(state.document, _LAST_ERROR)
        silent_s = None if state.time is None else max(0.0, (datetime.now(UTC) - state.time).total_seconds())
        return Health(
            name.tenant,
            name.agent,
            state.version,
            _text(lookup(state.document, ("status",))),
            _text(lookup(state.document, _TASK)),
            error if isinstance(error, dict) else None,
            state.time,
            silent_s,
        )

    async def history(self, name: AgentName, *, since: datetime | None = None, limit: int = 100) -> list[HealthEntry]:
        """What the agent said of itself, the newest first, at most `limit`. since: `limits.HEALTH_HISTORY_DAYS` ago. Raises AgentNotFound."""
        begin = datetime.now(UTC) - timedelta(days=limits.HEALTH_HISTORY_DAYS) if since is None else since
        where = event_filter(types=HEALTH_TYPES, since=begin)
        return [_entry(event) for event in await self._log.get_events(name, where, limit=check_limit(limit), descending=True)]


def _entry(event: RecordedEvent) -> HealthEntry:
    data = event.data if isinstance(event.data, Mapping) else {}
    if event.type == ErrorOccurred.type_name:
        detail = ": ".join(filter(None, (_text(data.get("code")), _text(data.get("message")))))
        return HealthEntry(event.version, event.time, event.type, None, detail)
    status = _text(data.get("status"))
    if status is None and event.type == InstanceCreated.type_name:
        status = InstanceCreated().status  # a default is not written
    return HealthEntry(event.version, event.time, event.type, status, _text(data.get("reason")) or "")


def _text(value: object) -> str | None:
    return value if value is not MISSING and isinstance(value, str) else None
