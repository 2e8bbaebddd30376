"""Store cases with several processes: writers that hold the lock, fail under it, or die under it, and a reader beside them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any
from uuid import UUID

from perdure.engine.log.contract import LogStore, Proposal
from perdure.engine.log.records import AgentName, AgentRecord, Position, TailEvent
from perdure.testing.log_rows import LogUnderTest, RawWriter, agent_of, read_all, row
from perdure.testing.log_surroundings import Opener

__all__ = ["CASES", "Follower", "finish", "follow_writers", "processes", "start"]

WRITERS = 3
APPENDS = 30
CHILD_TIMEOUT_S = 90.0

processes = multiprocessing.get_context("spawn")


def write_many(opener: Opener, names: Sequence[AgentName], appends: int) -> None:
    """A child: append to each agent in turn."""

    async def run() -> None:
        store = await opener()
        writer = RawWriter(store)
        records = [record for record in await store.agents(names) if record is not None]
        for turn in range(appends):
            await writer.add(records[turn % len(records)], 1 + turn % 3)
        await store.close()

    asyncio.run(run())


class Failed(Exception):
    """What a child's proposal raises on purpose."""


def hold_lock(opener: Opener, name: AgentName, how: str, holding: Event, release: Event) -> None:
    """A child: propose one event, wait under the lock until told, then `commit`, `fail` or `die`."""

    async def run() -> None:
        store = await opener()
        (record,) = await store.agents([name])
        assert record is not None
        known = (await store.positions())[record.partition]
        with suppress(Failed):
            await store.append({record.partition: known}, _holding(record, known, how, holding, release))
        await store.close()

    asyncio.run(run())


def _holding(record: AgentRecord, known: Position, how: str, holding: Event, release: Event) -> Any:
    def propose(now_us: int, tail: Sequence[TailEvent], _found: Mapping[tuple[int, UUID], int]) -> Proposal:
        holding.set()
        if not release.wait(CHILD_TIMEOUT_S):
            raise TimeoutError("nobody said how to go on")
        if how == "die":
            os._exit(0)
        if how == "fail":
            raise Failed
        # A store that proposes before it has the lock proposes again, with what was written in between as the tail.
        stands = Position(tail[-1].offset, tail[-1].time_us) if tail else known
        return Proposal([row(record, stands, stands.offset + 1, now_us, type="held")], [], [])

    return propose


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A child that does this; it ends with this process at the latest."""
    child = processes.Process(target=work, args=arguments, daemon=True)
    child.start()
    return child


async def finish(*children: BaseProcess) -> None:
    """Wait for children to end well."""
    for child in children:
        await asyncio.to_thread(child.join, CHILD_TIMEOUT_S)
        assert child.exitcode == 0, f"a writer process ended with {child.exitcode}"


class Follower:
    """Reads the partitions of some agents, from wherever it stands, and holds every event against the one before it."""

    def __init__(self, records: Sequence[AgentRecord]) -> None:
        self.seen = dict.fromkeys(sorted({record.partition for record in records}), 0)
        self.versions = {record.agent_key: 0 for record in records}

    async def step(self, store: LogStore) -> int:
        """Read on; how many events there were."""
        before = sum(self.seen.values())
        for partition, after in list(self.seen.items()):
            for event in await store.read(partition, after, 50):
                self.seen[partition] += 1
                self.versions[event.agent_key] += 1
                assert (event.offset, event.version) == (self.seen[partition], self.versions[event.agent_key])
        return sum(self.seen.values()) - before

    async def rest(self, store: LogStore) -> None:
        """Read to the end."""
        while await self.step(store):
            pass


async def follow_writers(store: LogStore, opener: Opener, records: Sequence[AgentRecord], follower: Follower) -> None:
    """Several processes write to these agents while the follower reads, until it has all of it; nothing is there that it did not see."""
    names = [AgentName(record.tenant, record.agent) for record in records]
    total = sum(follower.seen.values()) + WRITERS * sum(1 + turn % 3 for turn in range(APPENDS))
    children = [start(write_many, opener, names, APPENDS) for _ in range(WRITERS)]
    try:
        while sum(follower.seen.values()) < total:
            if not await follower.step(store):
                assert all(child.exitcode in (None, 0) for child in children), "a writer process failed"
                await store.signal().wait(0.01)
        await finish(*children)
    finally:
        for child in children:
            child.kill()
    for partition, count in follower.seen.items():
        assert len(await read_all(store, partition)) == count


async def writer_processes_leave_no_hole(log: LogUnderTest) -> None:
    """A reader that follows several processes sees every committed event once, in order, with no look ahead of one still open."""
    store = await log.open()
    records = [await agent_of(store, f"agent {number}", "t") for number in range(4)]
    await follow_writers(store, log.opener, records, Follower(records))


async def _beside_a_holder(log: LogUnderTest, how: str) -> list[str]:
    """Types that a reader gets in the end when another process is in the middle of an append while this one appends."""
    store = await log.open()
    record, writer = await agent_of(store), RawWriter(store)
    await writer.add(record, type="before")
    holding, release = processes.Event(), processes.Event()
    child = start(hold_lock, log.opener, AgentName(record.tenant, record.agent), how, holding, release)
    assert await asyncio.to_thread(holding.wait, CHILD_TIMEOUT_S), "the child did not begin its append"
    mine = asyncio.create_task(writer.add(record, type="after"))
    # Whatever the other has done so far is not committed: readers are neither blocked nor shown any of it.
    for _ in range(5):
        assert [event.type for event in await store.read(record.partition, 0, 10)] in (["before"], ["before", "after"])
    release.set()
    await mine
    await finish(child)
    events = await read_all(store, record.partition)
    assert [event.version for event in events] == list(range(1, len(events) + 1))
    return [event.type for event in events]


async def an_open_writer_is_neither_shown_nor_lost(log: LogUnderTest) -> None:
    """An append that began first and commits late is seen once, in the order of the commits, by whoever reads beside it."""
    types = await _beside_a_holder(log, "commit")
    assert sorted(types) == ["after", "before", "held"]
    assert types[0] == "before"


async def a_writer_that_fails_burns_no_offset(log: LogUnderTest) -> None:
    """After its roll-back the next append takes the same offset; readers do not stall."""
    assert await _beside_a_holder(log, "fail") == ["before", "after"]


async def a_writer_that_dies_frees_the_lock(log: LogUnderTest) -> None:
    """A process killed in the middle of its append leaves nothing behind."""
    assert await _beside_a_holder(log, "die") == ["before", "after"]


CASES = (
    writer_processes_leave_no_hole,
    an_open_writer_is_neither_shown_nor_lost,
    a_writer_that_fails_burns_no_offset,
    a_writer_that_dies_frees_the_lock,
)
