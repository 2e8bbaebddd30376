"""What migrations did, as events: every beginning and every end, readable as any agent's history is.

The ids of the events derive from the migration's, so whoever finishes it, however often, tells of it once.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from perdure.engine.changes import delete, set_value
from perdure.engine.event import Event
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, EventFilter, rfc3339
from perdure.errors import AgentNotFound
from perdure.migration.records import Migration, event_id
from perdure.recovery.journal import SYSTEM_TENANT, Entry

__all__ = ["JOURNAL", "MigrationJournal"]

JOURNAL: Final = AgentName(SYSTEM_TENANT, "migrations")
"""The agent whose events are the journal; its state holds the migrations that are under way."""
BEGUN, ENDED, ROLLED_BACK = 101, 102, 103


class MigrationJournal:
    """Writes and reads entries; `recovery` of an entry is the migration's id."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def begun(self, migration: Migration) -> None:
        """It is under way."""
        facts = {"tenant": migration.tenant, "agent": migration.agent, "from": migration.source, "to": migration.target}
        open_value = {**facts, "strategy": migration.strategy}
        await self._write(migration, "migration_started", BEGUN, plain(migration), (set_value(f"/open/{migration.id}", open_value),))

    async def ended(self, migration: Migration) -> None:
        """It is over: `migration_committed`, `migration_aborted`, with everything that is known of it."""
        await self._write(migration, f"migration_{migration.phase}", ENDED, plain(migration), (delete(f"/open/{migration.id}"),))

    async def rolled_back(self, migration: Migration) -> None:
        """It had been completed, and was undone by another."""
        await self._write(migration, "migration_rolled_back", ROLLED_BACK, plain(migration), ())

    async def find(self, migration: str) -> Migration | None:
        """What was last told of a migration; None when nothing was."""
        (record,) = await self._log.store.agents([JOURNAL])
        if record is None:
            return None
        told = await self._log.store.find(record, [event_id(migration, number) for number in (BEGUN, ENDED, ROLLED_BACK)])
        return msgspec.convert((await self._log.vault.open(told[-1])).data, Migration) if told else None

    async def entries(self, *, limit: int = 100, migration: str | None = None) -> list[Entry]:
        """The newest entries, newest first."""
        try:
            events = await self._log.get_events(JOURNAL, EventFilter(correlation_id=migration), limit=limit, descending=True)
        except AgentNotFound:
            return []
        return [Entry(event.version, rfc3339(event.time), event.type, event.correlation_id or "", event.data or {}) for event in events]

    async def _write(self, migration: Migration, type: str, number: int, data: Any, changes: tuple[Any, ...]) -> None:
        event = Event(type, changes=changes, data=data, id=event_id(migration.id, number), correlation_id=migration.id)
        await self._log.append_event(JOURNAL, event)


def plain(migration: Migration) -> dict[str, Any]:
    """The record as plain values."""
    values: dict[str, Any] = msgspec.to_builtins(migration)
    return values
