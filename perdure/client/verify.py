"""Does everything hold? The log's chains and seals, and whether topic and cache say the same."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from perdure import limits
from perdure.client.verify_log import LogReport, check_agent, check_offsets
from perdure.client.verify_order import (
    Checkpoint,
    Looked,
    Pacer,
    VerifyOrder,
    is_sampled,
    load_checkpoint,
    sampled_partitions,
    save_checkpoint,
)
from perdure.client.verify_snapshots import SnapshotsReport, verify_snapshots_of
from perdure.engine.bus.contract import Bus
from perdure.engine.log.contract import LogStore
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentRecord
from perdure.engine.steps import reach
from perdure.engine.topic_check import TopicReport, check_topic
from perdure.engine.vault import Vault
from perdure.projections.cache_check import CacheReport, check_cached
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base
from perdure.snapshots.shelf import SnapshotShelf

__all__ = ["Lag", "LogReport", "Verification", "VerifyReport", "verify"]


Progress = Callable[[int, int], None]
"""progress(events read, events to read, about)"""


class Lag(msgspec.Struct, frozen=True):
    """What is right but not there yet. relay_events: of the log, not on the topic. cache_agents: in an older state than the log's, by
    cache_events in all. A relay and a projector that run bring it down by themselves."""

    relay_events: int = 0
    cache_agents: int = 0
    cache_events: int = 0


class VerifyReport(msgspec.Struct):
    """ok: everything could be read, and holds. damaged: something does not hold; neither: keys are missing (`log.missing_keys`). current: nothing
    is behind; lag: by how much it is. topic, cache, snapshots: None where there is none to compare (an embedded log, no store). looked: at what."""

    ok: bool
    damaged: bool
    current: bool
    lag: Lag
    log: LogReport
    topic: Any = None
    cache: Any = None
    snapshots: Any = None
    looked: Looked = Looked()


class Verification:
    """Looks at agents one by one (chain, seals, cached state, snapshots), then at partitions (offsets, topic).

    bus, cache, shelf: None where there is none to compare. base: gives the states that agents whose first events were removed go on from.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        bus: Bus | None = None,
        cache: StateCache | None = None,
        base: Base | None = None,
        shelf: SnapshotShelf | None = None,
        order: VerifyOrder | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._log, self._store = log, log.store
        self._bus, self._cache, self._base, self._shelf = bus, cache, base, shelf
        self._order = (order or VerifyOrder()).checked()
        self._progress = progress
        self._pacer = Pacer(self._order.events_per_s)
        self._noted_s = time.monotonic()
        self._total = 0
        now_us = time.time_ns() // 1_000
        self._point = Checkpoint(self._order.sample, self._order.seed, now_us, now_us)
        self._report_of_log, self._snapshots = LogReport(), SnapshotsReport()
        self._topic, self._cached = TopicReport([]), CacheReport()

    async def run(self) -> VerifyReport:
        """Look at everything that was ordered. Raises Unavailable where a server is away; what was noted until then can be gone on with."""
        before = await load_checkpoint(self._store) if self._order.resume else None
        if before is not None and not before.ended_us:
            self._go_on(before)
        await self._measure()
        if not self._point.agents_over:
            await self._agents()
            self._point = replace(self._point, agents_over=True)
            await self._note()
        await self._partitions()
        report = self._report()
        self._point = replace(self._point, ended_us=time.time_ns() // 1_000, ok=report.ok, damaged=report.damaged)
        await self._note(at_once=True)
        report.looked = self._looked()
        return report

    def _go_on(self, before: Checkpoint) -> None:
        self._point = replace(before, resumed=before.resumed + 1)
        self._report_of_log = msgspec.convert(before.log, LogReport)
        self._snapshots = msgspec.convert(before.snapshots, SnapshotsReport)
        self._topic = msgspec.convert(before.topic, TopicReport)
        self._cached = msgspec.convert(before.cache, CacheReport)

    async def _measure(self) -> None:
        """About how many events there are to read, for the time that is left."""
        point, floors = self._point, await self._store.partition_floors()
        sizes = {partition: max(0, end.offset - floors[partition]) for partition, end in (await self._store.positions()).items()}
        chosen = sampled_partitions(self._store.partitions, point.sample, point.seed)
        passes = 1 if self._bus is None else 2
        self._total = round(sum(sizes.values()) * point.sample) + passes * sum(sizes.get(partition, 0) for partition in chosen)

    async def _agents(self) -> None:
        async for page in self._pages():
            sampled = [record for record in page if is_sampled(record, self._point.sample, self._point.seed)]
            opened = [
                record for record in sampled if await check_agent(self._store, self._log.vault, record, self._report_of_log, self._read)
            ]
            if self._shelf is not None:
                for record in opened:
                    await verify_snapshots_of(self._log, self._shelf, record, self._snapshots)
            if self._cache is not None and opened:
                await check_cached(self._store, self._cache, self._log.vault, opened, self._cached, base=self._base)
            last = page[-1]
            self._point = replace(self._point, after=(last.tenant, last.agent), agents_total=self._point.agents_total + len(page))
            await self._note()

    async def _pages(self) -> AsyncIterator[Sequence[AgentRecord]]:
        since = self._point.after
        for tenant in await self._store.tenants():
            after = since[1] if tenant == since[0] else ""
            while tenant >= since[0] and (page := await self._store.list_agents(tenant, after=after, limit=limits.VERIFY_PAGE_AGENTS)):
                after = page[-1].agent
                yield page

    async def _partitions(self) -> None:
        point = self._point
        for partition in sampled_partitions(self._store.partitions, point.sample, point.seed):
            if partition in point.partitions_done:
                continue
            counted = await check_offsets(self._store, partition, self._report_of_log, self._read)
            if self._bus is not None:
                found = await check_topic(self._store, self._bus, partitions=[partition], read=self._read)
                self._topic.partitions += found.partitions
            done = (*self._point.partitions_done, partition)
            self._point = replace(self._point, partitions_done=done, counted=self._point.counted + counted)
            await self._note()
        log = self._report_of_log
        if log.ok and point.sample >= 1 and self._point.counted < log.events:
            log.note(f"the partitions hold {self._point.counted} events, the agents {log.events}")

    async def _read(self, events: int) -> None:
        """So many events were read."""
        self._point = replace(self._point, events=self._point.events + events)
        if self._progress is not None:
            self._progress(self._point.events, max(self._total, self._point.events))
        await self._pacer.spent(events)

    async def _note(self, *, at_once: bool = False) -> None:
        """Keep where it stands, now and then; an event that was read since is read again."""
        if not self._order.keep or (not at_once and time.monotonic() - self._noted_s < limits.VERIFY_NOTE_S):
            return
        self._noted_s = time.monotonic()
        found = {"log": self._report_of_log, "topic": self._topic, "cache": self._cached, "snapshots": self._snapshots}
        plain = {name: msgspec.to_builtins(report) for name, report in found.items()}
        self._point = replace(self._point, updated_us=time.time_ns() // 1_000, **plain)
        await save_checkpoint(self._store, self._point)
        reach("verify.noted")

    def _looked(self) -> Looked:
        return self._point.looked(self._store.partitions, self._report_of_log.agents)

    def _report(self) -> VerifyReport:
        log = self._report_of_log
        topic = None if self._bus is None else self._topic
        cached = None if self._cache is None else self._cached
        snapshots = None if self._shelf is None else self._snapshots
        sound = log.ok and (topic is None or topic.sound) and (cached is None or cached.sound) and (snapshots is None or snapshots.ok)
        lag = Lag(topic.behind if topic else 0, cached.behind if cached else 0, cached.behind_events if cached else 0)
        return VerifyReport(sound and not log.agents_unread, not sound, lag == Lag(), lag, log, topic, cached, snapshots)


async def verify(
    store: LogStore, vault: Vault, *, bus: Bus | None = None, cache: StateCache | None = None, base: Base | None = None
) -> VerifyReport:
    """Check every agent's chain and seals, every partition's offsets, and where given that topic and cache agree event by event.

    A topic or cache that says nothing wrong and lacks the newest is no fault; it shows in the report's `lag`."""
    return await Verification(EventLog(store, vault), bus=bus, cache=cache, base=base).run()
