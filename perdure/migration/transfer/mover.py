"""One agent from one engine to another.

What holds at every step, whoever dies:

1. **At most one end serves.** The target's row is marked `staged` until the commit, which takes the mark away. The commit needs every event up to
   the `perdure.leaving` one, and that event shuts the source for good: the log itself refuses appends and owners after it.
2. **Who takes the move back has made the commit impossible first**: it changes the mark at the target, and the commit is written only over the
   mark. Only then is the source opened again, under a higher epoch.
3. **The rows decide.** What was written down about a transfer (`records`) may be behind. Going on after a crash looks at both rows, and each step
   is one that may be done again, or by two at once.

Steps for fault tests: transfer.noted, .staged, .page, .copied, .compared, .left, .rest_copied, .verified, .committed, .forwarded; of taking
back: transfer.unstaged, .taken_back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.event import Event
from perdure.engine.log import decide
from perdure.engine.log.arrival_rows import Settling
from perdure.engine.log.chain import chain_hash
from perdure.engine.log.codec import Draft, encode_payload, event_context
from perdure.engine.log.contract import AgentName, AgentRecord, EventFilter, Head, SealedEvent
from perdure.engine.log.expected import ANY
from perdure.engine.log.marks import LEAVING, LEFT_OVER, MOVED, STAGED, mark_of, owner_of, refusal
from perdure.errors import AlreadyExists, Conflict, DictionaryNotFound, Fenced, IntegrityError, InvalidInput, KeyUnavailable, Unavailable
from perdure.identifiers import partition_of
from perdure.migration.transfer.anchors import carry_floor, carry_snapshots
from perdure.migration.transfer.comparing import Comparing
from perdure.migration.transfer.copying import Copying
from perdure.migration.transfer.inheritance import Inheritance
from perdure.migration.transfer.records import Arrival, TransferRecord, arrival, keep, keep_arrival, record_of
from perdure.migration.transfer.sides import Side, row_of

__all__ = ["Mover", "check_movable"]

Progress = Callable[[int, int], None]
_OTHER_KEYS: Final = (IntegrityError, KeyUnavailable, DictionaryNotFound)
"""What opening raises with keys that are too old; damage raises the same, and stays."""


class Mover:
    """See the module. ready: awaited before the source is fenced; by then every process knows that the agent goes. progress: (events, bytes) of
    each page that was put in."""

    def __init__(
        self,
        source: Side,
        target: Side,
        record: TransferRecord,
        keys: Inheritance,
        ready: Callable[[], object],
        *,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._target = target
        self._record = record
        self._keys = keys
        self._ready = ready
        self._progress = progress
        self._staged = owner_of(STAGED, record.id)
        self._name = record.name
        self._floored = False

    async def run(self) -> TransferRecord:
        """Go from wherever the agent is until the target serves it; the record then.

        Raises AlreadyExists, Conflict, Fenced, IntegrityError, KeyUnavailable, Unavailable; before the commit, and what was staged stays so.
        """
        row = await row_of(self._source, self._name)
        if row.owner == owner_of(MOVED, self._record.id):
            return await self._forwarded(row)
        resumed = row.owner == owner_of(LEAVING, self._record.id)
        if not resumed and (refused := refusal(row, None)) is not None:
            raise refused
        heir = await self._stage(row)
        if heir.owner != self._staged:
            return await self._forward(row)
        copying = await self._begin(row, heir)
        comparing = Comparing(self._source, self._target, row, heir)
        if not resumed:
            await self._rounds(row, copying, comparing)
        started = time.monotonic()
        row = await self._leave(row)
        steps.reach("transfer.left")
        await self._rest(row, heir, copying, comparing)
        epoch = await self._commit(heir)
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
        return await self._forward(row)

    # --- before: the source serves ---
    async def _stage(self, row: AgentRecord) -> AgentRecord:
        """The target's row, marked, with the agent's keys and nothing else yet; or as our own commit made it."""
        target, name = self._target, self._name
        (heir,) = await target.store.agents([name])
        noted = await arrival(target.store, name)
        ours = noted is not None and noted.id == self._record.id
        if ours and row.owner == owner_of(LEAVING, self._record.id) and heir is not None and heir.owner != self._staged:
            # The source was shut after the target was staged, so the mark was there; it is gone by the commit, or by who takes the move back.
            await self._check_on()
            return heir
        if not ours:
            await keep_arrival(target.store, name, self._arrival(heir, noted))
        await self._check_on()
        heir = await (self._stage_new(row) if heir is None else self._stage_over(row, heir))
        # Looked at again after the mark stands: who takes the move back writes that down, and then looks at the mark.
        await self._check_on()
        steps.reach("transfer.staged")
        return heir

    async def _check_on(self) -> None:
        noted = await arrival(self._target.store, self._name)
        if noted is None or noted.id != self._record.id or noted.aborted:
            raise Conflict("the transfer was broken off", hint="begin another one", tenant=self._record.tenant, agent=self._record.agent)

    async def _stage_new(self, row: AgentRecord) -> AgentRecord:
        wanted = msgspec.structs.replace(
            row,
            tenant_key=0,
            agent_key=0,
            partition=partition_of(*self._name, self._target.store.partitions),
            owner=self._staged,
            epoch=0,
            data_key=await self._keys.give(row, None),
        )
        (heir,) = await self._target.store.create_agents([wanted])
        return heir if heir.owner == self._staged else await self._stage_over(row, heir)

    async def _stage_over(self, row: AgentRecord, heir: AgentRecord) -> AgentRecord:
        """Go on over a row that is marked already: by us, by a move away from there, or by a broken one to there."""
        if heir.owner == self._staged:
            return heir
        mark = mark_of(heir.owner)
        if mark is None:
            message = f"the target has an agent {heir.agent!r} of its own"
            raise AlreadyExists(message, hint="give one of the two another name", tenant=row.tenant, agent=row.agent)
        if mark.kind not in (MOVED, LEFT_OVER):
            raise Conflict(f"agent {heir.agent!r} is in transfer {mark.transfer} at the target", tenant=row.tenant, agent=row.agent)
        if not await self._target.store.swap_owner(heir, heir.owner, self._staged):
            raise Conflict("somebody else has begun to move the agent there", tenant=row.tenant, agent=row.agent)
        return await row_of(self._target, self._name)

    def _arrival(self, heir: AgentRecord | None, noted: Arrival | None, *, aborted: bool = False) -> Arrival:
        return Arrival(
            id=self._record.id,
            source=self._source.address,
            before=None if heir is None else heir.owner,
            started_us=time.time_ns() // 1000,
            aborted=aborted,
            revision=0 if noted is None else noted.revision,
        )

    async def _begin(self, row: AgentRecord, heir: AgentRecord) -> Copying:
        await self._give_keys(row)
        self._floored = await carry_floor(self._source, self._target, row, heir)
        version, chain = await self._standing(heir)
        if version:
            await self._check_same(row, version, chain)
        large = await self._keys.large(self._name.tenant)
        return Copying(self._source, self._target, row, heir, version, chain, owner=self._staged, large=large)

    async def _standing(self, heir: AgentRecord) -> tuple[int, bytes]:
        (head,) = await self._target.store.heads([heir])
        if head.version:
            return head.version, head.chain
        (floor,) = await self._target.store.floors([heir])
        return floor.version - 1, floor.chain

    async def _check_same(self, row: AgentRecord, version: int, chain: bytes) -> None:
        """What the target has must be the beginning of what the source has."""
        (floor,) = await self._source.store.floors([row])
        if version == floor.version - 1:
            same = floor.chain == chain
        else:
            found = await self._source.store.read_agent(row, EventFilter(from_version=version, to_version=version), 1)
            same = bool(found) and found[0].chain == chain
        if not same:
            raise AlreadyExists(
                f"the target has another history of agent {row.agent!r}", tenant=row.tenant, agent=row.agent, version=version
            )

    async def _give_keys(self, row: AgentRecord, *, anew: bool = False) -> None:
        """Everything the source can open, the target can; anew: also what was sealed with what is rotated or trained since the last time."""
        heir = await row_of(self._target, self._name)
        wrapped = await self._keys.give(row, heir, anew=anew)
        if wrapped != heir.data_key and await self._target.store.swap_data_keys([heir], [wrapped]) != 1:
            raise Conflict("the agent's key at the target was changed meanwhile", hint="try again", tenant=row.tenant, agent=row.agent)
        self._target.vault.forget(self._name)

    async def _rounds(self, row: AgentRecord, copying: Copying, comparing: Comparing) -> None:
        """Follow the source until the target lacks little, and compare; nobody waits for any of it."""
        rounds = 0
        while rounds < limits.TRANSFER_ROUNDS_MAX:
            (head,) = await self._source.store.heads([row])
            if head.version - copying.version <= (limits.TRANSFER_LAG_EVENTS if rounds else 0):
                break
            await self._round(copying, comparing, head.version)
            rounds += 1
        steps.reach("transfer.copied")
        version = await comparing.serve()
        if version > copying.version:
            await copying.to(version, self._progress)
        if self._floored:
            await carry_snapshots(self._source, self._target, row, copying.heir)
        await self._compare_all(row, version, comparing)
        self._record = msgspec.structs.replace(self._record, rounds=rounds)
        steps.reach("transfer.compared")
        await self._source.settle(self._name)
        waiting = self._ready()
        if asyncio.iscoroutine(waiting):
            await waiting

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
    async def _leave(self, row: AgentRecord) -> AgentRecord:
        """Shut the source; its row after that."""
        if row.owner == owner_of(LEAVING, self._record.id):
            return row
        cipher = await self._source.vault.cipher(*self._name)
        event = Event(decide.LEAVING, data={"transfer": self._record.id, "to": self._record.address})
        item = decide.Item(row, ANY, None, [_draft(cipher.seal, event)], owner_of(LEAVING, self._record.id), over_fence=False)
        outcome = await self._source.log.writer.append([item])
        self._source.vault.forget(self._name)
        row = await row_of(self._source, self._name)
        if row.owner != owner_of(LEAVING, self._record.id):
            if isinstance(outcome, decide.Shut):
                message = f"agent {row.agent!r} is being handed over between nodes, or leaves for elsewhere"
                raise Fenced(message, hint="try again when that is over", tenant=row.tenant, agent=row.agent, epoch=outcome.epoch)
            raise Conflict(f"agent {row.agent!r} was taken by somebody else meanwhile", tenant=row.tenant, agent=row.agent)
        return row

    async def _rest(self, row: AgentRecord, heir: AgentRecord, copying: Copying, comparing: Comparing) -> None:
        (head,) = await self._source.store.heads([row])
        await copying.to(head.version, self._progress)
        steps.reach("transfer.rest_copied")
        if self._floored:
            await carry_snapshots(self._source, self._target, row, heir)
        if await self._keys.large(self._name.tenant):
            await copying.look_again()
        await self._compare_all(row, head.version, comparing)
        standing = await self._standing(heir)
        if standing != (head.version, head.chain) or not head.leaving:
            raise IntegrityError(
                f"the target ends at version {standing[0]}, the source at {head.version}", tenant=row.tenant, agent=row.agent
            )
        steps.reach("transfer.verified")

    async def _compare_all(self, row: AgentRecord, version: int, comparing: Comparing) -> None:
        """Compare the states; by that every byte has been opened with the target's keys."""
        try:
            await comparing.at(version)
        except _OTHER_KEYS:
            # A key was rotated or a dictionary trained while the agent was copied: with what it brought it must open, all of it.
            await self._give_keys(row, anew=True)
            await comparing.anew().at(version)

    async def _commit(self, heir: AgentRecord) -> int:
        """The event that makes the target the agent's engine, over its mark, in one step; the epoch from then on."""
        (head,) = await self._target.store.heads([heir])
        newest = await self._target.store.read_agent(heir, EventFilter(from_version=head.version, to_version=head.version), 1)
        # Times of an agent never go back: what is appended next gets the target's time.
        ahead_s = (newest[0].time_us - await self._target.store.clock_us()) / 1e6
        if ahead_s > 0:
            await asyncio.sleep(min(ahead_s, limits.ID_CLOCK_MARGIN_S))
        time_us = max(newest[0].time_us, await self._target.store.clock_us())
        sealed = await self._owned(heir, head, time_us)
        await self._target.store.receive_events([heir], [sealed], owner=self._staged, settle=Settling("", sealed.epoch))
        self._target.vault.forget(self._name)
        return sealed.epoch

    async def _owned(self, heir: AgentRecord, head: Head, time_us: int) -> SealedEvent:
        cipher = await self._target.vault.cipher(*self._name)
        event = Event(decide.OWNED, data={"owner": "", "transfer": self._record.id, "from": self._source.address})
        draft = _draft(cipher.seal, event)
        version, epoch = head.version + 1, head.epoch + 1
        chain = chain_hash(head.chain, *self._name, version, epoch, time_us, draft)
        place = (*self._name, heir.tenant_key, heir.agent_key, heir.partition, 0, version, epoch)
        return SealedEvent(*place, draft.id, draft.type, time_us, None, None, None, None, None, chain, draft.payload)

    # --- after: the target serves ---
    async def _forward(self, row: AgentRecord) -> TransferRecord:
        await self._source.store.swap_owner(row, owner_of(LEAVING, self._record.id), owner_of(MOVED, self._record.id))
        steps.reach("transfer.forwarded")
        return await self._forwarded(row)

    async def _forwarded(self, row: AgentRecord) -> TransferRecord:
        self._source.vault.forget(AgentName(row.tenant, row.agent))
        now_us = time.time_ns() // 1000
        noted = await arrival(self._target.store, self._name)
        if noted is not None and noted.id == self._record.id and not noted.committed_us:
            await keep_arrival(self._target.store, self._name, msgspec.structs.replace(noted, committed_us=now_us))
        gone = await record_of(self._target.store, self._name)
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
        row = await row_of(self._source, self._name)
        (heir,) = await self._target.store.agents([self._name])
        noted = await arrival(self._target.store, self._name)
        left = row.owner == owner_of(LEAVING, self._record.id)
        if row.owner == owner_of(MOVED, self._record.id) or (left and heir is not None and self._is_committed(heir, noted)):
            raise self._too_late()
        await self._unstage(await self._note_abort())
        self._target.vault.forget(self._name)
        steps.reach("transfer.unstaged")
        await self._take_back()
        steps.reach("transfer.taken_back")
        ended = msgspec.structs.replace(self._record, open=False, phase="aborted", ended_us=time.time_ns() // 1000, problem=reason)
        await keep(self._source.store, ended)
        await self._source.vault.moves.tell()
        return ended

    async def _note_abort(self) -> Arrival:
        """Write down that nobody stages under this id any more; the arrival as it is then."""
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            (heir,) = await self._target.store.agents([self._name])
            noted = await arrival(self._target.store, self._name)
            ours = noted is not None and noted.id == self._record.id
            wanted = msgspec.structs.replace(noted, aborted=True) if noted and ours else self._arrival(heir, noted, aborted=True)
            try:
                await keep_arrival(self._target.store, self._name, wanted)
            except Conflict:
                continue  # others are at it, too
            return wanted
        raise Unavailable(
            "the arrival of the agent is being changed by others all the time", tenant=self._record.tenant, agent=self._record.agent
        )

    async def _unstage(self, noted: Arrival) -> None:
        (heir,) = await self._target.store.agents([self._name])
        if heir is None:
            return
        gone = noted.before is not None and noted.before.startswith(owner_of(MOVED, ""))
        after = noted.before if noted.before is not None and gone else owner_of(LEFT_OVER, self._record.id)
        swapped = await self._target.store.swap_owner(heir, self._staged, after)
        row = await row_of(self._source, self._name)
        moved = row.owner == owner_of(MOVED, self._record.id)
        left = row.owner == owner_of(LEAVING, self._record.id)
        if moved or (left and not swapped and self._is_committed(await row_of(self._target, self._name), noted)):
            # It was committed between the two looks.
            await keep_arrival(self._target.store, self._name, await self._not_aborted())
            raise self._too_late()

    def _is_committed(self, heir: AgentRecord, noted: Arrival | None) -> bool:
        """Of a source that was shut for this transfer, so that the target had been marked: whether its mark is gone by the commit."""
        before = None if noted is None else noted.before
        return heir.owner not in (self._staged, owner_of(LEFT_OVER, self._record.id), before)

    def _too_late(self) -> Conflict:
        hint = "run `perdure transfer resume`"
        return Conflict("the target has committed: the agent is there", hint=hint, tenant=self._record.tenant, agent=self._record.agent)

    async def _not_aborted(self) -> Arrival:
        noted = await arrival(self._target.store, self._name)
        if noted is None:
            raise IntegrityError("the arrival of the agent is not noted any more", tenant=self._record.tenant, agent=self._record.agent)
        return msgspec.structs.replace(noted, aborted=False)

    async def _take_back(self) -> None:
        row = await row_of(self._source, self._name)
        if row.owner == owner_of(LEAVING, self._record.id):
            cipher = await self._source.vault.cipher(*self._name)
            event = Event(decide.OWNED, data={"owner": "", "transfer": self._record.id, "taken_back": True})
            item = decide.Item(row, ANY, row.epoch, [_draft(cipher.seal, event)], "", takes_back=True)
            await self._source.log.writer.append([item])
            self._source.vault.forget(self._name)


def _draft(seal: Callable[[bytes, bytes], bytes], event: Event) -> Draft:
    return Draft(event.id, event.type, None, None, None, None, None, seal(event_context(event.id), encode_payload(event)))


def check_movable(row: AgentRecord) -> None:
    """Raise InvalidInput for an agent that cannot go by itself."""
    if getattr(row, "parent", None) is not None:
        raise InvalidInput(
            f"agent {row.agent!r} is a fork: its past is another agent's",
            hint="forks stay with their parents",
            tenant=row.tenant,
            agent=row.agent,
        )
