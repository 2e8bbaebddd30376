"""Store cases: agents that come into a living log from another one. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import msgspec

from perdure.engine.log.arrival_rows import ARRIVALS, Settling
from perdure.engine.log.contract import LogStore
from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.records import AgentRecord, EventFilter, Position, SealedEvent
from perdure.errors import Compacted, Conflict, IntegrityError, PerdureError
from perdure.identifiers import partition_of
from perdure.testing.log_rows import LogUnderTest, RawWriter, agent_name, agent_of, read_all, row

__all__ = ["CASES"]

LONG_AGO_US = 1_600_000_000_000_000
MARK = "perdure/staged t1"


async def _neighbours(store: LogStore) -> tuple[AgentRecord, AgentRecord]:
    """A marked agent and one of the log's own, of one tenant and partition."""
    coming = await agent_of(store, owner=MARK)
    while True:
        name = f"agent-{uuid4().hex}"
        if partition_of(coming.tenant, name, store.partitions) == coming.partition:
            return coming, await agent_of(store, name, coming.tenant)


def _history(agent: AgentRecord, first: int, last: int) -> list[SealedEvent]:
    """Events of another log, with times of long ago and epochs of their own."""
    made = [row(agent, Position(0, 0), version, LONG_AGO_US + version, epoch=3, type="noted") for version in range(first, last + 1)]
    return [msgspec.structs.replace(event, correlation_id="run" if event.version % 2 else None) for event in made]


async def _refused(work: object, kind: type[PerdureError]) -> None:
    try:
        await work  # type: ignore[misc]
    except kind:
        return
    raise AssertionError(f"was not refused with {kind.__name__}")


async def what_comes_in_keeps_everything_but_its_place(log: LogUnderTest) -> None:
    """Offsets are dense between the appends of others, and everybody reads both histories whole."""
    store, other = await log.open(), await log.open()
    coming, own = await _neighbours(store)
    await store.put_document(ARRIVALS, "one", b"", expected=0)
    writer = RawWriter(other)
    events = _history(coming, 1, 40)
    for start in range(0, 40, 10):
        await writer.add(own, 3)
        await store.receive_events([coming], events[start : start + 10], owner=MARK)
    await writer.add(own, 3)
    placed = await store.read_agent(coming, EventFilter(), 100)
    assert [msgspec.structs.replace(event, offset=1) for event in placed] == events
    partition = await read_all(other, coming.partition)
    assert [event.version for event in partition if event.agent_key == own.agent_key] == list(range(1, 16))
    assert [event for event in partition if event.agent_key == coming.agent_key] == placed
    times = [event.time_us for event in partition if event.agent_key == own.agent_key]
    assert times == sorted(times)
    for each in (store, other):
        (head,) = await each.heads([coming])
        assert (head.version, head.epoch, head.chain) == (40, 3, events[-1].chain)
        assert await each.version_at(coming, LONG_AGO_US + 12) == 12
        assert await each.find(coming, [events[30].id]) == [placed[30]]
        where = EventFilter(since_us=LONG_AGO_US, until_us=LONG_AGO_US + 15)
        found = await each.read_tenant(coming.tenant, coming.partition, 0, where, 100)
        assert [event.version for event in found] == list(range(1, 16))


async def what_does_not_follow_or_is_not_marked_does_not_come_in(log: LogUnderTest) -> None:
    """A hole, a repetition, another owner: nothing of the call is in."""
    store = await log.open()
    coming, own = await _neighbours(store)
    events = _history(coming, 1, 10)
    await store.receive_events([coming], events[:4], owner=MARK)
    for wrong in (events[:4], events[5:], [*events[4:6], events[7]]):
        await _refused(store.receive_events([coming], wrong, owner=MARK), IntegrityError)
    await _refused(store.receive_events([coming], events[4:], owner="perdure/staged t2"), Conflict)
    await _refused(store.receive_events([own], _history(own, 1, 3), owner=MARK), Conflict)
    assert len(await read_all(store, coming.partition)) == 4
    await store.receive_events([coming], [], owner=MARK)
    await store.receive_events([coming], events[4:], owner=MARK)
    assert len(await store.read_agent(coming, EventFilter(), 100)) == 10


async def a_mark_is_taken_away_once_with_the_last_event_or_by_who_swaps_it(log: LogUnderTest) -> None:
    """Of a commit and an abort at the same time one wins, and the log shows which."""
    store, other = await log.open(), await log.open()
    for _ in range(8):
        coming, _own = await _neighbours(store)
        await store.receive_events([coming], _history(coming, 1, 3), owner=MARK)
        (last,) = _history(coming, 4, 4)
        committed, swapped = await asyncio.gather(
            store.receive_events([coming], [last], owner=MARK, settle=Settling("", 9)),
            other.swap_owner(coming, MARK, "perdure/left-over t1"),
            return_exceptions=True,
        )
        (standing,) = [each for each in await store.agents([agent_name(coming)]) if each is not None]
        (head,) = await store.heads([coming])
        if swapped is True:
            assert isinstance(committed, Conflict)
            assert (standing.owner, head.version) == ("perdure/left-over t1", 3)
        else:
            assert (committed, swapped) == (None, False)
            assert (standing.owner, standing.epoch, head.version) == ("", 9, 4)


async def a_history_may_begin_at_its_floor(log: LogUnderTest) -> None:
    """Versions that were removed where it comes from are not there; the partition has no hole."""
    store = await log.open()
    coming, own = await _neighbours(store)
    await store.load_floor(coming, Floor(11, b"c" * 32, 3, LONG_AGO_US, 0), [])
    await _refused(store.receive_events([coming], _history(coming, 1, 3), owner=MARK), IntegrityError)
    await RawWriter(store).add(own, 2)
    await store.receive_events([coming], _history(coming, 11, 20), owner=MARK)
    assert [event.version for event in await store.read_agent(coming, EventFilter(from_version=11), 100)] == list(range(11, 21))
    assert len(await read_all(store, coming.partition)) == 12


async def a_floor_may_be_put_above_what_is_there(log: LogUnderTest) -> None:
    """What lies before it can be removed; what follows it comes in; and the log says how much room it takes."""
    store = await log.open()
    coming, _own = await _neighbours(store)
    events = _history(coming, 1, 20)
    await store.receive_events([coming], events[:5], owner=MARK)
    for version in (8, 11):
        floor = Floor(version, events[version - 2].chain, 3, LONG_AGO_US, 5)
        await store.load_floor(coming, floor, [(event.id, event.version) for event in events[: version - 1]])
    await _refused(store.receive_events([coming], events[5:], owner=MARK), IntegrityError)
    await store.receive_events([coming], events[10:], owner=MARK)
    assert [event.version for event in await store.read_agent(coming, EventFilter(from_version=11), 100)] == list(range(11, 21))
    while await store.remove_events(coming, 2):
        pass
    await _refused(store.read_agent(coming, EventFilter(), 100), Compacted)
    await _refused(store.read(coming.partition, 0, 100), Compacted)
    assert (await store.heads([coming]))[0].version == 20
    assert (await store.room()).bytes > 0


async def a_fork_comes_in_behind_what_it_goes_on_from(log: LogUnderTest) -> None:
    """Under its own mark, from the version after the one that it begins at."""
    store = await log.open()
    coming, own = await _neighbours(store)
    await RawWriter(store).add(own, 4)
    row_ = msgspec.structs.replace(coming, agent="fork", tenant_key=0, agent_key=0, data_key=b"another")
    fork = await store.create_fork(row_, own, 3)
    await _refused(store.receive_events([fork], _history(fork, 1, 2), owner=MARK), IntegrityError)
    await store.receive_events([fork], _history(fork, 4, 6), owner=MARK)
    found = await store.read_agent(fork, EventFilter(), 100)
    assert [(event.agent, event.version) for event in found] == [(own.agent, 1), (own.agent, 2), (own.agent, 3)] + [
        ("fork", version) for version in (4, 5, 6)
    ]


CASES = (
    what_comes_in_keeps_everything_but_its_place,
    what_does_not_follow_or_is_not_marked_does_not_come_in,
    a_mark_is_taken_away_once_with_the_last_event_or_by_who_swaps_it,
    a_history_may_begin_at_its_floor,
    a_floor_may_be_put_above_what_is_there,
    a_fork_comes_in_behind_what_it_goes_on_from,
)
