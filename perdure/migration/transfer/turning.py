"""The events that shut an agent at one end and open it at the other: who serves is decided by these, and by nothing else.

`perdure.leaving` shuts the source for good: the log itself refuses appends and owners after it. `perdure.owned` at the target is the commit; at
the source, after the commit was made impossible, it opens the agent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure import limits
from perdure.engine.event import Event
from perdure.engine.log import decide
from perdure.engine.log.arrival_rows import Settling
from perdure.engine.log.chain import chain_hash
from perdure.engine.log.codec import Draft, encode_payload, event_context
from perdure.engine.log.contract import AgentRecord, EventFilter, Head, SealedEvent
from perdure.engine.log.expected import ANY
from perdure.engine.log.marks import LEAVING, STAGED, owner_of
from perdure.errors import Conflict, Fenced
from perdure.migration.transfer.records import TransferRecord
from perdure.migration.transfer.sides import Side, row_of

__all__ = ["commit", "leave", "take_back"]


async def leave(source: Side, record: TransferRecord, row: AgentRecord) -> AgentRecord:
    """Shut the source; its row after that. Raises Fenced (others hand it over), Conflict (others took it)."""
    mark = owner_of(LEAVING, record.id)
    if row.owner == mark:
        return row
    cipher = await source.vault.cipher(*record.name)
    event = Event(decide.LEAVING, data={"transfer": record.id, "to": record.address})
    item = decide.Item(row, ANY, None, [_draft(cipher.seal, event)], mark, over_fence=False)
    outcome = await source.log.writer.append([item])
    source.vault.forget(record.name)
    row = await source.vault.record(*record.name)
    if row.owner != mark:
        if isinstance(outcome, decide.Shut):
            message = f"agent {row.agent!r} is being handed over between nodes, or leaves for elsewhere"
            raise Fenced(message, hint="try again when that is over", tenant=row.tenant, agent=row.agent, epoch=outcome.epoch)
        raise Conflict(f"agent {row.agent!r} was taken by somebody else meanwhile", tenant=row.tenant, agent=row.agent)
    return row


async def commit(target: Side, record: TransferRecord, heir: AgentRecord, head: Head, newest_us: int) -> int:
    """The event that makes the target the agent's engine, over its mark, in one step; the epoch from then on.

    head: where the agent stands at both ends. newest_us: the time of its newest event, 0: to be looked up. Raises Conflict: the mark is gone."""
    if not newest_us:
        where = EventFilter(from_version=head.version, to_version=head.version)
        newest_us = (await target.store.read_agent(heir, where, 1))[0].time_us
    now_us = await target.store.clock_us()
    # Times of an agent never go back: what is appended next gets the target's time.
    if newest_us > now_us:
        await asyncio.sleep(min((newest_us - now_us) / 1e6, limits.ID_CLOCK_MARGIN_S))
        now_us = await target.store.clock_us()
    sealed = await _owned(target, record, heir, head, max(newest_us, now_us))
    await target.store.receive_events([heir], [sealed], owner=owner_of(STAGED, record.id), settle=Settling("", sealed.epoch))
    target.vault.forget(record.name)
    return sealed.epoch


async def _owned(target: Side, record: TransferRecord, heir: AgentRecord, head: Head, time_us: int) -> SealedEvent:
    cipher = await target.vault.cipher(*record.name)
    draft = _draft(cipher.seal, Event(decide.OWNED, data={"owner": "", "transfer": record.id, "from": record.source}))
    version, epoch = head.version + 1, head.epoch + 1
    chain = chain_hash(head.chain, *record.name, version, epoch, time_us, draft)
    place = (*record.name, heir.tenant_key, heir.agent_key, heir.partition, 0, version, epoch)
    return SealedEvent(*place, draft.id, draft.type, time_us, None, None, None, None, None, chain, draft.payload)


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
