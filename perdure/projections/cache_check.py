"""Is the cache what the log says? Every agent is compared by token, chain hash and digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from perdure.engine.digest import digest
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentRecord
from perdure.engine.replay import fold_log
from perdure.engine.vault import Vault
from perdure.errors import PerdureError, Unavailable
from perdure.projections.contract import CachedState, StateCache
from perdure.projections.fill import Base, open_cached

__all__ = ["CacheProblem", "CacheReport", "check_cache", "check_cached"]

PAGE_AGENTS: Final = 100
PROBLEMS_MAX: Final = 1_000
"""Problems that a report lists; further ones are only counted."""


class CacheProblem(msgspec.Struct, frozen=True):
    """One agent whose cached state is not right. version: of the cached state; head_version: of the log."""

    tenant: str
    agent: str
    version: int
    head_version: int
    reason: str


class CacheReport(msgspec.Struct):
    """agents: looked at; missing: not cached (no fault: a miss is rebuilt); behind: right, but older than the log, by behind_events in all;
    wrong: not what was written, with a problem for each."""

    agents: int = 0
    same: int = 0
    missing: int = 0
    behind: int = 0
    behind_events: int = 0
    wrong: int = 0
    problems: list[CacheProblem] = msgspec.field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every cached state is right; some may be behind."""
        return not self.wrong

    @property
    def ok(self) -> bool:
        """Whether every cached state is the newest one, and right."""
        return not self.behind and not self.wrong


async def check_cache(
    store: LogStore, cache: StateCache, vault: Vault, *, tenants: Sequence[str] | None = None, base: Base | None = None
) -> CacheReport:
    """Compare every cached state of these tenants (None: all) with the fold of the log. Appends meanwhile show as `behind`.

    base: gives the states that agents whose first events were removed are folded on from; others are folded from their beginning.
    """
    report = CacheReport()
    for tenant in await store.tenants() if tenants is None else tenants:
        after = ""
        while page := await store.list_agents(tenant, after=after, limit=PAGE_AGENTS):
            after = page[-1].agent
            await check_cached(store, cache, vault, page, report, base=base)
    return report


async def check_cached(
    store: LogStore, cache: StateCache, vault: Vault, records: Sequence[AgentRecord], report: CacheReport, *, base: Base | None = None
) -> None:
    """The same for these agents, at most a page of them; the report grows."""
    # The cache is read first: what it holds then can only be older than the heads, never newer.
    states = await cache.get([(record.tenant, record.agent) for record in records])
    heads = await store.heads(records)
    for record, state, head in zip(records, states, heads, strict=True):
        report.agents += 1
        if state is None or state.token.generation < store.generation:
            # Of an older generation nothing is served: it is a miss, and the next write replaces it.
            report.missing += 1
        else:
            await _check(store, vault, record, state, head.version, report, base)


async def _check(
    store: LogStore, vault: Vault, record: AgentRecord, state: CachedState, head_version: int, report: CacheReport, base: Base | None
) -> None:
    try:
        reason = await _difference(store, vault, record, state, head_version, base)
    except Unavailable:
        raise
    except PerdureError as problem:
        reason = f"{type(problem).__name__}: {problem}"
    version = state.token.version
    if reason:
        report.wrong += 1
    elif version < head_version:
        report.behind += 1
        report.behind_events += head_version - version
    else:
        report.same += 1
    if reason and len(report.problems) < PROBLEMS_MAX:
        report.problems.append(CacheProblem(record.tenant, record.agent, version, head_version, reason))


async def _difference(store: LogStore, vault: Vault, record: AgentRecord, state: CachedState, head_version: int, base: Base | None) -> str:
    """Why a cached state is not what the log says of its version, or ''."""
    token = state.token
    if token.generation != store.generation:
        return f"generation {token.generation} is not the log's {store.generation}"
    if token.version > head_version:
        return f"version {token.version} is newer than the log"
    opened = await open_cached(vault, record.tenant, record.agent, state)
    (floor,) = await store.floors([record])
    start = await base(record, token.version) if base is not None and floor.version > 1 else None
    folded = await fold_log(store, vault, record, start=start, to_version=token.version)
    if opened.chain != folded.chain:
        return "the chain hash is not the log's"
    if token.epoch != folded.epoch:
        return f"epoch {token.epoch} is not the log's {folded.epoch}"
    if digest(opened.document) != digest(folded.document):
        return "the document is not the fold of the log"
    return ""
