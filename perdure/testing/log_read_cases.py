"""Store cases: agents and reads of events. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from perdure.engine.log.records import AgentName, EventFilter, SealedEvent
from perdure.limits import AGENT_ID_LENGTH_MAX, TENANT_LENGTH_MAX
from perdure.testing.log_rows import LogUnderTest, RawWriter, agent_name, agent_of, read_all

__all__ = ["CASES"]


async def agents_are_found_in_the_order_asked(log: LogUnderTest) -> None:
    """Known rows and None, one for each name."""
    store = await log.open()
    first, second = await agent_of(store, "a", "t"), await agent_of(store, "b", "t")
    names = [agent_name(second), AgentName("t", "nobody"), agent_name(first), AgentName("nowhere", "a")]
    assert await store.agents(names) == [second, None, first, None]
    assert await store.agents([]) == []


async def an_agent_that_is_there_stays_as_it_is(log: LogUnderTest) -> None:
    """Creating again returns the row that stands."""
    store = await log.open()
    first = await agent_of(store, "a", "t", type="support", labels={"team": "x"}, data_key=b"1")
    assert await agent_of(store, "a", "t", type="other", data_key=b"2") == first
    assert (first.type, first.labels, first.data_key, first.owner, first.epoch) == ("support", {"team": "x"}, b"1", "", 0)


async def an_agent_created_twice_at_once_is_one_row(log: LogUnderTest) -> None:
    """Whoever loses gets the winner's row, with its key."""
    stores = [await log.open(), await log.open()]
    rows = await asyncio.gather(*(agent_of(stores[n % 2], "same", "t", data_key=bytes([n])) for n in range(8)))
    assert all(record == rows[0] for record in rows)
    assert len(await stores[0].list_agents("t")) == 1


async def names_of_any_script_and_length_work(log: LogUnderTest) -> None:
    """Quotes, emoji, right-to-left, the longest names; neighbours that differ little stay apart."""
    store = await log.open()
    names = ["", "x" * AGENT_ID_LENGTH_MAX, "é", "e\u0301", "🙂" * 64, "שלום", "a'b\"c", "%", "_", "A", "a", "a/b c\n", "$.x"]
    tenants = ["ü" * TENANT_LENGTH_MAX, "T"]
    records = {(t, a): await agent_of(store, a or " ", t) for t in tenants for a in names}
    writer = RawWriter(store)
    for record in records.values():
        await writer.add(record, type=record.agent[:20])
    for (tenant, agent), record in records.items():
        assert record.agent == (agent or " ")
        (event,) = await store.read_agent(record, EventFilter(), 10)
        assert (event.tenant, event.agent, event.type) == (tenant, agent or " ", record.agent[:20])
    listed = [record.agent for record in await store.list_agents("T")]
    assert listed == sorted((agent or " " for agent in names), key=str.encode)


async def agents_are_listed_in_pages(log: LogUnderTest) -> None:
    """Pages follow each other without a hole; type and labels narrow."""
    store = await log.open()
    for number in range(25):
        labels = {"team": "red" if number % 2 else "blue", 'odd "key"': str(number % 5)}
        await agent_of(store, f"agent-{number:02}", "t", type=f"type-{number % 3}", labels=labels)
    await agent_of(store, "agent-00", "other tenant")
    listed: list[str] = []
    while page := await store.list_agents("t", after=listed[-1] if listed else "", limit=7):
        listed += [record.agent for record in page]
    assert listed == [f"agent-{number:02}" for number in range(25)]
    narrow = await store.list_agents("t", type="type-1", labels={"team": "red", 'odd "key"': "2"})
    assert [record.agent for record in narrow] == ["agent-07"]
    assert await store.list_agents("t", labels={"team": "green"}) == []
    assert await store.list_agents("nowhere") == []


async def directory_facts_can_be_set(log: LogUnderTest) -> None:
    """Type and labels are replaced as a whole."""
    store = await log.open()
    record = await agent_of(store, labels={"a": "1"})
    await store.describe_agent(record, type="new", labels={"b": "2"})
    (stands,) = await store.agents([agent_name(record)])
    assert stands is not None
    assert (stands.type, stands.labels, stands.agent_key) == ("new", {"b": "2"}, record.agent_key)


async def tenants_are_listed_and_kept_apart(log: LogUnderTest) -> None:
    """The same agent id in two tenants is two agents, in every read."""
    store = await log.open()
    ours, theirs = await agent_of(store, "same", "ours"), await agent_of(store, "same", "theirs")
    writer = RawWriter(store)
    id_ = uuid4()
    await writer.append((ours, [{"id": id_}, {}]), (theirs, [{"id": id_}]))
    assert await store.tenants() == ["ours", "theirs"]
    for record, count in ((ours, 2), (theirs, 1)):
        events = await store.read_agent(record, EventFilter(), 10)
        assert {event.tenant for event in events} == {record.tenant}
        assert len(events) == count
        assert [event.tenant for event in await store.find(record, [id_])] == [record.tenant]
        assert await store.read_tenant(record.tenant, record.partition, 0, EventFilter(), 10) == events
    assert await store.read_tenant("nowhere", ours.partition, 0, EventFilter(), 10) == []


async def pages_of_a_partition_end(log: LogUnderTest) -> None:
    """Limits hold, and past the newest offset there is nothing."""
    store = await log.open()
    record = await agent_of(store)
    written = await RawWriter(store).add(record, 10)
    assert await store.read(record.partition, 3, 4) == written[3:7]
    assert await store.read(record.partition, 10, 4) == []
    assert await store.read(record.partition, 10_000, 4) == []


async def tails_of_many_partitions_are_read_together(log: LogUnderTest) -> None:
    """Each from its own offset on, in order; another process's appends are seen, and following a tail misses nothing."""
    store, other = await log.open(), await log.open()
    records = [await agent_of(other, f"a{number}") for number in range(12)]
    after = dict.fromkeys(range(store.partitions), 0)
    assert await store.read_tails(after, 10) == []
    assert await store.read_tails({}, 10) == []
    found: dict[int, list[SealedEvent]] = {partition: [] for partition in after}
    writer = RawWriter(other)
    for count in (1, 2, 5):
        for record in records:
            await writer.add(record, count)
        end = {partition: position.offset for partition, position in (await other.positions()).items()}
        while any(len(found[partition]) < offset for partition, offset in end.items()):
            events = await store.read_tails(after, 4)
            assert events == sorted(events, key=lambda event: (event.partition, event.offset))
            for event in events:
                found[event.partition].append(event)
                assert event.offset == after[event.partition] + 1
                after[event.partition] = event.offset
    for partition, events in found.items():
        assert events == await read_all(other, partition)


async def events_of_many_agents_are_read_at_once(log: LogUnderTest) -> None:
    """Each agent's own, from one version to another, in order; nobody else's; what a page holds is there however much lies before it."""
    store = await log.open()
    records = [await agent_of(store, f"agent-{number}", f"tenant-{number % 2}") for number in range(12)]
    empty, writer = await agent_of(store, "empty", "tenant-0"), RawWriter(store)
    written: dict[int, list[SealedEvent]] = {record.agent_key: [] for record in records}
    for _ in range(3):
        for event in await writer.append(*((record, [{}] * 2) for record in records)):
            written[event.agent_key].append(event)
    assert await store.read_many([]) == []
    newest = [(record, 6, 6) for record in records]
    assert await store.read_many([*newest, (empty, 1, 1)]) == [*([written[record.agent_key][5]] for record in records), []]
    # Where events lie in many segments only the newest ones are promised; what comes is never anything else.
    for record, found in zip(records, await store.read_many([(record, 2, 5) for record in records[::-1]]), strict=True):
        its = written[records[11 - records.index(record)].agent_key][1:5]
        assert found == its[len(its) - len(found) :]
    assert await store.read_many([(records[0], 7, 9)]) == [[]]


async def events_of_an_agent_are_filtered(log: LogUnderTest) -> None:
    """Versions, types, times, correlation and trace narrow; both directions; limits."""
    store = await log.open()
    record, other, writer = await agent_of(store), await agent_of(store), RawWriter(store)
    fields = [{"type": "ab"[n % 2], "correlation_id": f"c{n % 3}", "trace_id": f"t{n % 4}"} for n in range(12)]
    events: list[int] = []
    times = []
    for each in fields:
        (event,) = await writer.append((record, [each]))
        await writer.add(other)
        times.append(event.time_us)

    async def versions(where: EventFilter, limit: int = 100, *, descending: bool = False) -> list[int]:
        return [event.version for event in await store.read_agent(record, where, limit, descending=descending)]

    assert await versions(EventFilter(), 5) == [1, 2, 3, 4, 5]
    assert await versions(EventFilter(), 3, descending=True) == [12, 11, 10]
    assert await versions(EventFilter(from_version=4, to_version=6)) == [4, 5, 6]
    assert await versions(EventFilter(from_version=4, to_version=6), 2, descending=True) == [6, 5]
    assert await versions(EventFilter(from_version=13)) == events
    assert await versions(EventFilter(types=("b",), to_version=6)) == [2, 4, 6]
    assert await versions(EventFilter(types=("b", "a", "c"))) == list(range(1, 13))
    assert await versions(EventFilter(correlation_id="c1", trace_id="t0")) == [5]
    by_time = [n for n, time_us in enumerate(times, 1) if times[2] <= time_us <= times[7]]
    assert await versions(EventFilter(since_us=times[2], until_us=times[7])) == by_time
    assert await versions(EventFilter(until_us=times[0] - 1)) == events
    assert await versions(EventFilter(since_us=times[-1] + 1)) == events


async def events_of_a_tenant_are_filtered_and_paged(log: LogUnderTest) -> None:
    """Offsets have holes where other tenants or types stand; paging by the last offset loses nothing."""
    store = await log.open()
    mine = await agent_of(store, tenant="mine")
    other = await agent_of(store, tenant="other")
    while other.partition != mine.partition:
        other = await agent_of(store, tenant="other")
    writer = RawWriter(store)
    for number in range(20):
        await writer.append((mine, [{"type": "ab"[number % 2], "trace_id": "t" if number == 4 else None}]), (other, [{}]))
    everything = await read_all(store, mine.partition)
    expected = [event for event in everything if event.tenant == "mine"]
    paged, after = [], 0
    while page := await store.read_tenant("mine", mine.partition, after, EventFilter(), 6):
        paged += page
        after = page[-1].offset
    assert paged == expected
    where = EventFilter(types=("a",), since_us=expected[3].time_us, until_us=expected[15].time_us, from_version=3, to_version=15)
    times = range(expected[3].time_us, expected[15].time_us + 1)
    wanted = [event for event in expected[2:15] if event.type == "a" and event.time_us in times]
    assert await store.read_tenant("mine", mine.partition, 0, where, 100) == wanted
    assert await store.read_tenant("mine", mine.partition, 0, EventFilter(trace_id="t"), 100) == [expected[4]]


async def events_are_found_by_id(log: LogUnderTest) -> None:
    """In order of version, whatever the order asked; unknown ids are left out."""
    store = await log.open()
    record = await agent_of(store)
    written = await RawWriter(store).add(record, 5)
    ids = [written[3].id, uuid4(), written[1].id, written[3].id]
    assert await store.find(record, ids) == [written[1], written[3]]
    assert await store.find(record, []) == []


async def a_moment_resolves_to_a_version(log: LogUnderTest) -> None:
    """Before the first, at, between, at equal times, after the last."""
    store = await log.open()
    record, empty = await agent_of(store), await agent_of(store)
    base = 4_000_000_000_000_000
    times = [base + offset for offset in (0, 10, 10, 10, 25, 90)]
    await RawWriter(store).append((record, [{"time_us": time_us} for time_us in times]))
    moments = {-1: 0, 0: 1, 9: 1, 10: 4, 24: 4, 25: 5, 89: 5, 90: 6, 10_000: 6}
    assert {moment: await store.version_at(record, base + moment) for moment in moments} == moments
    assert await store.version_at(empty, base) == 0


CASES = (
    agents_are_found_in_the_order_asked,
    an_agent_that_is_there_stays_as_it_is,
    an_agent_created_twice_at_once_is_one_row,
    names_of_any_script_and_length_work,
    agents_are_listed_in_pages,
    directory_facts_can_be_set,
    tenants_are_listed_and_kept_apart,
    pages_of_a_partition_end,
    tails_of_many_partitions_are_read_together,
    events_of_many_agents_are_read_at_once,
    events_of_an_agent_are_filtered,
    events_of_a_tenant_are_filtered_and_paged,
    events_are_found_by_id,
    a_moment_resolves_to_a_version,
)
