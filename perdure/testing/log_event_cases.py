"""Log cases: what an `EventLog` promises over any store. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import pytest

from perdure.engine.changes import append, set_value
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.chain import check_chain
from perdure.engine.log.expected import ANY, NO_STREAM, STREAM_EXISTS, ExpectedVersion
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, EventFilter
from perdure.errors import AlreadyExists, Conflict, Fenced
from perdure.testing.log_rows import LogUnderTest, read_all

__all__ = ["CASES"]

AGENT = AgentName("tenant", "agent")
OTHER = AgentName("tenant", "other")


def some(count: int = 1, type: str = "noted") -> list[Event]:
    """New events that append their number."""
    return [Event(type, changes=(append("/notes", number),)) for number in range(count)]


async def versions_of(log: EventLog, name: AgentName) -> list[int]:
    """The versions of everything that the agent has."""
    return [event.version for event in await log.get_events(name)]


async def check_log(log: EventLog) -> list[int]:
    """Walk the whole log: dense offsets, time that never goes back, every agent's chain whole. The number of events of each partition."""
    counts = []
    chains: dict[int, tuple[int, bytes]] = {}
    for partition in range(log.store.partitions):
        events = await read_all(log.store, partition)
        times = [event.time_us for event in events]
        assert times == sorted(times)
        for event in events:
            version, chain = chains.get(event.agent_key, (0, bytes(32)))
            chains[event.agent_key] = check_chain([event], version=version, chain=chain)
        counts.append(len(events))
    return counts


async def an_event_comes_back_whole(under: LogUnderTest) -> None:
    """Everything that its author said, and its place."""
    log = await under.open_log()
    event = Event(
        "ümlaut.🙂",
        changes=(set_value("/a/b", [1, None, 1.5, "ß"]), append("/notes", {"x": True})),
        data={"any": ["thing"]},
        metadata={"k": 1},
        id=uuid4(),
        source="api",
        actor="alice",
        causation_id=uuid4(),
        correlation_id="c",
        trace_id="t",
        project="p",
        module="m",
        schema_version=3,
        replayable=False,
    )
    done = await log.append_events(AGENT, [event, *some()])
    assert (done.versions, done.version, done.already) == ((1, 2), 2, False)
    recorded = await log.get_event(AGENT, event.id)
    assert isinstance(recorded, RecordedEvent)
    assert {name: getattr(recorded, name) for name in event.__struct_fields__} == {
        name: getattr(event, name) for name in event.__struct_fields__
    }
    assert (recorded.tenant, recorded.agent, recorded.version) == (*AGENT, 1)


async def expectations_are_held(under: LogUnderTest) -> None:
    """Exact, any, no stream, stream exists: on an agent without events, and on one at version 2."""
    log = await under.open_log()
    table: list[tuple[ExpectedVersion, bool, bool]] = [
        (ANY, True, True),
        (NO_STREAM, True, False),
        (STREAM_EXISTS, False, True),
        (0, True, False),
        (1, False, False),
        (2, False, True),
        (3, False, False),
    ]
    for number, (expected, fresh, at_two) in enumerate(table):
        new, old = AgentName("t", f"new {number}"), AgentName("t", f"old {number}")
        await log.append_events(old, some(2))
        for name, version, allowed in ((new, 0, fresh), (old, 2, at_two)):
            if allowed:
                assert (await log.append_events(name, some(), expected=expected)).version == version + 1
                continue
            with pytest.raises(Conflict) as caught:
                await log.append_events(name, some(), expected=expected)
            assert (caught.value.version, caught.value.tenant, caught.value.agent) == (version, *name)
    await check_log(log)


async def a_conflict_leaves_its_neighbours_alone(under: LogUnderTest) -> None:
    """Of many appends that commit together, only the refused one fails; it takes no version and no offset."""
    log = await under.open_log()
    names = [AgentName("t", f"agent {number}") for number in range(20)]
    expected = [7 if number % 5 == 3 else 0 for number in range(20)]
    appends = [log.append_events(name, some(2), expected=version) for name, version in zip(names, expected, strict=True)]
    results = await asyncio.gather(*appends, return_exceptions=True)
    assert [isinstance(result, Conflict) for result in results] == [version == 7 for version in expected]
    assert sum(await check_log(log)) == 16 * 2


async def a_retry_is_answered_not_written(under: LogUnderTest) -> None:
    """The same ids again: the first result, whatever is expected, at once and after many other events, here and from another opening."""
    log, elsewhere = await under.open_log(), await under.open_log()
    by_time, by_chance = some(3), [Event("noted", id=uuid4()) for _ in range(2)]
    assert (await log.append_events(AGENT, by_time, expected=0)).versions == (1, 2, 3)
    assert (await log.append_events(AGENT, by_chance)).versions == (4, 5)
    for turn in range(3):
        for source in (log, elsewhere):
            for expected in (0, 3, ANY, NO_STREAM, 99):
                again = await source.append_events(AGENT, by_time, expected=expected)
                assert (again.versions, again.already) == ((1, 2, 3), True)
                again = await source.append_events(AGENT, by_chance, expected=expected)
                assert (again.versions, again.already) == ((4, 5), True)
        for _ in range(5):
            await asyncio.gather(*(source.append_events(AGENT, some(20)) for source in (log, elsewhere)))
        assert len(await versions_of(log, AGENT)) == 5 + 200 * (turn + 1)
    await check_log(log)


async def the_same_append_at_once_is_written_once(under: LogUnderTest) -> None:
    """Two callers, two openings, one batch or several: one writes, all get the same versions."""
    log, elsewhere = await under.open_log(), await under.open_log()
    for _ in range(5):
        events = some(2)
        results = await asyncio.gather(*((log, elsewhere)[n % 2].append_events(AGENT, events) for n in range(6)))
        assert len({done.versions for done in results}) == 1
        assert [done.already for done in results].count(False) == 1
    assert await versions_of(log, AGENT) == list(range(1, 11))


async def an_id_belongs_to_its_agent(under: LogUnderTest) -> None:
    """Another agent may hold the same id; half a retry is refused."""
    log = await under.open_log()
    first, second = some(2)
    assert not (await log.append_events(AGENT, [first])).already
    assert not (await log.append_events(OTHER, [first])).already
    with pytest.raises(AlreadyExists):
        await log.append_events(AGENT, [first, second])
    assert await versions_of(log, AGENT) == [1]


async def a_loser_tries_again_with_the_same_ids(under: LogUnderTest) -> None:
    """An append that was refused left nothing: the same events go in later, at the right version, without a gap."""
    log, elsewhere = await under.open_log(), await under.open_log()
    mine = some(2)
    await log.append_events(AGENT, some(), expected=0)
    for _ in range(3):
        with pytest.raises(Conflict):
            await elsewhere.append_events(AGENT, mine, expected=0)
    done = await elsewhere.append_events(AGENT, mine, expected=1)
    assert (done.versions, done.already) == ((2, 3), False)
    assert sum(await check_log(log)) == 3


async def no_update_is_lost(under: LogUnderTest) -> None:
    """Many that read a version and append at it: each version is won once, over two openings."""
    logs = [await under.open_log(), await under.open_log()]
    await logs[0].append_events(AGENT, some())

    async def climb(log: EventLog) -> int:
        conflicts = 0
        for event in some(8):
            while True:
                try:
                    await log.append_event(AGENT, event, expected=await log.version(AGENT))
                    break
                except Conflict:
                    conflicts += 1
        return conflicts

    await asyncio.gather(*(climb(logs[n % 2]) for n in range(6)))
    assert await versions_of(logs[0], AGENT) == list(range(1, 50))
    await check_log(logs[0])


async def an_older_epoch_is_fenced(under: LogUnderTest) -> None:
    """After a new owner, the old one writes nothing, wherever it has the log open; its neighbours do."""
    log, elsewhere = await under.open_log(), await under.open_log()
    await elsewhere.append_events(AGENT, some(), epoch=0)
    epoch = await log.take_ownership(AGENT, "host-b")
    assert epoch == 1
    appends = [elsewhere.append_events(name, some(), epoch=0) for name in (AGENT, OTHER)]
    stale, fine = await asyncio.gather(*appends, return_exceptions=True)
    assert isinstance(stale, Fenced)
    assert not isinstance(fine, BaseException)
    assert (await elsewhere.append_events(AGENT, some(), epoch=epoch)).version == 3
    with pytest.raises(Fenced):
        await elsewhere.take_ownership(AGENT, "host-c", expected_epoch=0)
    assert [event.epoch for event in await log.get_events(AGENT)] == [0, 1, 1]
    await check_log(log)


async def a_fenced_agent_takes_no_append(under: LogUnderTest) -> None:
    """Nobody writes between fence and the next owner, also not from an opening that has never seen the agent."""
    log = await under.open_log()
    await log.append_events(AGENT, some(2))
    epoch = await log.fence(AGENT)
    for each in (log, await under.open_log()):
        for claimed in (None, epoch, epoch - 1):
            with pytest.raises(Fenced):
                await each.append_events(AGENT, some(), epoch=claimed)
        with pytest.raises(Fenced):
            await each.take_ownership(AGENT, "host-b", expected_epoch=epoch, over_fence=False)
    owned = await log.take_ownership(AGENT, "host-b", expected_epoch=epoch)
    assert owned == epoch + 1
    assert (await log.append_events(AGENT, some(), epoch=owned)).version == 5


async def a_hand_over_holds_only_where_the_agent_stands(under: LogUnderTest) -> None:
    """Another epoch, version or chain hash: nothing is written. Told again under the same id, it is answered; its first events go with it."""
    log, elsewhere = await under.open_log(), await under.open_log()
    await elsewhere.append_events(AGENT, some(3))
    chain = (await log.get_events(AGENT))[-1].chain
    given = Event("given", correlation_id="m")
    for epoch, version, hashed in ((1, 3, chain), (0, 2, chain), (0, 4, chain), (0, 3, bytes(32))):
        with pytest.raises(Conflict):
            await log.hand_over(AGENT, "host-b", epoch=epoch, version=version, chain=hashed, event=given)
    first = some(2)
    mixed = [Event("noted", id=(await log.get_events(AGENT))[0].id), *first]
    with pytest.raises(AlreadyExists):
        await log.hand_over(AGENT, "host-b", epoch=0, version=3, chain=chain, event=given, first=mixed)
    done = await log.hand_over(AGENT, "host-b", epoch=0, version=3, chain=chain, event=given, first=first)
    assert (done.epoch, done.version, done.already) == (1, 6, False)
    for each in (log, elsewhere):
        again = await each.hand_over(AGENT, "host-b", epoch=0, version=3, chain=chain, event=given, first=first)
        assert again == done._replace(already=True)
    with pytest.raises(Fenced):
        await elsewhere.append_events(AGENT, some(), epoch=0)
    (record,) = await log.store.agents([AGENT])
    assert record is not None
    assert (record.owner, record.epoch) == ("host-b", 1)
    assert [event.epoch for event in await log.get_events(AGENT)] == [0, 0, 0, 1, 1, 1]
    await check_log(log)


async def of_two_hand_overs_one_holds(under: LogUnderTest) -> None:
    """From a fence, whoever is first; the other is refused, wherever it has the log open."""
    logs = [await under.open_log(), await under.open_log()]
    await logs[0].append_events(AGENT, some(2))
    fence = Event("fence")
    fenced = await logs[0].fence_for(AGENT, epoch=0, event=fence)
    assert await logs[1].fence_for(AGENT, epoch=0, event=fence) == fenced._replace(already=True)
    tried = [
        logs[n].hand_over(AGENT, f"host-{n}", epoch=fenced.epoch, version=fenced.version, chain=fenced.chain, event=Event("given"))
        for n in range(2)
    ]
    done = await asyncio.gather(*tried, return_exceptions=True)
    assert sorted(isinstance(each, Fenced) for each in done) == [False, True]
    await check_log(logs[0])


async def a_retry_is_answered_under_a_newer_epoch(under: LogUnderTest) -> None:
    """What was written before the hand-over is still known to be written."""
    log = await under.open_log()
    events = some(2)
    await log.append_events(AGENT, events, epoch=0)
    await log.take_ownership(AGENT, "host-b")
    again = await log.append_events(AGENT, events, epoch=0)
    assert (again.versions, again.already) == ((1, 2), True)


async def _collect(log: EventLog, name: AgentName, count: int) -> list[int]:
    versions: list[int] = []
    stream = log.stream_events(name, EventFilter(), follow=True)
    async for event in stream:
        versions.append(event.version)
        if len(versions) == count:
            break
    return versions


async def a_live_stream_skips_nothing(under: LogUnderTest) -> None:
    """Followers that began before, during and after get every event once, in order, while two openings write."""
    logs = [await under.open_log(), await under.open_log()]
    await logs[0].append_events(AGENT, some())
    total = 1 + 4 * 30

    async def write(log: EventLog, events: Sequence[Event]) -> None:
        for event in events:
            await log.append_event(AGENT, event)

    async with asyncio.TaskGroup() as group:
        followers = [group.create_task(_collect(log, AGENT, total)) for log in logs]
        for number in range(4):
            group.create_task(write(logs[number % 2], some(30)))
        followers.append(group.create_task(_collect(logs[1], AGENT, total)))
    followers.append(asyncio.create_task(_collect(logs[0], AGENT, total)))
    assert [await follower for follower in followers] == [list(range(1, total + 1))] * 4


CASES = (
    an_event_comes_back_whole,
    expectations_are_held,
    a_conflict_leaves_its_neighbours_alone,
    a_retry_is_answered_not_written,
    the_same_append_at_once_is_written_once,
    an_id_belongs_to_its_agent,
    a_loser_tries_again_with_the_same_ids,
    no_update_is_lost,
    an_older_epoch_is_fenced,
    a_fenced_agent_takes_no_append,
    a_hand_over_holds_only_where_the_agent_stands,
    of_two_hand_overs_one_holds,
    a_retry_is_answered_under_a_newer_epoch,
    a_live_stream_skips_nothing,
)
