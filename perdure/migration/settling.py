"""How a migration ends: closing its record, and finding out, or forcing, an end where its processes are gone.

Invariants:

1. What the log says is what happened. The commit and the abort of a migration are events of the agent with ids of their own, each written only
   under the epoch before; so at most one of them is there, and whoever looks sees the same.
2. Nobody ends a fence by a clock. It ends by the commit or by the abort.
3. An end is told in the journal before the record is closed, and stays in the target's list until both are done: a closed record is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from msgspec.structs import replace

from perdure.engine import steps
from perdure.engine.event import Event
from perdure.engine.log.log import EventLog, Owned
from perdure.engine.log.records import AgentRecord
from perdure.errors import AgentNotFound, Conflict, Fenced, Unavailable
from perdure.migration.journal import MigrationJournal
from perdure.migration.ledger import Entry, Kept, Ledger
from perdure.migration.rates import note_rates
from perdure.migration.records import Migration, advanced, can_abort_quietly, event_id

__all__ = ["ABORT", "COMMIT", "FENCE", "Settler", "event", "now_us", "surely"]

FENCE, COMMIT, ABORT = 1, 2, 3
"""Numbers of the events that a migration may write to its agent (see `records.event_id`)."""
ATTEMPTS_MAX: Final = 16
UNKNOWN_S: Final = 20.0
"""How long an answer that was lost is asked for again."""
AGAIN_S: Final = 0.05

Outcome = Literal["committed", "aborted"]


def now_us() -> int:
    """Unix microseconds of this process."""
    return time.time_ns() // 1000


def event(migration: Migration, number: int, step: str) -> Event:
    """One of the migration's events on its agent: the same whoever writes it."""
    data = {"migration": migration.id, "step": step}
    return Event("perdure.migration", id=event_id(migration.id, number), data=data, correlation_id=migration.id)


async def surely(ask: Callable[[], Awaitable[Owned]]) -> Owned:
    """Ask until the answer is known: one that was lost is asked for again, under the same event id."""
    deadline = time.monotonic() + UNKNOWN_S
    while True:
        try:
            return await ask()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(AGAIN_S)


class Settler:
    """Ends migrations. Any number of them may work on the same one, in any processes."""

    def __init__(self, log: EventLog, who: Literal["settler", "target"] = "settler") -> None:
        self.log = log
        self.ledger = Ledger(log.store)
        self.journal = MigrationJournal(log)
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
            if not can_abort_quietly(migration):
                outcome = await self._decided(migration)
                steps.reach("migration.settler.decided")
                return await self.close(migration, outcome, reason="" if outcome == "committed" else reason)
            # The target may not touch the agent before this record says `flipping`: whoever changes the record first decides.
            try:
                closed = await self.ledger.change(kept, self._ended(migration, "aborted", reason, {}))
            except Conflict:
                again = await self.ledger.get(migration.name)
                if again is None or again.migration.id != migration.id:
                    return migration
                kept = again
                continue
            steps.reach("migration.settler.decided")
            await self.tell(closed.migration)
            return closed.migration
        raise Conflict(f"migration {kept.migration.id} changes all the time", hint="try again")

    async def close(
        self, migration: Migration, outcome: Outcome, *, reason: str = "", known: Kept | None = None, **facts: Any
    ) -> Migration:
        """Tell of an end that is decided, write it down, and take the migration from its target's list. known: the record as it was last seen."""
        if outcome == "committed" and "checksum" not in facts:
            facts = {**await self._commit_facts(migration), **facts}
        ended = self._ended(migration, outcome, reason, facts)
        await self.journal.ended(ended)
        await self._undone(ended)
        steps.reach(f"migration.{self._who}.journaled")
        after = await self.ledger.amend(migration.name, migration.id, lambda now: ended if now.open else None, known=known)
        if after is not None:
            ended = after.migration
        if outcome == "committed" and ended.copy_s:
            await note_rates(self.log.store, ended)
        await self.ledger.untell(migration.target, [_entry(migration)])
        steps.reach(f"migration.{self._who}.closed")
        return ended

    async def tell(self, migration: Migration) -> None:
        """Of a closed migration that is still in its target's list, whose end may not have been told."""
        await self.journal.ended(migration)
        await self._undone(migration)
        steps.reach(f"migration.{self._who}.journaled")
        await self.ledger.untell(migration.target, [_entry(migration)])
        steps.reach(f"migration.{self._who}.closed")

    def _ended(self, migration: Migration, outcome: Outcome, reason: str, facts: dict[str, Any]) -> Migration:
        at = now_us()
        facts = {"duration_ms": round((at - migration.created_us) / 1000, 3), **({"error": reason} if reason else {}), **facts}
        return advanced(migration, outcome, at, **facts)

    async def _undone(self, migration: Migration) -> None:
        """A rollback that was committed: what it undid is told to be undone."""
        if migration.phase != "committed" or not migration.rollback_of:
            return
        before = await self.journal.find(migration.rollback_of)
        if before is not None and before.phase == "committed":
            await self.journal.rolled_back(replace(advanced(before, "rolled_back", now_us()), rolled_back_by=migration.id))

    async def _decided(self, migration: Migration) -> Outcome:
        """What the log says; where it says nothing yet, it is told that the source keeps the agent."""
        for _ in range(ATTEMPTS_MAX):
            self.log.vault.forget(migration.name)
            record = await self._record(migration)
            for each in await self.log.store.find(record, [event_id(migration.id, number) for number in (COMMIT, ABORT)]):
                return "committed" if each.id == event_id(migration.id, COMMIT) else "aborted"
            fenced = bool(await self.log.store.find(record, [event_id(migration.id, FENCE)]))
            if record.epoch > migration.epoch + fenced:
                return "aborted"  # others have taken the agent meanwhile: the target's commit can never be written
            abort = event(migration, ABORT, "abort")
            try:
                await surely(lambda record=record, abort=abort: self._give_back(migration, record, abort))  # type: ignore[misc]
            except Fenced:
                continue
            return "aborted"
        raise Conflict(f"agent {migration.agent!r} changes its owner all the time", tenant=migration.tenant, agent=migration.agent)

    async def _give_back(self, migration: Migration, record: AgentRecord, abort: Event) -> Owned:
        return await self.log.hand_over(migration.name, migration.source, epoch=record.epoch, event=abort)

    async def _record(self, migration: Migration) -> AgentRecord:
        """The agent's row; without its key, which need not be here."""
        (record,) = await self.log.store.agents([migration.name])
        if record is None:
            raise AgentNotFound(f"there is no agent {migration.agent!r}", tenant=migration.tenant, agent=migration.agent)
        return record

    async def _commit_facts(self, migration: Migration) -> dict[str, Any]:
        """Where the log gave the agent to the target."""
        found = await self.log.store.find(await self._record(migration), [event_id(migration.id, COMMIT)])
        if not found:
            return {}
        return {"final_epoch": found[0].epoch, "version": found[0].version, "checksum": found[0].chain.hex()}


def _entry(migration: Migration) -> Entry:
    return Entry(migration.tenant, migration.agent, migration.id)
