"""The agent's row at the target, from nothing to the mark under which its history is put in, and back where the move is broken off.

Invariant: nobody stages under a transfer's id any more once its arrival says `aborted`. Who stages looks at the arrival after the mark stands;
who breaks off writes it down first, and looks at the mark after that. So one of the two sees the other.
"""

from __future__ import annotations

import time

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.marks import LEAVING, LEFT_OVER, MOVED, PAST, STAGED, mark_of, owner_of
from perdure.engine.log.records import AgentRecord
from perdure.errors import AlreadyExists, Conflict, IntegrityError, Unavailable
from perdure.identifiers import partition_of
from perdure.migration.transfer.records import Arrival, TransferRecord, arrival, keep_arrival
from perdure.migration.transfer.route import Route
from perdure.migration.transfer.sides import row_of

__all__ = ["Staging"]


class Staging:
    """Of one transfer. mark: the owner that the row has meanwhile. noted: the arrival as it was last read or written, None before. made: whether
    the row was made by this, and so has nothing yet."""

    def __init__(self, route: Route, record: TransferRecord) -> None:
        self._source = route.source
        self._target = route.target
        self._make = route.make
        self._keys = route.keys
        self._pasts = route.pasts
        self._progress = route.progress
        self._record = record
        self._name = record.name
        self.mark = owner_of(STAGED, record.id)
        self.noted: Arrival | None = None
        self.made = False

    async def stage(self, row: AgentRecord) -> AgentRecord:
        """The target's row, marked, with the agent's keys; or as our own commit made it.

        Raises AlreadyExists, Conflict (others are at it, or the transfer was broken off), Unavailable."""
        target, name = self._target, self._name
        (heir,) = await target.store.agents([name])
        self.noted = await (self._note_first() if heir is None else arrival(target.store, name))
        ours = self.noted is not None and self.noted.id == self._record.id
        if not ours:
            self.noted = await keep_arrival(target.store, name, self._arrival(heir, self.noted))
        elif self.noted is not None and self.noted.aborted:
            raise self._broken_off()
        if ours and row.owner == owner_of(LEAVING, self._record.id) and heir is not None and heir.owner != self.mark:
            # The source was shut after the target was staged, so the mark was there; it is gone by the commit, or by who takes the move back.
            return heir
        heir = await (self._stage_new(row) if heir is None else self._stage_over(row, heir))
        # Looked at again after the mark stands: who takes the move back writes that down, and then looks at the mark.
        self.noted = await arrival(target.store, name)
        if self.noted is None or self.noted.id != self._record.id or self.noted.aborted:
            raise self._broken_off()
        steps.reach("transfer.staged")
        return heir

    async def _note_first(self) -> Arrival | None:
        """Of an agent that is not there mostly nothing is noted either, so it is written without a look; what stands where something is."""
        try:
            return await keep_arrival(self._target.store, self._name, self._arrival(None, None))
        except Conflict:
            return await arrival(self._target.store, self._name)

    async def _stage_new(self, row: AgentRecord) -> AgentRecord:
        store = self._target.store
        place = {"tenant_key": 0, "agent_key": 0, "partition": partition_of(*self._name, store.partitions)}
        wrapped = await self._keys.give(row, None)
        wanted = msgspec.structs.replace(row, **place, owner=self.mark, epoch=0, data_key=wrapped, parent=None, past=())
        base = await self._pasts.carry(row, self._record, self._progress)
        if base is not None and row.parent is not None:
            heir = await store.create_fork(wanted, base, row.parent.version)
        else:
            heir = await self._make(wanted)
        self.made = heir.data_key == wanted.data_key
        if not self.made:
            return await self._stage_over(row, heir)
        await self._target.vault.remember(heir)
        return heir

    async def _stage_over(self, row: AgentRecord, heir: AgentRecord) -> AgentRecord:
        """Go on over a row that is marked already: by us, by a move away from there, or by a broken one to there."""
        if heir.parent is not None:
            await self._pasts.carry(row, self._record, self._progress)
        if heir.owner != self.mark:
            mark = mark_of(heir.owner)
            if mark is None:
                message = f"the target has an agent {heir.agent!r} of its own"
                raise AlreadyExists(message, hint="give one of the two another name", tenant=row.tenant, agent=row.agent)
            if mark.kind not in (MOVED, LEFT_OVER, PAST):
                raise Conflict(f"agent {heir.agent!r} is in transfer {mark.transfer} at the target", tenant=row.tenant, agent=row.agent)
            if not await self._target.store.swap_owner(heir, heir.owner, self.mark):
                raise Conflict("somebody else has begun to move the agent there", tenant=row.tenant, agent=row.agent)
        # Anew, so that whoever broke off what was left over does not take away the key of who goes on from it.
        return await self._keys.hand(row, again=True)

    async def note_committed(self, now_us: int) -> None:
        """Write down that the agent has come; where others have written since, that is theirs."""
        noted = self.noted or await arrival(self._target.store, self._name)
        while noted is not None and noted.id == self._record.id and not noted.committed_us:
            try:
                self.noted = await keep_arrival(self._target.store, self._name, msgspec.structs.replace(noted, committed_us=now_us))
                return
            except Conflict:
                # Somebody who came too late with taking it back, or another coordinator: each writes once or twice.
                noted = await arrival(self._target.store, self._name)

    # --- taking it back ---
    async def withdraw(self) -> None:
        """Make the commit impossible: no mark, and none to come. Raises Conflict where the commit was first; Unavailable."""
        row = await row_of(self._source, self._name)
        (heir,) = await self._target.store.agents([self._name])
        noted = await arrival(self._target.store, self._name)
        left = row.owner == owner_of(LEAVING, self._record.id)
        if row.owner == owner_of(MOVED, self._record.id) or (left and heir is not None and self._is_committed(heir, noted)):
            raise self._too_late()
        await self._unstage(await self._note_abort())
        self._target.vault.forget(self._name)
        steps.reach("transfer.unstaged")

    async def _note_abort(self) -> Arrival:
        """Write down that nobody stages under this id any more; the arrival as it is then."""
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            (heir,) = await self._target.store.agents([self._name])
            noted = await arrival(self._target.store, self._name)
            ours = noted is not None and noted.id == self._record.id
            wanted = msgspec.structs.replace(noted, aborted=True) if noted and ours else self._arrival(heir, noted, aborted=True)
            try:
                return await keep_arrival(self._target.store, self._name, wanted)
            except Conflict:
                continue  # others are at it, too
        raise Unavailable(
            "the arrival of the agent is being changed by others all the time", tenant=self._record.tenant, agent=self._record.agent
        )

    async def _unstage(self, noted: Arrival) -> None:
        (heir,) = await self._target.store.agents([self._name])
        if heir is None:
            return
        stays = noted.before if noted.before is not None and noted.before.startswith((owner_of(MOVED, ""), owner_of(PAST, ""))) else None
        swapped = await self._target.store.swap_owner(heir, self.mark, stays or owner_of(LEFT_OVER, self._record.id))
        if swapped and stays is None:
            # Nobody there can open what is left, until the next transfer brings the keys again. One that has begun already has other ones.
            await self._target.store.swap_data_keys([heir], [b""])
        row = await row_of(self._source, self._name)
        moved = row.owner == owner_of(MOVED, self._record.id)
        left = row.owner == owner_of(LEAVING, self._record.id)
        if moved or (left and not swapped and self._is_committed(await row_of(self._target, self._name), noted)):
            # It was committed between the two looks.
            await self._undo_abort()
            raise self._too_late()

    async def _undo_abort(self) -> None:
        noted = await arrival(self._target.store, self._name)
        if noted is None:
            raise IntegrityError("the arrival of the agent is not noted any more", tenant=self._record.tenant, agent=self._record.agent)
        await keep_arrival(self._target.store, self._name, msgspec.structs.replace(noted, aborted=False))

    def _is_committed(self, heir: AgentRecord, noted: Arrival | None) -> bool:
        """Of a source that was shut for this transfer, so that the target had been marked: whether its mark is gone by the commit."""
        before = None if noted is None else noted.before
        return heir.owner not in (self.mark, owner_of(LEFT_OVER, self._record.id), before) and not heir.owner.startswith(owner_of(PAST, ""))

    def _arrival(self, heir: AgentRecord | None, noted: Arrival | None, *, aborted: bool = False) -> Arrival:
        return Arrival(
            id=self._record.id,
            source=self._source.address,
            before=None if heir is None else heir.owner,
            started_us=time.time_ns() // 1000,
            aborted=aborted,
            revision=0 if noted is None else noted.revision,
        )

    def _broken_off(self) -> Conflict:
        return Conflict("the transfer was broken off", hint="begin another one", tenant=self._record.tenant, agent=self._record.agent)

    def _too_late(self) -> Conflict:
        hint = "run `perdure transfer resume`"
        return Conflict("the target has committed: the agent is there", hint=hint, tenant=self._record.tenant, agent=self._record.agent)
