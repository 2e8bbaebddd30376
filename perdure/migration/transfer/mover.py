"""One agent from one engine to another.

What holds at every step, whoever dies:

1. **At most one end serves.** The target's row is marked `staged` until the commit, which takes the mark away. The commit needs every event up to
   the `perdure.leaving` one, and that event shuts the source for good: the log itself refuses appends and owners after it. The last page of
   events goes in with the commit, in one step: it was checked, opened and folded with the target's keys before, from memory.
2. **Who takes the move back has made the commit impossible first**: it changes the mark at the target, and the commit is written only over the
   mark. Only then is the source opened again, under a higher epoch.
3. **The rows decide.** What was written down about a transfer (`records`) may be behind. Going on after a crash looks at both rows, and each step
   is one that may be done again, or by two at once.

Steps for fault tests: transfer.noted, .past, .staged, .page, .copied, .compared, .left, .rest_copied, .verified, .committed, .forwarded; of taking
back: transfer.unstaged, .taken_back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.arrival_rows import Swap
from perdure.engine.log.chain import EMPTY_CHAIN
from perdure.engine.log.marks import LEAVING, MOVED, owner_of, refusal
from perdure.engine.log.records import AgentRecord, SealedEvent
from perdure.errors import DictionaryNotFound, IntegrityError, KeyUnavailable
from perdure.migration.transfer.anchors import carry_floor, carry_snapshots, check_same, standing_of
from perdure.migration.transfer.comparing import Comparing
from perdure.migration.transfer.copying import Copying
from perdure.migration.transfer.records import TransferRecord, keep, record_of
from perdure.migration.transfer.route import Route
from perdure.migration.transfer.sides import row_of
from perdure.migration.transfer.staging import Staging
from perdure.migration.transfer.turning import Left, commit, leave, take_back

__all__ = ["Mover"]

_OTHER_KEYS: Final = (IntegrityError, KeyUnavailable, DictionaryNotFound)
"""What opening raises with keys that are too old; damage raises the same, and stays."""


class Mover:
    """See the module."""

    def __init__(self, route: Route, record: TransferRecord) -> None:
        self._source = route.source
        self._target = route.target
        self._route = route
        self._record = record
        self._keys = route.keys
        self._progress = route.progress
        self._staging = Staging(route, record)
        self._name = record.name
        self._floored = False
        self._row: AgentRecord | None = None
        self._copying: Copying | None = None

    async def begin(self) -> bool:
        """Mark the target's row, from wherever the agent is; whether there is anything to move. Raises as `move`."""
        self._row = row = await row_of(self._source, self._name)
        if row.owner == owner_of(MOVED, self._record.id):
            return False
        if row.owner != owner_of(LEAVING, self._record.id) and (refused := refusal(row, None)) is not None:
            raise refused
        heir = await self._staging.stage(row)
        if heir.owner != self._staging.mark:
            return False
        self._copying = await self._begin(row, heir)
        return True

    async def move(self) -> None:
        """Copy, compare, shut the source and commit; after `begin` has said that there is something to move.

        Raises AlreadyExists, Conflict, Fenced, IntegrityError, KeyUnavailable, Unavailable; before the commit, and what was staged stays so.
        """
        row, copying = self._row, self._copying
        assert row is not None, "it has begun"
        assert copying is not None, "it has begun"
        resumed = row.owner == owner_of(LEAVING, self._record.id)
        comparing = Comparing(self._source, self._target, row, copying.heir, floored=self._floored)
        if not resumed:
            await self._rounds(row, copying, comparing)
        started = time.monotonic()
        left = await leave(self._source, self._record, row)
        self._row = left.row
        steps.reach("transfer.left")
        rest = await self._rest(left, copying, comparing)
        epoch = await commit(self._target, self._route.clock, self._record, copying.heir, left.head, rest, copying.time_us)
        self._took(copying, rest)
        downtime_us = 0 if resumed else int((time.monotonic() - started) * 1e6)
        steps.reach("transfer.committed")
        self._record = msgspec.structs.replace(
            self._record,
            events=self._record.events + copying.events,
            bytes=self._record.bytes + copying.bytes,
            downtime_us=downtime_us,
            version=copying.version,
            epoch=epoch,
            chain=copying.chain.hex(),
            digest=comparing.digest.hex(),
        )

    # --- before: the source serves ---
    async def _begin(self, row: AgentRecord, heir: AgentRecord) -> Copying:
        self._floored = await carry_floor(self._source, self._target, row, heir, await self._route.floor(row))
        fresh = self._staging.made and not self._floored and heir.parent is None
        version, chain = (0, EMPTY_CHAIN) if fresh else await standing_of(self._target, heir)
        if version:
            await check_same(self._source, row, version, chain)
        large = await self._keys.large(self._name.tenant)
        return Copying(self._source, self._target, row, heir, version, chain, owner=self._staging.mark, large=large)

    async def _rounds(self, row: AgentRecord, copying: Copying, comparing: Comparing) -> None:
        """Follow the source until the target lacks little, and compare; nobody waits for any of it."""
        rounds, lag, took_s = 0, limits.TRANSFER_LAG_EVENTS + 1, limits.TRANSFER_ROUND_S
        while rounds < limits.TRANSFER_ROUNDS_MAX and lag > limits.TRANSFER_LAG_EVENTS and took_s >= limits.TRANSFER_ROUND_S:
            started = time.monotonic()
            version = await comparing.serve()
            lag = version - copying.version
            await self._round(copying, comparing, version)
            took_s = time.monotonic() - started
            rounds += 1
        steps.reach("transfer.copied")
        comparing.stands(copying.chain)
        if self._floored:
            await carry_snapshots(self._source, self._target, row, copying.heir)
        await self._compare(row, copying, comparing)
        self._record = msgspec.structs.replace(self._record, rounds=rounds)
        steps.reach("transfer.compared")
        await self._source.settle(self._name)
        await self._route.ready(copying.bytes)

    async def _round(self, copying: Copying, comparing: Comparing, version: int) -> None:
        """Copy, and fold behind it what is there."""
        if self._floored:
            await copying.to(version, self._progress)  # folding begins at a snapshot, which comes after the events
            return
        folding = asyncio.create_task(self._fold_behind(copying, comparing, version))
        try:
            await copying.to(version, self._progress)
            await folding
        finally:
            folding.cancel()
            await asyncio.gather(folding, return_exceptions=True)

    async def _fold_behind(self, copying: Copying, comparing: Comparing, version: int) -> None:
        folded = 0
        try:
            while folded < version:
                await copying.beyond(folded)
                folded = copying.version
                await comparing.follow(folded)
        except _OTHER_KEYS:
            comparing.anew()  # the look after it tells whether newer keys help

    # --- nobody serves ---
    async def _rest(self, left: Left, copying: Copying, comparing: Comparing) -> list[SealedEvent]:
        """Copy what is left, but for its last page, and look for the last time, as if that were there; the page is for the commit."""
        head = left.head
        rest: list[SealedEvent] = []
        if self._floored:  # folding begins at a snapshot, which comes after the events
            await copying.to(head.version, self._progress)
            await carry_snapshots(self._source, self._target, left.row, copying.heir)
        else:
            rest = await copying.rest(head.version, left.event, self._progress)
        steps.reach("transfer.rest_copied")
        await self._compare(left.row, copying, comparing, rest)
        stands = (rest[-1].version, rest[-1].chain) if rest else (copying.version, copying.chain)
        if stands != (head.version, head.chain) or not head.leaving:
            message = f"the history ends at version {stands[0]}, the source at {head.version}"
            raise IntegrityError(message, tenant=self._name.tenant, agent=self._name.agent)
        steps.reach("transfer.verified")
        return rest

    async def _compare(self, row: AgentRecord, copying: Copying, comparing: Comparing, rest: Sequence[SealedEvent] = ()) -> None:
        """Compare the states, with what the target gets next; by that every byte of the events has been opened with the target's keys, and every
        large value that they refer to was there."""
        try:
            await comparing.at(copying.version, rest)
        except _OTHER_KEYS:
            # A key was rotated, a dictionary trained or the tenant's first large value written while the agent was copied: with what it brought it
            # must open, all of it.
            await self._keys.hand(row, anew=True)
            if await self._keys.large(self._name.tenant, now=True):
                await copying.carry_large_now(rest[-1].version if rest else copying.version)
            await comparing.anew().at(copying.version, rest)

    def _took(self, copying: Copying, rest: Sequence[SealedEvent]) -> None:
        if rest:
            copying.took(rest)
            if self._progress is not None:
                self._progress(len(rest), sum(len(event.payload) for event in rest))

    # --- after: the target serves ---
    async def forward(self) -> None:
        """Let the source's row say that the agent has moved: who asks there is told where to.

        After `move`, or where `begin` found nothing to move."""
        assert self._row is not None, "it has begun"
        if self._row.owner != owner_of(MOVED, self._record.id):
            await self._route.swap(Swap(self._row, owner_of(LEAVING, self._record.id), owner_of(MOVED, self._record.id)))
            steps.reach("transfer.forwarded")
        self._source.vault.forget(self._name)

    async def end(self) -> TransferRecord:
        """Write down that the agent has moved, after `forward`; nobody waits for it. The record then."""
        now_us = time.time_ns() // 1000
        await self._staging.note_committed(now_us)
        noted = self._staging.noted
        # Only who was at the target before can have left from there.
        gone = await record_of(self._target.store, self._name) if noted is None or noted.before is not None else None
        if gone is not None and gone.open:
            # It has come back to where it once left from.
            await keep(self._target.store, msgspec.structs.replace(gone, open=False, phase="returned"))
            await self._target.vault.moves.tell()
        self._record = msgspec.structs.replace(self._record, phase="moved", ended_us=now_us, problem="")
        await keep(self._source.store, self._record)
        return self._record

    # --- taking it back ---
    async def abort(self, reason: str) -> TransferRecord:
        """Make the commit impossible, then open the source again, under a higher epoch. Raises Conflict where the commit was first; Unavailable.

        What the target had been given stays there, shut and hidden, and the next transfer goes on from it."""
        await self._staging.withdraw()
        await take_back(self._source, self._record)
        steps.reach("transfer.taken_back")
        ended = msgspec.structs.replace(self._record, open=False, phase="aborted", ended_us=time.time_ns() // 1000, problem=reason)
        await keep(self._source.store, ended)
        await self._source.vault.moves.tell()
        return ended
