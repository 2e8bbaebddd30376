"""Store cases: events that were removed. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from uuid import UUID, uuid4

from perdure.engine.log.contract import LogStore, Proposal, StaleWriter
from perdure.engine.log.floor_rows import NO_FLOOR, Floor, Written
from perdure.engine.log.records import AgentRecord, EventFilter, SealedEvent, TailEvent
from perdure.engine.log.snapshot_rows import CHECKPOINT, SnapshotMark
from perdure.errors import Compacted, Conflict, IntegrityError, VersionNotFound
from perdure.testing.log_rows import LogUnderTest, RawWriter, agent_of, row
from perdure.testing.log_snapshot_cases import snapshot_row

__all__ = ["CASES"]


async def _two(store: LogStore) -> tuple[AgentRecord, AgentRecord, list[SealedEvent], list[SealedEvent]]:
    """Two agents of one partition whose 20 events each stand in turns."""
    tenant = f"tenant-{uuid4().hex}"
    ours = await agent_of(store, tenant=tenant)
    other = await agent_of(store, tenant=f"other-{uuid4().hex}")
    while other.partition != ours.partition:
        other = await agent_of(store, tenant=f"other-{uuid4().hex}")
    writer = RawWriter(store)
    mine, theirs = [], []
    for _ in range(20):
        mine += await writer.add(ours)
        theirs += await writer.add(other)
    return ours, other, mine, theirs


async def _snapshots(store: LogStore, agent: AgentRecord, events: list[SealedEvent], *versions: int) -> None:
    for version in versions:
        await store.add_snapshot(snapshot_row(agent, version, kind=CHECKPOINT, chain=events[version - 1].chain))


async def _shorten(store: LogStore, agent: AgentRecord, events: list[SealedEvent], version: int) -> Floor:
    await _snapshots(store, agent, events, version - 1, 16, 17, 18)
    floor = await store.raise_floor(agent, version, events[version - 2].chain)
    while await store.remove_events(agent, 3):
        pass
    return floor


async def _fails(work: Awaitable[object]) -> Compacted:
    try:
        await work
    except Compacted as problem:
        return problem
    raise AssertionError("what was removed was read")


async def a_floor_is_where_the_events_begin(log: LogUnderTest) -> None:
    """What is removed is gone, what stays is as it was, and every other opening sees it."""
    store, second = await log.open(), await log.open()
    ours, other, mine, theirs = await _two(store)
    assert await store.floors([ours, other]) == [NO_FLOOR, NO_FLOOR]
    floor = await _shorten(store, ours, mine, 8)
    before = mine[6]
    assert floor == Floor(8, before.chain, before.epoch, before.time_us, before.offset)
    for each in (store, second):
        assert await each.floors([other, ours]) == [NO_FLOOR, floor]
        assert await each.read_agent(ours, EventFilter(from_version=8), 100) == mine[7:]
        assert await each.read_agent(ours, EventFilter(), 100, descending=True) == mine[:6:-1]
        assert await each.read_agent(other, EventFilter(), 100) == theirs
        assert await each.heads([ours, other]) == await store.heads([ours, other])
    assert (await store.heads([ours]))[0].version == 20


async def reading_below_a_floor_names_the_first_version(log: LogUnderTest) -> None:
    """A typed error for all that begins below it, filtered or not; nothing is silently left out."""
    store = await log.open()
    ours, _, mine, _ = await _two(store)
    await _shorten(store, ours, mine, 8)
    for where in (EventFilter(), EventFilter(from_version=7, to_version=12), EventFilter(types=("noted",)), EventFilter(to_version=3)):
        problem = await _fails(store.read_agent(ours, where, 100))
        assert problem.details["first_version"] == 8
        assert (problem.tenant, problem.agent) == (ours.tenant, ours.agent)
    assert await store.read_agent(ours, EventFilter(from_version=21), 10) == []
    assert await store.find(ours, [mine[2].id]) == []
    assert await store.version_at(ours, mine[6].time_us) >= 7
    assert await store.version_at(ours, mine[19].time_us) == 20
    if mine[5].time_us < mine[6].time_us:
        await _fails(store.version_at(ours, mine[5].time_us))


async def a_partition_says_where_its_offsets_are_dense(log: LogUnderTest) -> None:
    """A tail that has passed goes on; one behind is told; one that takes what is left gets all that is left."""
    store = await log.open()
    ours, other, mine, theirs = await _two(store)
    end = (await store.positions())[ours.partition]
    assert (await store.partition_floors())[ours.partition] == 0
    await _shorten(store, ours, mine, 8)
    gone = mine[6].offset
    assert (await store.positions())[ours.partition] == end
    assert await store.partition_floors() == {**dict.fromkeys(range(store.partitions), 0), ours.partition: gone}
    rest = sorted([*mine[7:], *theirs], key=lambda event: event.offset)
    assert await store.read(ours.partition, gone, 100) == [event for event in rest if event.offset > gone]
    assert await store.read(ours.partition, end.offset, 100) == []
    for after in (0, 1, gone - 1):
        assert (await _fails(store.read(ours.partition, after, 100))).details["first_offset"] == gone + 1
    left: list[SealedEvent] = []
    while page := await store.read(ours.partition, left[-1].offset if left else 0, 6, sparse=True):
        left += page
    assert left == rest
    await _fails(store.read_tenant(ours.tenant, ours.partition, 0, EventFilter(), 10))
    assert await store.read_tenant(other.tenant, other.partition, 0, EventFilter(), 100) == theirs


async def a_floor_only_rises_and_keeps_the_newest(log: LogUnderTest) -> None:
    """Another history, a version that is not there, and a lower floor change nothing."""
    store = await log.open()
    ours, _, mine, _ = await _two(store)
    await _snapshots(store, ours, mine, 4, 8, 19, 20)
    for version, chain, error in ((5, bytes(32), IntegrityError), (21, mine[19].chain, VersionNotFound), (22, b"", VersionNotFound)):
        try:
            await store.raise_floor(ours, version, chain)
        except error:
            assert await store.floors([ours]) == [NO_FLOOR]
        else:
            raise AssertionError(f"a floor at {version}")
    assert await store.remove_events(ours, 100) == 0
    high = await store.raise_floor(ours, 9, mine[7].chain)
    assert await store.raise_floor(ours, 4, mine[2].chain) == high
    assert await store.raise_floor(ours, 9, b"whatever") == high
    # Its rows need not be gone before it rises again.
    await _snapshots(store, ours, mine, 17, 18)
    assert (await store.raise_floor(ours, 18, mine[16].chain)).version == 18
    assert [await store.remove_events(ours, 8) for _ in range(4)] == [8, 8, 1, 0]
    assert await store.read_agent(ours, EventFilter(from_version=18), 10) == mine[17:]


async def a_floor_stands_on_snapshots(log: LogUnderTest) -> None:
    """It needs a good one right before it and three in all, of which it is not above the third; and what it stands on is not deleted."""
    store = await log.open()
    ours, _, mine, _ = await _two(store)

    async def refused(version: int) -> bool:
        try:
            await store.raise_floor(ours, version, mine[version - 2].chain)
        except Conflict:
            return await store.floors([ours]) == [NO_FLOOR]
        return False

    await _snapshots(store, ours, mine, 7, 12)
    assert await refused(8), "two are too few"
    await _snapshots(store, ours, mine, 15)
    assert await refused(9), "there is none at version 8"
    assert await refused(13), "version 7 is among the newest three"
    rows = await store.snapshots(ours)
    await store.mark_snapshot(rows[-1], SnapshotMark(damage="cut"))
    await _snapshots(store, ours, mine, 16)
    assert await refused(8), "the one at version 7 is damaged"
    await _snapshots(store, ours, mine, 7, 14)
    assert (await store.raise_floor(ours, 8, mine[6].chain)).version == 8
    ids = [row.id for row in await store.snapshots(ours)]
    gone = await store.delete_snapshots(ours, ids, keep_newest=3, even_permanent=True)
    assert [row.version for row in await store.snapshots(ours)] == [16, 15, 14, 7]
    assert len(gone) == 2


async def removed_events_are_not_appended_again(log: LogUnderTest) -> None:
    """An append that is repeated after its events were removed is answered with their versions; new ones go on."""
    store = await log.open()
    ours, _, mine, _ = await _two(store)
    await _shorten(store, ours, mine, 8)
    for opened in (store, await log.open()):
        assert await _append_again(opened, ours, mine[2]) == {(ours.agent_key, mine[2].id): 3}
    (added,) = await RawWriter(store).add(ours)
    assert added.version == 21
    assert await store.read_agent(ours, EventFilter(from_version=8), 100) == [*mine[7:], added]


async def _append_again(store: LogStore, agent: AgentRecord, event: SealedEvent) -> dict[tuple[int, UUID], int]:
    """Propose an event of the same id until the store says that it is known; what it says."""
    position = (await store.positions())[agent.partition]
    version = (await store.heads([agent]))[0].version
    said: dict[tuple[int, UUID], int] = {}

    def propose(now_us: int, _: Sequence[TailEvent], found: Mapping[tuple[int, UUID], int]) -> Proposal:
        said.update(found)
        return Proposal([] if found else [row(agent, position, version + 1, now_us, id=event.id)], [], [])

    await store.append({agent.partition: position}, propose)
    return said


async def a_writer_that_slept_while_events_were_removed_knows_better(log: LogUnderTest) -> None:
    """The offsets and versions that it takes to be free are free again; they are not what follows all the same."""
    store, second = await log.open(), await log.open()
    ours, other, _, _ = await _two(store)
    sleepers = [RawWriter(second), RawWriter(await log.open())]
    for sleeper in sleepers:
        await sleeper.add(ours)
    writer = RawWriter(store)
    await writer.add(other)
    await writer.add(ours, 10)
    events = await store.read_agent(ours, EventFilter(), 100)
    await _snapshots(store, ours, events, 26, 27, 28, 29)
    await store.raise_floor(ours, 27, events[25].chain)
    while await store.remove_events(ours, 100):
        pass
    for number, sleeper in enumerate(sleepers):
        for _ in range(2):  # one that has forgotten begins anew
            with contextlib.suppress(StaleWriter):
                (added,) = await sleeper.add(ours)
                break
            sleeper.known.clear()
            sleeper.versions.clear()
        assert (added.version, added.offset) == (33 + number, 54 + number)


async def who_wrote_how_much_is_told(log: LogUnderTest) -> None:
    """By agent, over any range of offsets, with what was removed left out."""
    store = await log.open()
    ours, other, mine, theirs = await _two(store)
    both = sorted([*mine, *theirs], key=lambda event: event.offset)
    for after, limit in ((0, 100), (3, 4), (39, 10), (40, 10)):
        some = [event for event in both if after < event.offset <= after + limit]
        expected: dict[int, Written] = {}
        for event in some:
            before = expected.get(event.agent_key, Written("", "", 0, 0, 0, 0))
            whose = (event.tenant, event.agent, event.agent_key)
            expected[event.agent_key] = Written(*whose, event.version, before.events + 1, before.bytes + len(event.payload))
        assert await store.written(ours.partition, after, limit) == [expected[key] for key in sorted(expected)]
    await _shorten(store, ours, mine, 8)
    assert [each.agent for each in await store.written(ours.partition, 0, mine[6].offset)] == [other.agent]


async def appending_goes_on_while_events_are_removed(log: LogUnderTest) -> None:
    """Versions and offsets stay without a hole above the floors, whoever writes meanwhile."""
    store, second = await log.open(), await log.open()
    ours, other, mine, theirs = await _two(store)

    async def write() -> None:
        writer = RawWriter(second)
        for _ in range(15):
            mine.extend(await writer.add(ours))

    async def shorten() -> None:
        for version in (4, 9, 15):
            await _shorten(store, ours, mine, version)

    await asyncio.gather(write(), shorten())
    assert await store.read_agent(ours, EventFilter(from_version=15), 100) == mine[14:]
    floor = (await store.partition_floors())[ours.partition]
    kept = [event for event in sorted([*mine, *theirs], key=lambda event: event.offset) if event.offset > floor]
    assert await store.read(ours.partition, floor, 100) == kept
    assert await store.read_agent(other, EventFilter(), 100) == theirs


CASES = (
    a_floor_is_where_the_events_begin,
    reading_below_a_floor_names_the_first_version,
    a_partition_says_where_its_offsets_are_dense,
    a_floor_only_rises_and_keeps_the_newest,
    a_floor_stands_on_snapshots,
    removed_events_are_not_appended_again,
    a_writer_that_slept_while_events_were_removed_knows_better,
    who_wrote_how_much_is_told,
    appending_goes_on_while_events_are_removed,
)
