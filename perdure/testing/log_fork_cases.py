"""Store cases: agents that go on from another one's version. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from uuid import uuid4

import msgspec

from perdure import limits
from perdure.engine.log.contract import LogStore
from perdure.engine.log.floor_rows import NO_FLOOR
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, Head, SealedEvent
from perdure.engine.log.snapshot_rows import CHECKPOINT
from perdure.errors import Compacted, Conflict, LimitExceeded, PerdureError, VersionNotFound
from perdure.identifiers import partition_of
from perdure.testing.log_rows import LogUnderTest, RawWriter, agent_of
from perdure.testing.log_snapshot_cases import snapshot_row

__all__ = ["CASES"]

ALL = EventFilter()


async def fork_of(store: LogStore, parent: AgentRecord, version: int, name: str = "") -> AgentRecord:
    """A fork under a new name."""
    agent = name or f"fork-{uuid4().hex}"
    partition = partition_of(parent.tenant, agent, store.partitions)
    row = AgentRecord(parent.tenant, agent, 0, 0, partition, "", 0, "kind", {"a": "b"}, b"fork's key", 1_700_000_000_000_000)
    return await store.create_fork(row, parent, version)


async def _fails(work: Awaitable[object], kind: type[PerdureError]) -> PerdureError:
    try:
        await work
    except kind as problem:
        return problem
    raise AssertionError(f"no {kind.__name__}")


async def a_fork_has_the_history_of_its_parent_and_then_its_own(log: LogUnderTest) -> None:
    """At every version: heads, reads in both directions and in pages, and nothing of it shows with the parent."""
    store, second = await log.open(), await log.open()
    parent, writer = await agent_of(store), RawWriter(store)
    written = await writer.add(parent, 6, epoch=3)
    for version in range(7):
        fork = await fork_of(store, parent, version)
        head = Head(version, 3, written[version - 1].chain) if version else Head(0, 0, bytes(32))
        assert await second.heads([fork]) == [head]
        own = await writer.add(fork, 2, epoch=3)
        history = [*written[:version], *own]
        assert [event.version for event in history] == list(range(1, version + 3))
        (again,) = await second.agents([AgentName(fork.tenant, fork.agent)])
        assert again == fork
        assert (fork.type, fork.labels, fork.data_key) == ("kind", {"a": "b"}, b"fork's key")
        for each in (fork, again):
            await _reads(second, each, history)
    assert await store.read_agent(parent, ALL, 100) == written


async def _reads(store: LogStore, agent: AgentRecord, history: Sequence[SealedEvent], pages: Sequence[int] = (1, 3)) -> None:
    assert await store.read_agent(agent, ALL, 100) == list(history)
    assert await store.read_agent(agent, ALL, 100, descending=True) == list(reversed(history))
    for limit in pages:
        for first in range(1, len(history) + 2):
            where = EventFilter(from_version=first)
            assert await store.read_agent(agent, where, limit) == history[first - 1 : first - 1 + limit]
            until = EventFilter(to_version=first)
            assert await store.read_agent(agent, until, limit, descending=True) == list(reversed(history[:first]))[:limit]
    assert await store.read_agent(agent, EventFilter(types=("nothing",)), 100) == []
    ids = [event.id for event in history]
    assert await store.find(agent, ids) == list(history)
    assert (await store.heads([agent]))[0].version == len(history)


async def forks_of_forks_share_what_each_of_them_shares(log: LogUnderTest) -> None:
    """Below, at and above each border; a row names whose own event it begins at, and what it was forked from."""
    store, chance = await log.open(), RawWriter(await log.open())
    root = await agent_of(store)
    history = {root.agent: await chance.add(root, 4)}
    lines = [root]
    for version in (4, 5, 7):
        fork = await fork_of(store, lines[-1], version)
        own = await chance.add(fork, 2)
        history[fork.agent] = [*history[lines[-1].agent][:version], *own]
        lines.append(fork)
    for parent in lines:
        for version in range(1, len(history[parent.agent]) + 1):
            fork = await fork_of(store, parent, version)
            owner = history[parent.agent][version - 1]
            assert fork.past[0].agent_key == owner.agent_key
            assert fork.parent is not None
            stood = (fork.parent.agent, fork.parent.version, fork.parent.partition, fork.parent.offset, fork.parent.chain)
            assert stood == (parent.agent, version, owner.partition, owner.offset, owner.chain)
            own = await chance.add(fork)
            await _reads(store, fork, [*history[parent.agent][:version], *own], pages=())
    everybody = {record.agent: record for record in await store.list_agents(root.tenant, limit=100)}
    assert all(everybody[record.agent] == record for record in lines)
    children = await store.list_forks(root, limit=100)
    assert [child.agent for child in children] == sorted(child.agent for child in children)
    assert {child.parent.agent for child in children if child.parent} == {root.agent}
    assert await store.list_forks(root, after=children[1].agent, limit=2) == children[2:4]


async def a_moment_before_a_fork_resolves_in_its_past(log: LogUnderTest) -> None:
    """The newest version whose time is at or before it, whoever wrote it."""
    store = await log.open()
    parent, writer = await agent_of(store), RawWriter(store)
    written = []
    for _ in range(5):
        written += await writer.add(parent)
    fork = await fork_of(store, parent, 3)
    assert await store.version_at(fork, written[4].time_us + 1_000_000) == 3
    own = []
    for _ in range(2):
        own += await writer.add(fork)
    history = [*written[:3], *own]
    assert await store.version_at(fork, written[0].time_us - 1) == 0
    for event in history:
        expected = max(each.version for each in history if each.time_us <= event.time_us)
        assert await store.version_at(fork, event.time_us) == expected
    since = EventFilter(since_us=history[1].time_us, until_us=history[3].time_us)
    wanted = [event for event in history if history[1].time_us <= event.time_us <= history[3].time_us]
    assert await store.read_agent(fork, since, 100) == wanted


async def what_cannot_be_forked_leaves_nothing(log: LogUnderTest) -> None:
    """Versions that are not there, removed ones, and lines that are too long; a name that is taken stays what it is."""
    store = await log.open()
    parent, writer = await agent_of(store), RawWriter(store)
    written = await writer.add(parent, 20)
    for version in (-1, 21):
        await _fails(fork_of(store, parent, version, "never"), VersionNotFound)
    taken = await agent_of(store, tenant=parent.tenant)
    assert await fork_of(store, parent, 3, taken.agent) == taken
    first = await fork_of(store, parent, 8)
    assert await fork_of(store, parent, 9, first.agent) == first
    await _compact(store, parent, written, 8)
    await _fails(fork_of(store, parent, 7, "never"), Compacted)
    deep = await fork_of(store, parent, 20)
    for _ in range(limits.FORK_DEPTH_MAX - 1):
        (event,) = await writer.add(deep)
        deep = await fork_of(store, deep, event.version)
    (event,) = await writer.add(deep)
    await _fails(fork_of(store, deep, event.version, "never"), LimitExceeded)
    assert (await fork_of(store, deep, event.version - 1)).past == deep.past
    assert len(await store.read_agent(deep, EventFilter(from_version=8), 1_000)) == event.version - 7
    assert await store.agents([AgentName(parent.tenant, "never")]) == [None]


async def _compact(store: LogStore, agent: AgentRecord, events: Sequence[SealedEvent], floor: int) -> None:
    """Raise a floor; the agent's newest three versions have snapshots."""
    for event in {event.version: event for event in (events[-3], events[-2], events[-1], *_at(events, floor - 1))}.values():
        await store.add_snapshot(snapshot_row(agent, event.version, kind=CHECKPOINT, chain=event.chain))
    await store.raise_floor(agent, floor, _at(events, floor - 1)[0].chain)
    while await store.remove_events(agent, 100):
        pass


def _at(events: Sequence[SealedEvent], version: int) -> list[SealedEvent]:
    return [event for event in events if event.version == version]


async def a_floor_never_passes_what_a_fork_needs(log: LogUnderTest) -> None:
    """Up to the version that a fork begins from, and no further until that fork begins later itself; a fork's past is not its own to remove."""
    store = await log.open()
    parent, writer = await agent_of(store), RawWriter(store)
    written = await writer.add(parent, 20)
    assert await store.first_forked(parent) is None
    fork, low = await fork_of(store, parent, 12), await fork_of(store, parent, 10)
    assert await store.first_forked(parent) == 10
    await _fails(_compact(store, parent, written, 11), Conflict)
    await _compact(store, parent, written, 10)
    (floor,) = await store.floors([parent])
    assert await store.floors([fork, low]) == [floor, floor]
    own = await writer.add(fork, 6)
    history = [*written[:12], *own]
    assert await store.read_agent(fork, EventFilter(from_version=10), 100) == history[9:]
    assert await store.read_agent(fork, ALL, 100, descending=True) == history[:8:-1]
    problem = await _fails(store.read_agent(fork, EventFilter(from_version=9), 100), Compacted)
    assert (problem.agent, problem.details["first_version"]) == (fork.agent, 10)
    for version in (11, 12, 13):
        await _fails(_compact(store, fork, history, version), Conflict)
    others = await writer.add(low, 5)
    await _compact(store, low, [*written[:10], *others], 12)
    assert await store.first_forked(parent) == 12
    await _compact(store, fork, history, 15)
    assert await store.first_forked(parent) is None
    await _fails(store.read_agent(fork, EventFilter(from_version=12), 100), Compacted)
    await _fails(fork_of(store, fork, 12, "never"), Compacted)
    assert await store.find(fork, [history[11].id, history[15].id]) == [history[15]]
    await _compact(store, parent, written, 18)
    assert await store.read_agent(fork, EventFilter(from_version=15), 100) == history[14:]
    assert await store.version_at(fork, own[-1].time_us) == 18


async def of_a_fork_and_a_floor_at_once_one_is_refused(log: LogUnderTest) -> None:
    """Each needs what the other takes away; both at once would leave a fork with a hole in its past."""
    forking, shortening = await log.open(), await log.open()
    writer = RawWriter(forking)
    for _ in range(4):
        parent = await agent_of(forking)
        written = await writer.add(parent, 14)
        for event in written:
            await forking.add_snapshot(snapshot_row(parent, event.version, kind=CHECKPOINT, chain=event.chain))
        for version in range(1, 12):
            fork, floor = await asyncio.gather(
                fork_of(forking, parent, version),
                shortening.raise_floor(parent, version + 1, written[version - 1].chain),
                return_exceptions=True,
            )
            if isinstance(fork, BaseException):
                assert isinstance(fork, Compacted), fork
                assert not isinstance(floor, BaseException), floor
                continue
            assert isinstance(floor, Conflict), floor
            await shortening.remove_events(parent, 100)
            assert await forking.read_agent(fork, EventFilter(from_version=version), 10) == [written[version - 1]]
            break


async def rows_of_forks_are_loaded_elsewhere(log: LogUnderTest) -> None:
    """With this store's own keys, as they were; again is no error."""
    store = await log.open()
    parent, writer = await agent_of(store), RawWriter(store)
    await writer.add(parent, 4)
    fork = await fork_of(store, parent, 3)
    foreign = msgspec.structs.replace(
        fork,
        agent=f"moved-{uuid4().hex}",
        tenant_key=0,
        agent_key=0,
        past=tuple(msgspec.structs.replace(past, agent_key=0) for past in fork.past),
    )
    for _ in range(2):
        (loaded,) = await store.load_forks([foreign])
        assert (loaded.parent, loaded.past, loaded.data_key, loaded.epoch) == (fork.parent, fork.past, fork.data_key, fork.epoch)
    assert await store.read_agent(loaded, ALL, 10) == await store.read_agent(fork, ALL, 10)
    assert await store.floors([loaded]) == [NO_FLOOR]


CASES = (
    a_fork_has_the_history_of_its_parent_and_then_its_own,
    forks_of_forks_share_what_each_of_them_shares,
    a_moment_before_a_fork_resolves_in_its_past,
    what_cannot_be_forked_leaves_nothing,
    a_floor_never_passes_what_a_fork_needs,
    of_a_fork_and_a_floor_at_once_one_is_refused,
    rows_of_forks_are_loaded_elsewhere,
)
