"""One batch of a projector: from deliveries to writes that the cache has taken.

An agent's events of a batch become one write, however many they are. Agents are loaded and folded in portions, and while one portion is
folded the cache takes the one before; so never more than two portions' states are in hands, beside the hot ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from perdure.engine.bus.contract import Delivery
from perdure.engine.log.chain import EMPTY_CHAIN
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName, SealedEvent
from perdure.engine.vault import Vault
from perdure.errors import PerdureError, Unavailable
from perdure.projections.cells_codec import CACHE_DAMAGE, Layout
from perdure.projections.contract import CachedState, CellWrite, StateCache, Token
from perdure.projections.fill import Base, fold_state, open_cached
from perdure.projections.hot import HotState, HotStates
from perdure.projections.stepping import Follow, cells_size, fold_step, following, whole_write

__all__ = ["BatchWork"]

Name = AgentName

PORTION_EVENTS: Final = 200
"""Events, of whole agents, that are folded before their writes go out."""


class BatchWork:
    """Counts and outcome of one batch. broken: agents that not even the log settles, each with the last good version and the reason."""

    def __init__(
        self,
        store: LogStore,
        cache: StateCache,
        vault: Vault,
        hot: HotStates[HotState],
        base: Base | None,
        aside: Collection[tuple[str, str]],
    ) -> None:
        self._store = store
        self._cache = cache
        self._vault = vault
        self._hot = hot
        self._base = base
        self._aside = aside
        self._states: dict[Name, HotState] = {}
        self._names: list[Name] = []
        self.broken: dict[Name, tuple[int, Exception]] = {}
        self.applied = 0
        self.rebuilt = 0
        self.warnings = 0

    async def run(self, deliveries: Sequence[Delivery]) -> None:
        """Project the deliveries. Raises Unavailable when a server is away; the batch can then be run anew."""
        groups: dict[Name, list[SealedEvent]] = {}
        for delivery in deliveries:
            event = delivery.event
            if event is not None and (event.tenant, event.agent) not in self._aside:
                groups.setdefault(AgentName(event.tenant, event.agent), []).append(event)
        self._names = list(groups)
        await self._vault.look_up(groups)
        writing: asyncio.Task[None] | None = None
        try:
            for portion in _portions(groups):
                await self._load(portion)
                writes = await self._advance(portion)
                if writing is not None:
                    await writing
                writing = asyncio.create_task(self._write(writes))
                await asyncio.sleep(0)  # the writes are on their way before the next portion takes the processor
        finally:
            if writing is not None:
                await writing

    def forget(self) -> None:
        """Drop the states that the batch had in hands."""
        for name in self._names:
            self._hot.drop(name)

    async def _load(self, groups: Mapping[Name, list[SealedEvent]]) -> None:
        """Put the agents' states at hand: hot ones, new ones, and those that the cache has. What is left out is folded from the log."""
        cold: list[Name] = []
        for name in groups:
            state = self._hot.get(name)
            if state is not None:
                self._states[name] = state
            else:
                cold.append(name)
        if not cold:
            return
        for name, cached in zip(cold, await self._cache.get(cold), strict=True):
            if cached is not None:
                await self._open_cached(name, cached)
            elif groups[name][0].version == 1:
                self._states[name] = HotState({}, Token(self._store.generation, 0, 0), 0, EMPTY_CHAIN, Layout(), 0)

    async def _open_cached(self, name: Name, cached: CachedState) -> None:
        if cached.token.generation != self._store.generation:
            return
        try:
            opened = await open_cached(self._vault, *name, cached)
        except Unavailable:
            raise
        except CACHE_DAMAGE:
            await self._cache.remove([name])
        except PerdureError as problem:
            self.broken[name] = (cached.token.version, problem)
        else:
            size = cells_size(cached.cells)
            self._states[name] = HotState(opened.document, cached.token, opened.time_us, opened.chain, opened.layout, size)

    async def _advance(self, portion: Mapping[Name, list[SealedEvent]]) -> dict[Name, CellWrite]:
        """The writes that lead these agents to their newest events; what does not follow the state at hand is settled by the log."""
        news: dict[Name, list[SealedEvent]] = {}
        settle: list[Name] = []
        for name, events in portion.items():
            state = self._states.get(name)
            how, fresh = following(state, events) if state is not None else (Follow.GAP, [])
            if how is not Follow.FOLLOWS:
                settle.append(name)
            elif fresh:
                news[name] = fresh
        writes = await self._fold(news, settle)
        for name in settle:
            await self._rebuild(name, writes)
        for name in portion.keys() - writes.keys():
            self._states.pop(name, None)
        return writes

    async def _fold(self, news: Mapping[Name, list[SealedEvent]], settle: list[Name]) -> dict[Name, CellWrite]:
        """Open and fold the events that follow; an agent whose events fail is left to the log."""
        writes: dict[Name, CellWrite] = {}
        for name, events in news.items():
            try:
                opened = await self._vault.open_all(events)
            except Unavailable:
                raise
            except PerdureError:
                settle.append(name)
                continue
            try:
                step = fold_step(await self._vault.cipher(*name), self._states[name], opened)
            except Unavailable:
                raise
            except Exception:
                # A fold is total; one that fails is settled by the log, which names the reason when it fails there too.
                self._hot.drop(name)
                settle.append(name)
            else:
                writes[name] = step.write
                self.warnings += len(step.warnings)
        return writes

    async def _rebuild(self, name: Name, writes: dict[Name, CellWrite]) -> None:
        """The newest state from the log, as a whole write; the bus may have been wrong, the log decides."""
        if name in self.broken:
            return
        before = self._states.pop(name, None)
        self._hot.drop(name)
        try:
            state = await fold_state(self._store, self._vault, await self._vault.record(*name), self._base)
            write = whole_write(await self._vault.cipher(*name), state)
        except Unavailable:
            raise
        except Exception as problem:
            self.broken[name] = (before.token.version if before else 0, problem)
            return
        self.rebuilt += 1
        if before is not None and before.chain != state.chain and before.token >= state.token:
            # The cache holds another history, and would take this one for old.
            await self._cache.remove([name])
        if state.token.version:
            self._states[name] = state
            writes[name] = write

    async def _write(self, writes: dict[Name, CellWrite]) -> None:
        answers = await self._cache.apply(list(writes.values()))
        again: list[Name] = []
        for (name, write), answer in zip(writes.items(), answers, strict=True):
            if answer == write.token:
                self._keep(name)
            elif answer is not None and answer > write.token:
                # Somebody else was faster; their state is loaded with the agent's next event.
                self._hot.drop(name)
            else:
                again.append(name)
        if again:
            await self._write_whole(again)
        for name in writes:
            del self._states[name]

    async def _write_whole(self, names: Sequence[Name]) -> None:
        """The cache forgot these agents, or holds an older state than was thought: write what is at hand as a whole."""
        whole = [whole_write(await self._vault.cipher(*name), self._states[name]) for name in names]
        for name, write, answer in zip(names, whole, await self._cache.apply(whole), strict=True):
            if answer == write.token:
                self._keep(name)
            else:
                self._hot.drop(name)

    def _keep(self, name: Name) -> None:
        self._hot.put(name, self._states[name])
        self.applied += 1


def _portions(groups: Mapping[Name, list[SealedEvent]]) -> Iterator[dict[Name, list[SealedEvent]]]:
    """Agents with their events, so many that a portion has PORTION_EVENTS events, or is one agent."""
    portion: dict[Name, list[SealedEvent]] = {}
    count = 0
    for name, events in groups.items():
        portion[name] = events
        count += len(events)
        if count >= PORTION_EVENTS:
            yield portion
            portion, count = {}, 0
    if portion:
        yield portion
