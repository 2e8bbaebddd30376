"""The events that shut an agent at one end and open it at the other: who serves is decided by these, and by nothing else.

`perdure.leaving` shuts the source for good: the log itself refuses appends and owners after it. `perdure.owned` at the target is the commit; at
the source, after the commit was made impossible, it opens the agent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from perdure import limits
from perdure.engine.event import Event
from perdure.engine.log import decide
from perdure.engine.log.arrival_rows import Settling
from perdure.engine.log.chain import chain_hash
from perdure.engine.log.codec import Draft, encode_payload, event_context
from perdure.engine.log.expected import ANY
from perdure.engine.log.marks import LEAVING, STAGED, owner_of
from perdure.engine.log.records import AgentRecord, EventFilter, Head, SealedEvent
from perdure.errors import Conflict, Fenced
from perdure.migration.transfer.clocks import Clock
from perdure.migration.transfer.records import TransferRecord
from perdure.migration.transfer.sides import Side, row_of

__all__ = ["Left", "commit", "leave", "take_back"]


class Left(NamedTuple):
    """A source that is shut. row: as it is now. head: where it ends. event: the one that shut it, None where this process does not know that it
    wrote it: before, or at the same time as somebody else."""

    row: AgentRecord
    head: Head
    event: SealedEvent | None = None


async def leave(source: Side, record: TransferRecord, row: AgentRecord) -> Left:
    """Shut the source. Raises Fenced (others hand it over), Conflict (others took it)."""
    mark = owner_of(LEAVING, record.id)
    if row.owner != mark:
        cipher = await source.vault.cipher(*record.name)
        draft = _draft(cipher.seal, Event(decide.LEAVING, data={"transfer": record.id, "to": record.address}))
        outcome = await source.log.writer.append([decide.Item(row, ANY, None, [draft], mark, over_fence=False)])
        if isinstance(outcome, decide.Written):
            ((version, offset, time_us, epoch, chain),) = outcome.places
            source.vault.owned(record.name, mark, epoch)  # whose key opens what is compared next
            written = _placed(row, draft, offset, version, epoch, time_us, chain)
            left = msgspec.structs.replace(row, owner=mark, epoch=epoch)
            return Left(left, decide.head_after(version, epoch, draft.type, chain), written)
        source.vault.forget(record.name)
        row = await source.vault.record(*record.name)
        if row.owner != mark:
            if isinstance(outcome, decide.Shut):
                message = f"agent {row.agent!r} is being handed over between nodes, or leaves for elsewhere"
                raise Fenced(message, hint="try again when that is over", tenant=row.tenant, agent=row.agent, epoch=outcome.epoch)
            raise Conflict(f"agent {row.agent!r} was taken by somebody else meanwhile", tenant=row.tenant, agent=row.agent)
    (head,) = await source.store.heads([row])
    return Left(row, head)


async def commit(
    target: Side, clock: Clock, record: TransferRecord, heir: AgentRecord, head: Head, rest: Sequence[SealedEvent], newest_us: int
) -> int:
    """Put in the rest of the history, and behind it the event that makes the target the agent's engine, over its mark, all in one step; the epoch
    from then on.

    head: where the agent stands with the rest. newest_us: the time of its newest event, 0: to be looked up. Raises Conflict (the mark is gone),
    IntegrityError (the target does not stand where the rest begins)."""
    if rest:
        newest_us = rest[-1].time_us
    elif not newest_us:
        where = EventFilter(from_version=head.version, to_version=head.version)
        newest_us = (await target.store.read_agent(heir, where, 1))[0].time_us
    now_us = await clock.now_us()
    # Times of an agent never go back: what is appended next gets the target's time.
    if newest_us > now_us:
        await asyncio.sleep(min((newest_us - now_us) / 1e6, limits.ID_CLOCK_MARGIN_S))
        now_us = await clock.now_us()
    owned = await _owned(target, record, heir, head, max(newest_us, now_us))
    await target.store.receive_events([heir], [*rest, owned], owner=owner_of(STAGED, record.id), settle=Settling("", owned.epoch))
    target.vault.forget(record.name)
    return owned.epoch


async def _owned(target: Side, record: TransferRecord, heir: AgentRecord, head: Head, time_us: int) -> SealedEvent:
    cipher = await target.vault.cipher(*record.name)
    draft = _draft(cipher.seal, Event(decide.OWNED, data={"owner": "", "transfer": record.id, "from": record.source}))
    version, epoch = head.version + 1, head.epoch + 1
    chain = chain_hash(head.chain, *record.name, version, epoch, time_us, draft)
    return _placed(heir, draft, 0, version, epoch, time_us, chain)


async def take_back(source: Side, record: TransferRecord) -> None:
    """Open the source again, under a higher epoch, where it was shut for this transfer."""
    row = await row_of(source, record.name)
    if row.owner == owner_of(LEAVING, record.id):
        cipher = await source.vault.cipher(*record.name)
        event = Event(decide.OWNED, data={"owner": "", "transfer": record.id, "taken_back": True})
        item = decide.Item(row, ANY, row.epoch, [_draft(cipher.seal, event)], "", takes_back=True)
        await source.log.writer.append([item])
        source.vault.forget(record.name)


def _draft(seal: Callable[[bytes, bytes], bytes], event: Event) -> Draft:
    return Draft(event.id, event.type, None, None, None, None, None, seal(event_context(event.id), encode_payload(event)))


def _placed(row: AgentRecord, draft: Draft, offset: int, version: int, epoch: int, time_us: int, chain: bytes) -> SealedEvent:
    place = (row.tenant, row.agent, row.tenant_key, row.agent_key, row.partition, offset, version, epoch)
    return SealedEvent(*place, draft.id, draft.type, time_us, None, None, None, None, None, chain, draft.payload)
