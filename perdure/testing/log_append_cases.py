"""Store cases: what `LogStore.append` promises. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from uuid import UUID, uuid4

import pytest

from perdure.engine.log.contract import Proposal, StaleWriter
from perdure.engine.log.decide import FENCED, OWNED
from perdure.engine.log.records import AgentRecord, Head, Position, TailEvent
from perdure.identifiers import uuid7
from perdure.limits import TAIL_EVENTS_MAX
from perdure.testing.log_rows import LogUnderTest, RawWriter, agent_name, agent_of, read_all, row

__all__ = ["CASES"]


async def new_log_stands_at_zero(log: LogUnderTest) -> None:
    """Every partition of a new log is empty."""
    store = await log.open()
    assert await store.positions() == {partition: Position(0, 0) for partition in range(store.partitions)}
    assert await store.read(0, 0, 10) == []
    assert await store.tenants() == []
    assert store.generation >= 1


async def offsets_are_dense_and_positions_told(log: LogUnderTest) -> None:
    """Appends of different sizes number a partition 1, 2, 3 …, and what append returns is where it stands."""
    store = await log.open()
    record, writer = await agent_of(store), RawWriter(store)
    written = [event for count in (1, 3, 2) for event in await writer.add(record, count)]
    assert [event.offset for event in written] == [1, 2, 3, 4, 5, 6]
    assert await read_all(store, record.partition, page=4) == written
    assert writer.known[record.partition] == Position(6, written[-1].time_us) == (await store.positions())[record.partition]
    assert await store.heads([record]) == [Head(6, 0, written[-1].chain)]


async def every_column_is_read_back(log: LogUnderTest) -> None:
    """Full and empty columns come back as they were written."""
    store = await log.open()
    record = await agent_of(store)
    full = {
        "type": "völlig.neu 🙂",
        "causation_id": uuid4(),
        "correlation_id": "c" * 256,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "project": "projekt ß",
        "module": "'; DROP TABLE events; --",
        "epoch": 7,
        "id": UUID(int=1),
        "payload": bytes(range(256)) * 2000,
    }
    written = await RawWriter(store).append((record, [full, {"payload": b""}]))
    assert await store.read(record.partition, 0, 10) == written


async def known_positions_bring_no_tail(log: LogUnderTest) -> None:
    """A writer that wrote last sees nothing newer."""
    store = await log.open()
    record, writer = await agent_of(store), RawWriter(store)
    await writer.add(record, 2)
    await writer.add(record)
    assert writer.tails == [[], []]


async def events_of_others_are_the_tail(log: LogUnderTest) -> None:
    """What somebody else wrote since is told, in order and whole, before anything is written."""
    store, other = await log.open(), await log.open()
    record, writer = await agent_of(store), RawWriter(store)
    await writer.add(record)
    news = await RawWriter(other).add(record, 3, type="from elsewhere")
    mine = await writer.add(record)
    expected = [TailEvent(e.partition, e.offset, e.time_us, e.agent_key, e.version, e.epoch, e.type, e.chain) for e in news]
    assert writer.tails[-1] == expected
    assert (mine[0].offset, mine[0].version) == (5, 5)


async def knowledge_too_old_is_refused(log: LogUnderTest) -> None:
    """More than the limit of newer events is StaleWriter, with nothing written."""
    store = await log.open()
    record, writer, late = await agent_of(store), RawWriter(store), RawWriter(store)
    await late.add(record)
    left = TAIL_EVENTS_MAX + 1
    while left:
        left -= len(await writer.add(record, min(left, 4_000)))
    before = await store.positions()
    with pytest.raises(StaleWriter):
        await late.add(record)
    assert await store.positions() == before
    assert (await RawWriter(store).add(record))[0].offset == before[record.partition].offset + 1


async def ids_not_in_the_log_are_not_found(log: LogUnderTest) -> None:
    """A look-up that finds nothing tells nothing; the proposal stands."""
    store = await log.open()
    record = await agent_of(store)
    calls = await _propose_with_lookup(log, record, uuid4())
    assert calls[-1] == {}


async def ids_in_the_log_are_told_and_proposed_again(log: LogUnderTest) -> None:
    """A look-up that finds its id tells the version; another agent's same id is not found."""
    store = await log.open()
    record, other, id_ = await agent_of(store), await agent_of(store), uuid4()
    await RawWriter(store).append((record, [{}, {"id": id_}]))
    calls = await _propose_with_lookup(log, record, id_)
    assert (calls[0], calls[-1]) == ({}, {(record.agent_key, id_): 2})
    assert (await _propose_with_lookup(log, other, id_))[-1] == {}


async def _propose_with_lookup(log: LogUnderTest, record: AgentRecord, id_: UUID) -> list[dict[tuple[int, UUID], int]]:
    store = await log.open()
    calls: list[dict[tuple[int, UUID], int]] = []

    def propose(_now_us: int, _tail: Sequence[TailEvent], found: Mapping[tuple[int, UUID], int]) -> Proposal:
        calls.append(dict(found))
        return Proposal([], [(record.partition, record.agent_key, id_)], [])

    known = await store.positions()
    assert await store.append({record.partition: known[record.partition]}, propose) == {record.partition: known[record.partition]}
    return calls


async def an_id_that_stands_twice_is_told_not_written(log: LogUnderTest) -> None:
    """A fresh UUIDv7 needs no look-up: the store's own index refuses it, and the store proposes again with what it found."""
    store = await log.open()
    record, id_ = await agent_of(store), uuid7()
    await RawWriter(store).append((record, [{"id": id_}]))
    assert id_.int >> 80 >= store.look_before_ms(record.partition, 0, 1)
    known = (await store.positions())[record.partition]
    calls: list[dict[tuple[int, UUID], int]] = []

    def propose(now_us: int, _tail: Sequence[TailEvent], found: Mapping[tuple[int, UUID], int]) -> Proposal:
        calls.append(dict(found))
        rows = [] if found else [row(record, known, 2, now_us), row(record, Position(2, now_us), 3, now_us, id=id_)]
        return Proposal(rows, [], [])

    assert await store.append({record.partition: known}, propose) == {record.partition: known}
    assert (calls[0], calls[-1]) == ({}, {(record.agent_key, id_): 1})
    assert len(await read_all(store, record.partition)) == 1


async def a_proposal_that_raises_writes_nothing(log: LogUnderTest) -> None:
    """The error comes out as it is, the lock is free again, and no offset is lost."""
    store = await log.open()
    record, writer = await agent_of(store), RawWriter(store)
    await writer.add(record)
    refusal = ValueError("no")

    def propose(_now_us: int, _tail: Sequence[TailEvent], _found: Mapping[tuple[int, UUID], int]) -> Proposal:
        raise refusal

    with pytest.raises(ValueError, match="no") as caught:
        await store.append(await store.positions(), propose)
    assert caught.value is refusal
    assert (await writer.add(record))[0].offset == 2


async def one_append_spans_partitions(log: LogUnderTest) -> None:
    """Rows of several agents in several partitions go in together, each dense in its own."""
    store = await log.open()
    tenant = f"tenant-{uuid4().hex}"
    records = [await agent_of(store, f"agent {number}", tenant) for number in range(24)]
    writer = RawWriter(store)
    await writer.append(*[(record, [{}] * (number % 3 + 1)) for number, record in enumerate(records)])
    heads = await store.heads(records)
    assert [head.version for head in heads] == [number % 3 + 1 for number in range(24)]
    assert sum(position.offset for position in (await store.positions()).values()) == 48
    for partition in range(store.partitions):
        await read_all(store, partition)


async def ownership_changes_with_its_rows(log: LogUnderTest) -> None:
    """Owner and epoch change in the same commit as the event that says so."""
    store = await log.open()
    record = await agent_of(store)
    known = await store.positions()

    def propose(now_us: int, _tail: Sequence[TailEvent], _found: Mapping[tuple[int, UUID], int]) -> Proposal:
        event = row(record, known[record.partition], 1, now_us, epoch=1, type=OWNED)
        return Proposal([event], [], [(record.agent_key, "host-b", 1)])

    await store.append({record.partition: known[record.partition]}, propose)
    (stands,) = await store.agents([agent_name(record)])
    assert stands is not None
    assert (stands.owner, stands.epoch) == ("host-b", 1)
    assert (await store.heads([record]))[0].epoch == 1


async def heads_tell_a_fence_until_the_next_owner(log: LogUnderTest) -> None:
    """A fenced agent stays so until somebody owns it; its neighbour is not fenced."""
    store = await log.open()
    record, other, writer = await agent_of(store), await agent_of(store), RawWriter(store)
    fenced = []
    for type_ in ("noted", FENCED, OWNED, "noted", FENCED, OWNED):
        await writer.append((record, [{"type": type_}]), (other, [{}]))
        fenced += [head.fenced for head in await store.heads([record, other])]
    assert fenced == [False, False, True, False, False, False, False, False, True, False, False, False]


async def appends_of_two_openings_are_dense(log: LogUnderTest) -> None:
    """Two openings of one log, four writers each, on shared agents: no offset and no version is lost or given twice."""
    stores = [await log.open(), await log.open()]
    tenant = f"tenant-{uuid4().hex}"
    records = [await agent_of(stores[0], f"agent {number}", tenant) for number in range(3)]

    async def write(number: int) -> None:
        # One writer a task: each has knowledge of its own, and so much of what it sees is news.
        writer = RawWriter(stores[number % 2])
        for turn in range(15):
            await writer.add(records[(number + turn) % 3], 1 + turn % 2)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(write(number))
    events = [event for partition in range(stores[0].partitions) for event in await read_all(stores[0], partition)]
    assert len(events) == 8 * 22
    for record in records:
        versions = [event.version for event in events if event.agent_key == record.agent_key]
        assert versions == list(range(1, len(versions) + 1))
    for partition in range(stores[0].partitions):
        times = [event.time_us for event in events if event.partition == partition]
        assert times == sorted(times)


async def a_reader_beside_writers_skips_nothing(log: LogUnderTest) -> None:
    """A tail that follows four writers gets every offset once, in order, and each event whole."""
    stores = [await log.open(), await log.open()]
    record, total = await agent_of(stores[0]), 4 * 25
    written: dict[int, bytes] = {}

    async def write(number: int) -> None:
        writer = RawWriter(stores[number % 2])
        for _ in range(25):
            (event,) = await writer.add(record)
            written[event.offset] = event.payload

    async def follow() -> dict[int, bytes]:
        seen: dict[int, bytes] = {}
        signal = stores[0].signal()
        while len(seen) < total:
            batch = await stores[0].read(record.partition, len(seen), 7)
            for event in batch:
                assert event.offset == len(seen) + 1
                seen[event.offset] = event.payload
            if not batch:
                await signal.wait(0.05)
        return seen

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(follow())
        for number in range(4):
            group.create_task(write(number))
    assert reader.result() == written


async def a_signal_wakes_every_reader(log: LogUnderTest) -> None:
    """All that wait return long before their timeout when this process appends; with no append the timeout ends the wait."""
    store = await log.open()
    record = await agent_of(store)
    idle = store.signal()
    await idle.wait(0.01)
    waits = [asyncio.create_task(store.signal().wait(CASE_WAIT_S)) for _ in range(3)]
    await asyncio.sleep(0)
    await RawWriter(store).add(record)
    _, waiting = await asyncio.wait(waits, timeout=CASE_WAIT_S / 2)
    assert not waiting


CASE_WAIT_S = 60.0

CASES = (
    new_log_stands_at_zero,
    offsets_are_dense_and_positions_told,
    every_column_is_read_back,
    known_positions_bring_no_tail,
    events_of_others_are_the_tail,
    knowledge_too_old_is_refused,
    ids_not_in_the_log_are_not_found,
    ids_in_the_log_are_told_and_proposed_again,
    an_id_that_stands_twice_is_told_not_written,
    a_proposal_that_raises_writes_nothing,
    one_append_spans_partitions,
    ownership_changes_with_its_rows,
    heads_tell_a_fence_until_the_next_owner,
    appends_of_two_openings_are_dense,
    a_reader_beside_writers_skips_nothing,
    a_signal_wakes_every_reader,
)
