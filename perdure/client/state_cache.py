"""The cache of current states, as people hold it: what it holds, how reads are served, and what to do about either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from perdure import limits
from perdure.client.parts import Parts
from perdure.client.rebuilds import Rebuilds
from perdure.engine.log.marks import mark_of
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.errors import InvalidInput, KeyUnavailable
from perdure.projections.contract import Token
from perdure.projections.statistics import CacheStatistics, ReadStatistics

if TYPE_CHECKING:
    from perdure.client.state import State

__all__ = ["StateCacheManager", "StateCacheStatistics", "Warmed"]


class StateCacheStatistics(msgspec.Struct, frozen=True):
    """cache: what it holds altogether. reads: how this process's reads were served; hit_ratio, mean_s: of them. states_at_hand, bytes_at_hand,
    bytes_at_hand_max, evicted_at_hand: of this process's own memory, by what the decoded documents take."""

    cache: CacheStatistics
    reads: ReadStatistics
    hit_ratio: float
    mean_s: float
    states_at_hand: int
    bytes_at_hand: int
    bytes_at_hand_max: int
    evicted_at_hand: int


class Warmed(msgspec.Struct):
    """agents: looked at. fresh: they were there, at the log's version. written: put there, or brought forward. skipped: without a state or a key."""

    agents: int = 0
    fresh: int = 0
    written: int = 0
    skipped: int = 0


class StateCacheManager:
    """The cache of one engine. What is done in a shared cache (Redis) concerns all processes: a state that one of them has at hand counts only
    while the cache still names it."""

    def __init__(self, engine: Parts) -> None:
        self._engine = engine
        self._rebuilds = Rebuilds(engine)
        self._store = engine.log.store
        self._reader = engine.states.reader

    async def get(self, name: AgentName) -> State:
        """The state that the cache has, without asking the log; a miss is folded and put there. Raises AgentNotFound."""
        return await self._engine.states.get_current_state(name, consistency="eventual")

    async def sync(self, name: AgentName) -> int:
        """Bring the cached state to the log's newest version; that version. Raises AgentNotFound, and what stands against folding it."""
        await self._engine.log.settle(name)
        record = await self._engine.log.vault.record(*name)
        token, version = await self._look(record)
        if token is None or token.version != version or token.generation != self._store.generation:
            return await self._rebuilds.agent(name)
        return version

    async def warm(
        self,
        names: Sequence[AgentName] | None = None,
        *,
        tenant: str | None = None,
        parallel: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> Warmed:
        """Let the cache have the newest states of these agents, or of a tenant's, or of all. Raises AgentNotFound, Unavailable."""
        if not 1 <= parallel <= limits.REBUILD_PARALLEL_MAX:
            raise InvalidInput(f"{parallel} at once", hint=f"1 to {limits.REBUILD_PARALLEL_MAX}")
        done, free, number = Warmed(), asyncio.Semaphore(parallel), await self._rebuilds.number()

        async def one(name: AgentName, fresh: bool, empty: bool) -> None:
            done.agents += 1
            if fresh or empty:
                done.fresh, done.skipped = done.fresh + fresh, done.skipped + empty
                return
            async with free:
                try:
                    await self._rebuilds.agent(name, number)
                    done.written += 1
                except KeyUnavailable:
                    done.skipped += 1

        async for page in self._pages(names, tenant):
            tokens = await self._engine.cache.tokens([(each.tenant, each.agent) for each in page])
            heads = await self._store.heads(page)
            work = []
            for record, token, head in zip(page, tokens, heads, strict=True):
                fresh = token is not None and (token.generation, token.version) == (self._store.generation, head.version)
                empty = head.version == 0 or mark_of(record.owner) is not None
                work.append(one(AgentName(record.tenant, record.agent), fresh and not empty, empty))
            await asyncio.gather(*work)
            if progress is not None:
                progress(done.agents)
        return done

    async def invalidate(self, names: Sequence[AgentName] | None = None, *, tenant: str | None = None) -> int:
        """Let the cache, and so every process, forget these agents, or a tenant's, or all; how many were asked to go. Reads fold them anew."""
        asked = 0
        async for page in self._pages(names, tenant):
            agents = [(each.tenant, each.agent) for each in page]
            await self._engine.cache.remove(agents)
            for agent in agents:
                self._reader.kept.drop(agent)
            asked += len(agents)
        return asked

    async def statistics(self) -> StateCacheStatistics:
        """How reads were served since the process began (or `reset_statistics`), and what is held. Raises Unavailable."""
        reads, kept = self._reader.statistics, self._reader.kept
        return StateCacheStatistics(
            await self._engine.cache.statistics(),
            msgspec.structs.replace(reads),
            reads.hit_ratio,
            reads.mean_s,
            len(kept),
            kept.size_bytes,
            kept.bytes_max,
            kept.evicted,
        )

    def reset_statistics(self) -> None:
        """Count from now on."""
        self._reader.statistics = ReadStatistics()

    def optimise(self, *, bytes_max: int | None = None, agents_max: int | None = None) -> None:
        """Let this process keep so much at hand, in bytes of memory that decoded documents take; None: as before."""
        for what, number in (("bytes_max", bytes_max), ("agents_max", agents_max)):
            if number is not None and number < 0:
                raise InvalidInput(f"{what} is {number}", hint="0 or more")
        self._reader.kept.resize(bytes_max=bytes_max, agents_max=agents_max)

    async def _look(self, record: AgentRecord) -> tuple[Token | None, int]:
        (token,) = await self._engine.cache.tokens([(record.tenant, record.agent)])
        (head,) = await self._store.heads([record])
        return token, head.version

    async def _pages(self, names: Sequence[AgentName] | None, tenant: str | None) -> AsyncIterator[Sequence[AgentRecord]]:
        if names is not None:
            for first in range(0, len(names), limits.REBUILD_PAGE_AGENTS):
                yield [await self._engine.log.vault.record(*name) for name in names[first : first + limits.REBUILD_PAGE_AGENTS]]
            return
        for each in await self._store.tenants() if tenant is None else [tenant]:
            after = ""
            while page := await self._store.list_agents(each, after=after, limit=limits.REBUILD_PAGE_AGENTS):
                after = page[-1].agent
                yield page
