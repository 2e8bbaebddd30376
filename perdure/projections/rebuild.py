"""A rebuild of the cache of current states while it is read and written (docs/adr/0015-rebuild.md).

Invariant: at every moment a reader finds, of each agent, the whole state of the build that is read, and over time never an older version.

- building: every agent is folded from the log and written into the new build, which nobody reads; projectors go on with the one that is read.
- cutting, from one compare-and-set of the record on: agent by agent the built state takes the place of the one that is read, in one step of
  the cache, unless that one is newer; then the built one is brought forward from the log, and it is tried again.

A process that dies leaves, while building, what was read before, and while cutting, some agents with built states and others without: all of
them right. The next rebuild goes on where it stood. A process that stood still for long finds the record changed, and stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final
from uuid import uuid4

from perdure import limits
from perdure.engine.leases import KeptLease
from perdure.engine.log.contract import LogStore
from perdure.engine.log.marks import mark_of
from perdure.engine.log.records import AgentRecord
from perdure.engine.steps import reach
from perdure.engine.vault import Vault
from perdure.errors import Conflict, Fenced, KeyUnavailable, PerdureError, Unavailable
from perdure.projections.builds import Build, BuildRecord
from perdure.projections.contract import CutOver, Outcome, StateCache, Token
from perdure.projections.fill import Base, fold_state
from perdure.projections.stepping import whole_write

__all__ = ["LEASE", "Progress", "Rebuilder"]

LEASE: Final = "cache/rebuild"
LEASE_S: Final = 30.0
"""How long others wait for a rebuild whose process has died."""

Progress = Callable[[Build], None]


class Rebuilder:
    """Rebuilds states. base: gives snapshots to fold on from; parallel: agents that are folded at once."""

    def __init__(self, store: LogStore, cache: StateCache, vault: Vault, base: Base | None = None, *, parallel: int = 8) -> None:
        self._store = store
        self._cache = cache
        self._vault = vault
        self._base = base
        self._free = asyncio.Semaphore(parallel)
        self._record = BuildRecord(store)
        self._since_s = 0.0
        self._since_events = 0

    async def run(self, tenant: str | None = None, progress: Progress | None = None) -> Build:
        """Rebuild the states of a tenant's agents, or of all (None); the build as it ended.

        What another process left half-done is gone on with first: a build that was being cut over, or one of the same agents. Raises Conflict
        while another process rebuilds or when it was aborted, Fenced when this process lost its turn, Unavailable when a server is away.
        """
        lease = await KeptLease.acquire(self._store, LEASE, uuid4().hex, LEASE_S)
        if lease is None:
            raise Conflict(
                "another process rebuilds already",
                hint=f"`perdure rebuild status` tells how far it is; where it died, its lease ends within {LEASE_S:g} s",
            )
        async with lease:
            before = await self._record.read()
            if before.phase == "cutting":
                done = await self._finish(lease, progress)
                if before.tenant == tenant:
                    return done
            elif not (before.phase == "building" and before.tenant == tenant):
                await self._clean_up(lease)
            if not self._record.build.open:
                await self._record.begin(tenant)
                reach("rebuild.begun")
            return await self._finish(lease, progress)

    async def abort(self) -> Build:
        """End the build that is under way; reads have noticed nothing. The process that works on it removes what it made, or this one does
        where there is none. Raises NotFound without one, Conflict when it is being cut over."""
        build = await self._record.abort()
        lease = await KeptLease.acquire(self._store, LEASE, uuid4().hex, LEASE_S)
        if lease is not None:
            async with lease:
                if await self._record.read() == build:
                    await self._clean_up(lease)
        return self._record.build

    async def status(self) -> tuple[Build, bool]:
        """The newest build, and whether a process works on it."""
        build = await self._record.read()
        return build, any(lease.name == LEASE for lease in await self._store.list_leases(LEASE))

    async def number(self) -> int:
        """A number for agents that are rebuilt one by one."""
        return await self._record.number()

    async def one(self, record: AgentRecord, number: int) -> int:
        """Rebuild one agent at once, also while a rebuild is under way; its version. Raises what stands against folding it, and then nothing
        has changed."""
        return (await self._replace(number, record)).version

    async def _finish(self, lease: KeptLease, progress: Progress | None) -> Build:
        try:
            if self._record.build.phase == "building":
                await self._build(lease, progress)
                reach("rebuild.built")
                await self._record.advance(phase="cutting", after=("", ""))
                reach("rebuild.decided")
            await self._cut(lease, progress)
            return await self._record.advance(phase="done", cleaned=True)
        except Fenced:
            if not await self._record.was_aborted():
                raise
            await self._clean_up(lease)
            raise Conflict(f"build {self._record.build.number} was aborted", hint="what was read before goes on to be read") from None

    # --- building ---
    async def _build(self, lease: KeptLease, progress: Progress | None) -> None:
        build = self._record.build
        if not build.agents:
            agents, events = await self._measure(build.tenant)
            build = await self._record.advance(agents=agents, events=events)
        self._since_s, self._since_events = time.monotonic(), build.events_done
        async for page in self._pages(build.tenant, build.after):
            self._must_hold(lease)
            results = await asyncio.gather(*(self._build_one(build.number, record) for record in page))
            reach("rebuild.page_built")
            failed = [result for result in results if isinstance(result, str)]
            events = sum(result for result in results if isinstance(result, int))
            build = await self._record.advance(
                agents_done=build.agents_done + len(page),
                events_done=build.events_done + events,
                skipped=build.skipped + results.count(0),
                failures=build.failures + len(failed),
                problems=(*build.problems, *failed)[: limits.REBUILD_PROBLEMS_MAX],
                after=(page[-1].tenant, page[-1].agent),
                events_per_s=self._rate(build.events_done + events),
            )
            if progress is not None:
                progress(build)

    async def _build_one(self, number: int, record: AgentRecord) -> int | str:
        """The version that was built, 0 for an agent without a state, or why there is none."""
        async with self._free:
            try:
                return (await self._put(number, record)).version
            except KeyUnavailable:
                # Nobody can read it any more, neither here nor in what is read now.
                await self._cache.remove([(record.tenant, record.agent)])
                return 0
            except Unavailable:
                raise
            except PerdureError as problem:
                return f"{record.tenant}/{record.agent}: {problem.message}"

    async def _put(self, number: int, record: AgentRecord) -> Token:
        """Fold the agent to the log's end and put it into the build. One that is moving to another log, or has gone there, has no state here."""
        if mark_of(record.owner) is not None:
            return Token(self._store.generation, 0, 0)
        state = await fold_state(self._store, self._vault, record, self._base)
        if state.token.version:
            await self._cache.build(number, [whole_write(await self._vault.cipher(record.tenant, record.agent), state)])
        return state.token

    async def _measure(self, tenant: str | None) -> tuple[int, int]:
        """How many agents and events there are."""
        agents = events = 0
        async for page in self._pages(tenant, ("", "")):
            agents += len(page)
            events += sum(head.version for head in await self._store.heads(page))
        return agents, events

    def _rate(self, events_done: int) -> float:
        return (events_done - self._since_events) / max(time.monotonic() - self._since_s, 1e-3)

    # --- cutting over ---
    async def _cut(self, lease: KeptLease, progress: Progress | None) -> None:
        build = self._record.build
        async for page in self._pages(build.tenant, build.after):
            self._must_hold(lease)
            names = [(record.tenant, record.agent) for record in page]
            found = await self._cache.cut_over(build.number, names)
            reach("rebuild.page_cut")
            late = [(record, cut) for record, cut in zip(page, found, strict=True) if cut.outcome in (Outcome.BEHIND, Outcome.NOTHING)]
            failed = [why for why in await asyncio.gather(*(self._cut_late(build.number, *each) for each in late)) if why]
            build = await self._record.advance(
                agents_cut=build.agents_cut + len(page),
                failures=build.failures + len(failed),
                problems=(*build.problems, *failed)[: limits.REBUILD_PROBLEMS_MAX],
                after=(page[-1].tenant, page[-1].agent),
            )
            if progress is not None:
                progress(build)

    async def _cut_late(self, number: int, record: AgentRecord, cut: CutOver) -> str:
        """Bring one forward that is behind, or that the cache has lost again; why that failed, or ''."""
        async with self._free:
            try:
                await self._replace(number, record)
            except KeyUnavailable:
                return ""
            except Unavailable:
                raise
            except PerdureError as problem:
                # Building has told of it already, where there was nothing to cut over.
                return "" if cut.outcome is Outcome.NOTHING else f"{record.tenant}/{record.agent}: {problem.message}"
            return ""

    async def _replace(self, number: int, record: AgentRecord) -> Token:
        """Fold, put, cut over; again while events arrive faster. What the log does not have is no state: it is removed."""
        name = (record.tenant, record.agent)
        for _ in range(limits.REBUILD_ATTEMPTS_MAX):
            token = await self._put(number, record)
            if not token.version:
                await self._cache.remove([name])
                return token
            (cut,) = await self._cache.cut_over(number, [name])
            if cut.outcome in (Outcome.DONE, Outcome.OVER):
                return token
            if cut.token is not None and await self._is_foreign(record, cut.token, token):
                await self._cache.remove([name])
        raise Unavailable(f"agent {record.agent!r} is written to faster than it is folded", tenant=record.tenant, agent=record.agent)

    async def _is_foreign(self, record: AgentRecord, read: Token, built: Token) -> bool:
        """Whether a state that is read, and is above a built one, cannot come from this log."""
        if read.version <= built.version:
            return read > built
        (head,) = await self._store.heads([record])
        return read.generation != self._store.generation or read.version > head.version

    # --- both ---
    async def _pages(self, tenant: str | None, after: tuple[str, str]) -> AsyncIterator[Sequence[AgentRecord]]:
        """Agents after this one, in order of tenant and id."""
        for each in await self._store.tenants() if tenant is None else [tenant]:
            if each < after[0]:
                continue
            last = after[1] if each == after[0] else ""
            while page := await self._store.list_agents(each, after=last, limit=limits.REBUILD_PAGE_AGENTS):
                last = page[-1].agent
                yield page

    async def _clean_up(self, lease: KeptLease) -> None:
        """Remove what a build left that was aborted, or whose process died, page by page."""
        build = self._record.build
        if build.phase == "building":
            build = await self._record.advance(phase="aborted")
        if build.cleaned:
            return
        async for page in self._pages(build.tenant, ("", "")):
            self._must_hold(lease)
            await self._cache.discard(build.number, [(record.tenant, record.agent) for record in page])
        await self._record.advance(cleaned=True)

    @staticmethod
    def _must_hold(lease: KeptLease) -> None:
        if not lease.holds():
            raise Fenced("another process may rebuild by now", hint="`perdure rebuild` goes on where this one stood")
