"""Newest states of many agents in few round trips, for whoever has to serve many at once, as a node does that took over a lost one's agents.

Invariant: what is found here has passed the same checks as a state that is read alone: it stands at the newest version that the log told, under
that version's chain hash, reached from a verified copy or from the beginning by events whose chain was checked. Whatever is out of the
ordinary (a snapshot to begin with, a fork's past, a move between engines, damage, removed events, many events) is left out, and read alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from perdure import limits
from perdure.engine.log.chain import EMPTY_CHAIN
from perdure.engine.log.contract import LogStore
from perdure.engine.log.marks import RESERVED
from perdure.engine.log.records import AgentName, AgentRecord, Head, SealedEvent
from perdure.engine.replay import Folded, fold_page
from perdure.engine.vault import Vault
from perdure.errors import PerdureError, Unavailable
from perdure.projections.cells_codec import seal_whole
from perdure.projections.contract import CachedState, CellWrite, StateCache
from perdure.projections.fill import open_cached
from perdure.projections.hot import HotStates
from perdure.projections.kept import KeptState
from perdure.projections.statistics import ReadStatistics

__all__ = ["ReadTogether"]

CACHED_FIRST: Final = 32
"""Cached states that are asked for first together; how large they are is not known before."""
CACHED_MOST: Final = 256
CACHED_BYTES: Final = 8 * limits.MIB
"""Sealed bytes of one answer of the cache from which on fewer states are asked for together."""


class _Behind(NamedTuple):
    """An agent whose state is to be folded on to its head. start: from where; None: from its first event."""

    record: AgentRecord
    head: Head
    start: KeptState | None

    @property
    def name(self) -> AgentName:
        return AgentName(self.record.tenant, self.record.agent)

    @property
    def version(self) -> int:
        """Where it starts."""
        return 0 if self.start is None else self.start.token.version


class ReadTogether:
    """The part of a reader that reads many. snapshots: whether the reader has any to begin with."""

    def __init__(
        self, store: LogStore, cache: StateCache, vault: Vault, kept: HotStates[KeptState], statistics: ReadStatistics, *, snapshots: bool
    ) -> None:
        self._store = store
        self._cache = cache
        self._vault = vault
        self._kept = kept
        self._statistics = statistics
        self._snapshots = snapshots

    async def find(self, names: Sequence[AgentName]) -> dict[AgentName, KeptState]:
        """The newest states of those agents that can be read together. Raises Unavailable."""
        records = await self._records(names)
        heads = dict(zip(records, await self._store.heads(list(records.values())), strict=True))
        found: dict[AgentName, KeptState] = {}
        for name in records:
            kept = self._kept.get(name)
            if kept is not None and kept.stands(heads[name], self._store.generation):
                found[name] = kept
        self._statistics.at_hand += len(found)
        behind = await self._from_cache({name: record for name, record in records.items() if name not in found}, heads, found)
        for together in _groups(await self._without_snapshots(behind)):
            found |= await self._fold(together)
        return found

    async def _records(self, names: Sequence[AgentName]) -> dict[AgentName, AgentRecord]:
        """The rows of those that are ordinarily served here."""
        moves = self._vault.moves
        await moves.refresh()
        await self._vault.look_up(name for name in names if not moves.concern(name))
        records: dict[AgentName, AgentRecord] = {}
        for name in names:
            known = None if moves.concern(name) else self._vault.known(name)
            if known is not None and not known[0].owner.startswith(RESERVED):
                records[name] = known[0]
        return records

    async def _from_cache(
        self, records: dict[AgentName, AgentRecord], heads: dict[AgentName, Head], found: dict[AgentName, KeptState]
    ) -> list[_Behind]:
        """Those that the cache has as the log has them go to `found`; those that have to be folded on, or from the beginning, are given back."""
        behind = []
        async for name, cached in self._cached(list(records)):
            head = heads[name]
            if cached is None or cached.token.generation != self._store.generation:
                behind.append(_Behind(records[name], head, None))
                continue
            try:
                opened = await open_cached(self._vault, *name, cached)
            except PerdureError:
                continue  # read alone, it is mended, or it is told what is wrong
            state = KeptState(opened.document, cached.token, opened.time_us, opened.chain)
            self._kept.put(name, state)
            if state.stands(head, self._store.generation):
                found[name] = state
                self._statistics.cached += 1
            elif state.token.version < head.version:
                behind.append(_Behind(records[name], head, state))
            await asyncio.sleep(0)
        return behind

    async def _cached(self, names: list[AgentName]) -> AsyncIterator[tuple[AgentName, CachedState | None]]:
        """What the cache has of each; nothing where it is away. As many at a time as their size allows."""
        count, away = CACHED_FIRST, False
        while names:
            chosen, names = names[:count], names[count:]
            answers: list[CachedState | None] = [None] * len(chosen)
            if not away:
                try:
                    answers = await self._cache.get(chosen)
                except Unavailable:
                    away = True
            size_bytes = sum(len(cell) for answer in answers if answer is not None for cell in answer.cells.values())
            count = max(1, count // 2) if size_bytes > CACHED_BYTES else min(CACHED_MOST, count * 2)
            for name, answer in zip(chosen, answers, strict=True):
                yield name, answer

    async def _without_snapshots(self, behind: list[_Behind]) -> list[_Behind]:
        """Those that no snapshot spares anything, and whose events lie nowhere else."""
        alone = [each for each in behind if not each.record.past or each.version >= each.record.past[0].version]
        fresh = [each.record for each in alone if each.start is None and each.head.version] if self._snapshots else []
        rows = await self._store.newest_snapshots(fresh) if fresh else []
        shortened = {record.agent_key for record, row in zip(fresh, rows, strict=True) if row is not None}
        return [each for each in alone if each.record.agent_key not in shortened]

    async def _fold(self, together: Sequence[_Behind]) -> dict[AgentName, KeptState]:
        """Read what is missing of these agents, and fold it."""
        wanted = [(each.record, each.version + 1, each.head.version) for each in together if each.head.version > each.version]
        pages = {record.agent_key: page for (record, _, _), page in zip(wanted, await self._store.read_many(wanted), strict=True)}
        found: dict[AgentName, KeptState] = {}
        writes: list[CellWrite] = []
        for each in together:
            try:
                state = await self._folded(each, pages.get(each.record.agent_key, []))
                if state is not None and each.start is None and state.token.version:
                    writes.append(await self._whole(each.name, state))
            except PerdureError:
                continue  # read alone, it is told what is wrong
            if state is not None:
                found[each.name] = state
                self._statistics.folded += each.start is None
                self._statistics.caught_up += each.start is not None
            await asyncio.sleep(0)
        await self._put_back(writes)
        for name, state in found.items():
            if state.token.version:
                self._kept.put(name, state)
        return found

    async def _folded(self, each: _Behind, page: Sequence[SealedEvent]) -> KeptState | None:
        """The agent's state at its head; None where this page does not lead there."""
        start = Folded({}, 0, 0, 0, EMPTY_CHAIN, []) if each.start is None else each.start.folded()
        folded = await fold_page(self._vault, start, page) if page else start
        if folded.version != each.head.version or folded.chain != each.head.chain:
            return None
        return KeptState.of(folded, self._store.generation, after=each.start)

    async def _whole(self, name: AgentName, state: KeptState) -> CellWrite:
        cipher = await self._vault.cipher(*name)
        return seal_whole(cipher, state.token, state.time_us, state.chain, state.document)[0]

    async def _put_back(self, writes: Sequence[CellWrite]) -> None:
        """States that were not in the cache."""
        if writes:
            with contextlib.suppress(Unavailable):  # they are right without it
                await self._cache.apply(writes)


def _groups(behind: Sequence[_Behind]) -> list[list[_Behind]]:
    """So many together as one page holds events; who needs more than a page alone is left out."""
    groups: list[list[_Behind]] = []
    room = 0
    for each in behind:
        events = each.head.version - each.version
        if events > limits.READ_PAGE_EVENTS:
            continue
        if not groups or events > room:
            groups.append([])
            room = limits.READ_PAGE_EVENTS
        groups[-1].append(each)
        room -= events
    return groups
