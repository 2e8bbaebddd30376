"""Reading states: from the cache, with the log behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName, AgentRecord, Head, to_microseconds
from perdure.engine.log.versions import no_version
from perdure.engine.vault import Vault
from perdure.errors import ChainBroken, DeadlineExceeded, InvalidInput, PerdureError, Unavailable
from perdure.projections.cells_codec import CACHE_DAMAGE, seal_whole
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base, fold_on, open_cached
from perdure.projections.hot import HotStates
from perdure.projections.kept import KeptState, ReadState
from perdure.projections.statistics import ReadStatistics
from perdure.projections.together import ReadTogether

__all__ = ["AT_LEAST_TIMEOUT_S", "Consistency", "ReadState", "StateReader"]

Consistency = Literal["strong", "eventual"]
AT_LEAST_TIMEOUT_S: Final = 5.0
"""How long a read waits for a version that the log does not have yet."""
_POLL_S: Final = 0.25
ONE_BY_ONE_MAX: Final = 16
"""Of many states that are wanted together, those that are read each by itself at once."""


class StateReader:
    """Reads states. base: gives snapshots to fold on from; kept: states at hand in this process, bounded.

    Every method may raise AgentNotFound, Unavailable (the log is away), KeyUnavailable, SealBroken and ChainBroken.
    """

    def __init__(
        self, store: LogStore, cache: StateCache, vault: Vault, *, base: Base | None = None, kept: HotStates[Any] | None = None
    ) -> None:
        self._store = store
        self._cache = cache
        self._vault = vault
        self._base = base
        self._kept: HotStates[KeptState] = HotStates() if kept is None else kept
        self.statistics = ReadStatistics()
        self._together = ReadTogether(store, cache, vault, self._kept, self.statistics, snapshots=base is not None)

    @property
    def kept(self) -> HotStates[Any]:
        """The states at hand."""
        return self._kept

    async def state(
        self,
        tenant: str,
        agent: str,
        *,
        consistency: Consistency = "strong",
        at_least: int | None = None,
        timeout_s: float = AT_LEAST_TIMEOUT_S,
    ) -> ReadState:
        """The agent's state.

        strong: at the newest version that the log holds. eventual: at whichever version the cache holds, without asking the log.
        at_least: not before this version, e.g. the one that an own append returned; it is waited for `timeout_s`, then DeadlineExceeded.
        """
        began_s = time.perf_counter()
        if consistency == "strong":
            kept = await self._strong(tenant, agent)
        elif consistency == "eventual":
            await self._check_here(tenant, agent)
            kept = await self._cached(tenant, agent) or await self._miss(tenant, agent)
        else:
            raise InvalidInput(f"consistency {consistency!r} is unknown", hint="strong or eventual")
        if at_least is not None and kept.token.version < at_least:
            kept = await self._wait(tenant, agent, at_least, timeout_s)
        self.statistics.took(time.perf_counter() - began_s)
        return kept.read()

    async def states(self, names: Sequence[AgentName]) -> list[ReadState | PerdureError]:
        """The newest states that the log holds of many agents (each named once), in order, and what is wrong with those that cannot be read.

        Few round trips for all that stand alone in the log or the cache; others are read as `state` reads them. Raises Unavailable where
        the log is away.
        """
        began_s = time.perf_counter()
        found = await self._together.find(names)
        places = asyncio.Semaphore(ONE_BY_ONE_MAX)

        async def alone(name: AgentName) -> ReadState | PerdureError:
            async with places:
                try:
                    return (await self._strong(*name)).read()
                except PerdureError as problem:
                    return problem

        others = [name for name in names if name not in found]
        read = dict(zip(others, await asyncio.gather(*map(alone, others)), strict=True))
        self.statistics.took(time.perf_counter() - began_s)
        return [found[name].read() if name in found else read[name] for name in names]

    async def state_at_version(self, tenant: str, agent: str, version: int) -> ReadState:
        """The state after the agent's event number `version`; 0: before the first. Raises VersionNotFound."""
        record = await self._vault.served(tenant, agent)
        head = (await self._store.heads([record]))[0]
        if not 0 <= version <= head.version:
            raise no_version(record, version, head.version)
        return (await self._fold(record, to_version=version)).read()

    async def state_at_time(self, tenant: str, agent: str, time: datetime) -> ReadState:
        """The state as it was at a moment (aware; events at that very microsecond included)."""
        if time.tzinfo is None:
            raise InvalidInput("the time has no zone", hint="give an aware datetime, e.g. in UTC")
        record = await self._vault.served(tenant, agent)
        version = await self._store.version_at(record, to_microseconds(time))
        return (await self._fold(record, to_version=version)).read()

    async def _strong(self, tenant: str, agent: str) -> KeptState:
        record, head = await self._head(AgentName(tenant, agent))
        kept = self._kept.get((tenant, agent))
        if kept is not None and kept.stands(head, self._store.generation):
            self.statistics.at_hand += 1
            return kept
        if kept is not None and kept.near(head, self._store.generation) and (caught_up := await self._catch_up(record, kept)) is not None:
            return caught_up
        cached = await self._cached(tenant, agent, counts=False)
        if cached is None:
            return await self._miss(tenant, agent)
        if cached.token.version > head.version:
            # An append between the two readings may have put the cache ahead. One that still is has seen what the log, an older copy, has not.
            head = (await self._store.heads([record]))[0]
        if cached.token.version == head.version and cached.chain == head.chain:
            self.statistics.cached += 1
            return cached
        if cached.token.version < head.version and (caught_up := await self._catch_up(record, cached)) is not None:
            return caught_up
        self.statistics.damaged += 1
        await self._forget(tenant, agent)
        return await self._miss(tenant, agent)

    async def _head(self, name: AgentName) -> tuple[AgentRecord, Head]:
        """Where the agent stands in the log, and that it is served here. Where the notices of moves have to be looked at first, both are asked at
        once: what is looked at later than the read began, and before it is answered, is as good."""
        known = None if self._vault.moves.fresh else self._vault.known(name)
        if known is None:
            record = await self._vault.served(*name)
            return record, (await self._store.heads([record]))[0]
        served, heads = await asyncio.gather(self._vault.served(*name), self._store.heads([known[0]]), return_exceptions=True)
        if isinstance(served, BaseException):
            raise served
        if isinstance(heads, BaseException):
            raise heads
        return served, (heads if served == known[0] else await self._store.heads([served]))[0]

    async def _catch_up(self, record: AgentRecord, state: KeptState) -> KeptState | None:
        """The state folded on from this one; None: it is of another history, or the log is broken, which the whole fold tells."""
        try:
            caught_up = self._keep(record.tenant, record.agent, await self._fold(record, after=state))
        except ChainBroken:
            return None
        self.statistics.caught_up += 1
        return caught_up

    async def _check_here(self, tenant: str, agent: str) -> None:
        """Refuse an agent that is known to be leaving, or gone. What the cache has is served while the log is away."""
        moves = self._vault.moves
        try:
            await moves.refresh()
        except Unavailable:
            return
        if moves.concern(AgentName(tenant, agent)):
            await self._vault.served(tenant, agent)

    async def _cached(self, tenant: str, agent: str, *, counts: bool = True) -> KeptState | None:
        """The state that the cache holds, without decoding it anew when it is at hand; None: a miss, or the cache is away."""
        name = (tenant, agent)
        try:
            kept = self._kept.get(name)
            if kept is not None and await self._cache.token(tenant, agent) == kept.token:
                self.statistics.at_hand += counts
                return kept
            cached = (await self._cache.get([name]))[0]
        except Unavailable:
            return None
        if cached is None or cached.token.generation != self._store.generation:
            return None
        try:
            opened = await open_cached(self._vault, tenant, agent, cached)
        except CACHE_DAMAGE:
            self.statistics.damaged += 1
            await self._forget(tenant, agent)
            return None
        self.statistics.cached += counts
        return self._keep(tenant, agent, KeptState(opened.document, cached.token, opened.time_us, opened.chain))

    async def _miss(self, tenant: str, agent: str) -> KeptState:
        """The newest state from the log, put back into the cache. An agent without events is a state, but is never cached."""
        record = await self._vault.served(tenant, agent)
        kept = await self._fold(record)
        self.statistics.folded += 1
        if kept.token.version == 0:
            return kept
        cipher = await self._vault.cipher(tenant, agent)
        write, _ = seal_whole(cipher, kept.token, kept.time_us, kept.chain, kept.document)
        try:
            await self._cache.apply([write])
        except Unavailable:
            # The state is right without it; the next miss tries again.
            return self._keep(tenant, agent, kept)
        return self._keep(tenant, agent, kept)

    async def _fold(self, record: AgentRecord, *, after: KeptState | None = None, to_version: int | None = None) -> KeptState:
        start = after.folded() if after else None
        folded = await fold_on(self._store, self._vault, record, self._base, start=start, to_version=to_version)
        return KeptState.of(folded, self._store.generation, after=after)

    async def _wait(self, tenant: str, agent: str, version: int, timeout_s: float) -> KeptState:
        """Fold from the log until it holds the version."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    kept = await self._strong(tenant, agent)
                    if kept.token.version >= version:
                        return kept
                    await self._store.signal().wait(_POLL_S)
        except TimeoutError as problem:
            raise DeadlineExceeded(
                f"agent {agent!r} did not reach version {version} within {timeout_s:g} s", tenant=tenant, agent=agent, version=version
            ) from problem

    async def _forget(self, tenant: str, agent: str) -> None:
        self._kept.drop((tenant, agent))
        try:
            await self._cache.remove([(tenant, agent)])
        except Unavailable:
            return

    def _keep(self, tenant: str, agent: str, kept: KeptState) -> KeptState:
        self._kept.put((tenant, agent), kept)
        return kept
