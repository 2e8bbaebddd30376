"""Does everything hold? The log's chains and seals, and whether topic and cache say the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from perdure.engine.bus.contract import Bus
from perdure.engine.log.chain import check_chain
from perdure.engine.log.contract import AgentRecord, EventFilter, LogStore
from perdure.engine.log.log import read_pages
from perdure.engine.topic_check import check_topic
from perdure.engine.vault import Vault
from perdure.errors import PerdureError
from perdure.projections.cache_check import check_cache
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base

__all__ = ["Lag", "LogReport", "VerifyReport", "verify"]

AGENTS_PAGE = 200
PROBLEMS_KEPT_MAX = 1_000


class LogReport(msgspec.Struct):
    """agents, events: looked at. problems: what does not hold, the first ones, each one line. problem_count: all of them."""

    agents: int = 0
    events: int = 0
    problem_count: int = 0
    problems: list[str] = msgspec.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every chain, seal and offset holds."""
        return self.problem_count == 0

    def note(self, problem: str) -> None:
        """Keep a problem."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_KEPT_MAX:
            self.problems.append(problem)


class Lag(msgspec.Struct, frozen=True):
    """What is right but not there yet. relay_events: of the log, not on the topic. cache_agents: in an older state than the log's, by
    cache_events in all. A relay and a projector that run bring it down by themselves."""

    relay_events: int = 0
    cache_agents: int = 0
    cache_events: int = 0


class VerifyReport(msgspec.Struct):
    """ok: everything that was compared holds. current: and nothing is behind; lag: by how much it is. topic, cache, snapshots: None where there
    is none to compare (an embedded log, no store)."""

    ok: bool
    current: bool
    lag: Lag
    log: LogReport
    topic: Any = None
    cache: Any = None
    snapshots: Any = None


async def verify(
    store: LogStore,
    vault: Vault,
    *,
    bus: Bus | None = None,
    cache: StateCache | None = None,
    base: Base | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check every agent's chain and seals, every partition's offsets, and where given that topic and cache agree event by event.

    A topic or cache that says nothing wrong and lacks the newest is no fault; it shows in the report's `lag`."""
    log = LogReport()
    for tenant in await store.tenants():
        after = ""
        while page := await store.list_agents(tenant, after=after, limit=AGENTS_PAGE):
            after = page[-1].agent
            for record in page:
                await _check_agent(store, vault, record, log)
                if progress is not None:
                    progress(log.agents, log.events)
    await _check_offsets(store, log)
    topic = await check_topic(store, bus) if bus is not None else None
    cached = await check_cache(store, cache, vault, base=base) if cache is not None else None
    ok = log.ok and (topic is None or topic.sound) and (cached is None or cached.sound)
    lag = Lag(topic.behind if topic else 0, cached.behind if cached else 0, cached.behind_events if cached else 0)
    return VerifyReport(ok, lag == Lag(), lag, log, topic, cached)


async def _check_agent(store: LogStore, vault: Vault, record: AgentRecord, report: LogReport) -> None:
    report.agents += 1
    (floor,) = await store.floors([record])
    version, chain = floor.version - 1, floor.chain
    if version:
        anchor = await store.snapshots(record, to_version=version, limit=1, good=True)
        if not anchor or (anchor[0].version, anchor[0].chain) != (version, chain):
            report.note(f"{record.tenant}/{record.agent} version {version}: no whole snapshot stands for the events that were removed")
    try:
        async for page in read_pages(store, record, EventFilter(from_version=floor.version)):
            version, chain = check_chain(page, version=version, chain=chain)
            await vault.open_all(page)
            report.events += len(page)
    except PerdureError as problem:
        if problem.retryable:
            raise
        report.note(f"{record.tenant}/{record.agent} version {problem.version}: {problem.message}")


async def _check_offsets(store: LogStore, report: LogReport) -> None:
    counted = 0
    floors = await store.partition_floors()
    for partition, end in (await store.positions()).items():
        after = time_us = 0
        while after < end.offset and (page := await store.read(partition, after, 1_000, sparse=after < floors[partition])):
            for event in page:
                # Up to the floor offsets may have been removed.
                if event.offset <= after or (event.offset != after + 1 and event.offset > floors[partition] + 1):
                    report.note(f"partition {partition}: offset {event.offset} follows offset {after}")
                if event.time_us < time_us:
                    report.note(f"partition {partition}: time goes back at offset {event.offset}")
                after, time_us = event.offset, event.time_us
            counted += len(page)
    if report.ok and counted < report.events:
        report.note(f"the partitions hold {counted} events, the agents {report.events}")
