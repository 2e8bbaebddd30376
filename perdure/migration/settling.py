"""How a migration ends: closing its record, and finding out, or forcing, an end where its processes are gone.

Invariants:

1. What the log says is what happened. The commit and the abort of a migration are events of the agent with ids of their own, each written only
   under the epoch before; so at most one of them is there, and whoever looks sees the same.
2. Nobody ends a fence by a clock. It ends by the commit or by the abort.
3. An end is told in the journal before the record is closed: a closed record is always told.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal

import msgspec

from perdure.engine import steps
from perdure.engine.event import Event
from perdure.engine.log.log import EventLog
from perdure.errors import Conflict, Fenced
from perdure.migration.journal import MigrationJournal
from perdure.migration.ledger import Entry, Kept, Ledger
from perdure.migration.records import Migration, advanced, can_abort_quietly, event_id

__all__ = ["ABORT", "COMMIT", "FENCE", "Settler", "abort_event", "now_us"]

FENCE, COMMIT, ABORT = 1, 2, 3
"""Numbers of the events that a migration may write to its agent (see `records.event_id`)."""
ATTEMPTS_MAX: Final = 16


def now_us() -> int:
    """Unix microseconds of this process."""
    return time.time_ns() // 1000


def event(migration: Migration, number: int, step: str) -> Event:
    """One of the migration's events on its agent."""
    return Event(
        "migration", id=event_id(migration.id, number), data={"migration": migration.id, "step": step}, correlation_id=migration.id
    )


def abort_event(migration: Migration) -> Event:
    """The event with which the agent goes back to its source."""
    return event(migration, ABORT, "abort")


class Settler:
    """Ends migrations. Any number of them may work on the same one, in any processes."""

    def __init__(self, log: EventLog, ledger: Ledger, journal: MigrationJournal, who: Literal["settler", "target"] = "settler") -> None:
        self._log = log
        self._ledger = ledger
        self._journal = journal
        self._who = who

    async def settle(self, kept: Kept, reason: str) -> Migration:
        """End an open migration: as committed where the log has given the agent to the target, else as aborted, whatever its target still does.

        Raises Unavailable; then nothing is decided, or it is and the next one to look sees it.
        """
        for _ in range(ATTEMPTS_MAX):
            migration = kept.migration
            if not migration.open:
                return migration
            steps.reach("migration.settler.deciding")
            if can_abort_quietly(migration):
                # The target may not touch the agent before this record says `flipping`: whoever changes the record first decides.
                ended = await self._quietly(kept, reason)
                if ended is not None:
                    return ended
            else:
                outcome = await self._decided(migration)
                steps.reach("migration.settler.aborted")
                return await self.close(kept, outcome, reason="" if outcome == "committed" else reason)
            again = await self._ledger.get(migration.name)
            if again is None or again.migration.id != migration.id:
                return migration
            kept = again
        raise Conflict(f"migration {kept.migration.id} changes all the time", hint="try again")

    async def close(self, kept: Kept, outcome: Literal["committed", "aborted"], *, reason: str = "", **facts: Any) -> Migration:
        """Tell of the end, write it down, and take the migration from the target's list."""
        migration = kept.migration
        if outcome == "committed":
            facts = {"final_epoch": migration.epoch + 1, **await self._commit_facts(migration), **facts}
        at = now_us()
        facts.setdefault("duration_ms", round((at - migration.created_us) / 1000, 3))
        if reason:
            facts["error"] = reason
        ended = advanced(migration, outcome, at, **facts)
        await self._journal.ended(ended)
        steps.reach(f"migration.{self._who}.journaled")

        def how(now: Migration) -> Migration | None:
            return ended if now.open else None

        after = await self._ledger.amend(migration.name, migration.id, how)
        await self._ledger.untell(migration.target, [Entry(migration.tenant, migration.agent, migration.id)])
        steps.reach(f"migration.{self._who}.closed")
        return after.migration if after is not None else ended

    async def _quietly(self, kept: Kept, reason: str) -> Migration | None:
        """Close the record where nothing has happened yet; None when it went on meanwhile."""
        migration = kept.migration
        at = now_us()
        ended = advanced(migration, "aborted", at, error=reason, duration_ms=round((at - migration.created_us) / 1000, 3))
        try:
            after = await self._ledger.change(kept, ended)
        except Conflict:
            return None
        await self._told(after)
        return ended

    async def _told(self, kept: Kept) -> None:
        """The journal, and the target's list. Where this breaks off, whoever finds the entry in the target's list does it again."""
        migration = kept.migration
        await self._journal.ended(migration)
        steps.reach(f"migration.{self._who}.journaled")
        await self._ledger.untell(migration.target, [Entry(migration.tenant, migration.agent, migration.id)])
        steps.reach(f"migration.{self._who}.closed")

    async def tell_again(self, migration: Migration) -> None:
        """A closed migration that is still in its target's list: its end may not have been told."""
        await self._journal.ended(migration)
        await self._ledger.untell(migration.target, [Entry(migration.tenant, migration.agent, migration.id)])

    async def _decided(self, migration: Migration) -> Literal["committed", "aborted"]:
        """What the log says; where it says nothing yet, it is told that the source keeps the agent."""
        for _ in range(ATTEMPTS_MAX):
            self._log.vault.forget(migration.name)
            record = await self._log.vault.record(*migration.name)
            found = await self._log.store.find(record, [event_id(migration.id, number) for number in (COMMIT, ABORT)])
            for each in found:
                return "committed" if each.id == event_id(migration.id, COMMIT) else "aborted"
            if record.epoch > migration.epoch + 1:
                return "aborted"  # others have taken the agent meanwhile: the target's commit can never be written
            if record.epoch == migration.epoch + 1 and not await self._fenced_by(migration):
                return "aborted"
            try:
                await self._log.hand_over(migration.name, migration.source, epoch=record.epoch, event=abort_event(migration))
            except Fenced:
                continue
            return "aborted"
        raise Conflict(f"agent {migration.agent!r} changes its owner all the time", tenant=migration.tenant, agent=migration.agent)

    async def _fenced_by(self, migration: Migration) -> bool:
        record = await self._log.vault.record(*migration.name)
        return bool(await self._log.store.find(record, [event_id(migration.id, FENCE)]))

    async def _commit_facts(self, migration: Migration) -> dict[str, Any]:
        """Where the log gave the agent to the target."""
        record = await self._log.vault.record(*migration.name)
        found = await self._log.store.find(record, [event_id(migration.id, COMMIT)])
        if not found:
            return {}
        return {"final_epoch": found[0].epoch, "version": found[0].version, "checksum": found[0].chain.hex()}


def with_facts(migration: Migration, **facts: Any) -> Migration:
    """The record with facts, in the same phase."""
    return msgspec.structs.replace(migration, **facts)
