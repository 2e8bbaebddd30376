"""Erasing an agent where it has moved away from: a step of its own, because it cannot be taken back."""

from __future__ import annotations

import time

import msgspec

from perdure.engine.log.marks import MOVED, mark_of
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.errors import Conflict, NotFound
from perdure.limits import SNAPSHOTS_PER_AGENT_MAX, TRANSFER_LIST_PAGE
from perdure.migration.transfer.records import TransferRecord, keep, record_of
from perdure.migration.transfer.sides import Side, row_of

__all__ = ["erase"]


async def erase(source: Side, name: AgentName) -> TransferRecord:
    """Destroy the source's key of an agent that has moved, and its state in the cache: no event, snapshot or large value of it can be opened there
    any more. The forwarding record stays. Again is no error.

    Raises NotFound (no forwarding record), Conflict (the agent has not moved, or has forks here), Unavailable."""
    record = await record_of(source.store, name)
    if record is None:
        raise NotFound(f"agent {name.agent!r} has no forwarding record", tenant=name.tenant, agent=name.agent)
    row = await row_of(source, name)
    mark = mark_of(row.owner)
    if mark is None or mark.kind != MOVED or mark.transfer != record.id:
        raise Conflict(
            f"agent {name.agent!r} has not moved away", hint="`perdure transfer show` tells", tenant=name.tenant, agent=name.agent
        )
    if await _needed(source, row):
        message = f"agent {name.agent!r} has forks here, whose past it is"
        raise Conflict(message, hint="they would lose it", tenant=name.tenant, agent=name.agent)
    if row.data_key:
        await source.store.swap_data_keys([row], [b""])
    # Nobody can open them any more; their objects go with the next sweep.
    rows = await source.store.snapshots(row, limit=SNAPSHOTS_PER_AGENT_MAX)
    await source.store.delete_snapshots(row, [each.id for each in rows], keep_newest=0, even_permanent=True)
    source.vault.forget(name)
    await source.cache.remove([name])
    erased = msgspec.structs.replace(record, phase="erased", ended_us=record.ended_us or time.time_ns() // 1000)
    await keep(source.store, erased)
    return erased


async def _needed(source: Side, row: AgentRecord) -> bool:
    """Whether a fork has its past in this agent; not one that has moved away as well, and was erased here."""
    after = ""
    while page := await source.store.list_forks(row, after=after, limit=TRANSFER_LIST_PAGE):
        if any(fork.data_key for fork in page):
            return True
        after = page[-1].agent
    return False
