"""Which codec is worth it for an agent: measured on the chunks of its own state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from perdure import limits
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentRecord
from perdure.engine.replay import fold_log
from perdure.errors import InvalidInput
from perdure.snapshots.cells import CellWalk
from perdure.snapshots.cut import cut
from perdure.snapshots.dictionaries import DictionaryStore
from perdure.snapshots.loader import SnapshotLoader
from perdure.snapshots.zstd import ChunkDictionary

__all__ = ["measure_agent"]

MEASURED_BYTES_MAX: Final = 8 * limits.MIB
T = TypeVar("T")


async def measure_agent(
    log: EventLog,
    loader: SnapshotLoader,
    dictionaries: DictionaryStore,
    record: AgentRecord,
    measure: Callable[[list[bytes], ChunkDictionary], T],
) -> T:
    """What `measure(chunks, dictionary)` says of the agent's newest state, in a thread. Raises InvalidInput for an agent without a state."""
    loaded = await loader.load(record)
    state = await fold_log(log.store, log.vault, record, start=loaded.folded if loaded else None)
    dictionary = await dictionaries.newest(record.tenant, record.type)

    def work() -> T:
        chunks, size_bytes = [], 0
        for chunk in cut(CellWalk(state.document).groups()):
            chunks.append(chunk.plaintext)
            size_bytes += len(chunk.plaintext)
            if size_bytes > MEASURED_BYTES_MAX:
                break
        if not chunks:
            raise InvalidInput("the agent's state is empty", hint="append events first", tenant=record.tenant, agent=record.agent)
        return measure(chunks, dictionary)

    return await asyncio.to_thread(work)
