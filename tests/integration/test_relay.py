"""The relay over both logs and both buses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from perdure.engine.bus import open_bus
from perdure.engine.bus.contract import Bus
from perdure.engine.bus.memory import MemoryBus
from perdure.engine.log.contract import LogStore
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.relay import Relay
from perdure.engine.topic_check import check_topic
from perdure.errors import IntegrityError
from perdure.testing.bus_kit import sealed
from perdure.testing.log_filling import fill
from tests import relays
from tests.relays import running

PARTITIONS = 4
DEADLINE_S = 60


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path, partitions=PARTITIONS)
    yield opened
    await opened.close()


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogStore]:
    opened: LogStore
    if request.param == "sqlite":
        opened = await SqliteStore.open(tmp_path, partitions=PARTITIONS)
    else:
        opened = await PostgresStore.open(request.getfixturevalue("fresh_database"), partitions=PARTITIONS)
    yield opened
    await opened.close()


@pytest.fixture(params=["memory", "kafka"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    url = "memory://"
    if request.param == "kafka":
        url = f"kafka://{request.getfixturevalue('kafka_url')}?topic=relay-{uuid4().hex}"
    opened = await open_bus(url)
    yield opened
    await opened.close()


drained = partial(relays.drained, deadline_s=DEADLINE_S)


until = partial(relays.until, deadline_s=DEADLINE_S)


async def test_everything_is_published_in_order_and_log_and_topic_agree(store: LogStore, bus: Bus) -> None:
    for partition in range(PARTITIONS):
        await fill(store, partition, 1_500)
    async with running(store, bus) as relay:
        await drained(relay)
        await fill(store, 2, 700)
        await drained(relay)
        report = await check_topic(store, bus)
    assert report.agrees, report
    assert report.events == PARTITIONS * 1_500 + 700
    assert [each.duplicates for each in report.partitions] == [0] * PARTITIONS


async def test_the_next_relay_goes_on_where_the_last_one_stopped(store: LogStore, bus: Bus) -> None:
    for _ in range(3):
        await fill(store, 1, 10)
        async with running(store, bus) as relay:
            await drained(relay)
    report = await check_topic(store, bus)
    assert report.agrees, report
    assert report.partitions[1].messages == 30


async def test_relays_share_the_partitions_and_give_them_back(store: LogStore, bus: Bus) -> None:
    def owned(relay: Relay) -> int:
        return sum(each.owner == relay.holder for each in relay.status())

    async with running(store, bus, holder="one") as one:
        await until(lambda: owned(one) == 4)
        async with running(store, bus, holder="two") as two:
            await until(lambda: owned(one) == 2 and owned(two) == 2)
            for partition in range(PARTITIONS):
                await fill(store, partition, 50)
            await drained(one)
        await until(lambda: owned(one) == 4)
        await fill(store, 0, 5)
        await drained(one)
    report = await check_topic(store, bus)
    assert report.agrees, report


async def test_status_tells_owner_offset_and_lag(store: LogStore, bus: Bus) -> None:
    await fill(store, 3, 12)
    async with running(store, bus, holder="me") as relay:
        await drained(relay)
        status = relay.status()
    assert [each.partition for each in status] == [0, 1, 2, 3]
    assert {each.owner for each in status} == {"me"}
    assert (status[3].offset, status[3].lag_events, status[3].lag_s, status[3].problem) == (12, 0, 0.0, "")


async def test_a_lost_bus_is_filled_again_from_the_log(store: LogStore) -> None:
    await fill(store, 0, 40)
    for _ in range(2):
        bus = MemoryBus()  # a new one has another incarnation
        async with running(store, bus) as relay:
            await drained(relay)
        assert (await check_topic(store, bus)).agrees


async def test_a_full_in_process_bus_slows_the_relay_and_loses_nothing(store: LogStore) -> None:
    await fill(store, 0, 2_000)
    bus = MemoryBus(retained_messages_max=100, room_timeout_s=0.05)
    await bus.ensure(PARTITIONS)
    consumer = await bus.consumer("slow")
    seen: set[int] = set()
    async with running(store, bus, page_events=70), asyncio.timeout(DEADLINE_S):
        while len(seen) < 2_000:
            part = await consumer.receive(64, 1.0)
            await consumer.commit({each.partition: each.bus_offset + 1 for each in part})
            seen.update(each.event.offset for each in part if each.event is not None)
    assert seen == set(range(1, 2_001))


async def test_a_position_written_by_another_ends_the_ownership(store: LogStore) -> None:
    bus = MemoryBus()
    await fill(store, 0, 10)
    async with running(store, bus, holder="me") as relay:
        await drained(relay)
        document = await store.get_document("relay", "0")
        assert document is not None
        await store.put_document("relay", "0", document.value, expected=document.revision)
        await fill(store, 0, 10)
        await drained(relay)  # it took the partition again and read the position anew
    assert (await check_topic(store, bus)).agrees


async def test_a_hole_in_the_log_stops_the_partition_with_an_integrity_error(sqlite: SqliteStore) -> None:
    await fill(sqlite, 0, 10)
    await fill(sqlite, 1, 10)
    connection = sqlite._write_connection
    assert connection is not None
    await sqlite._writer.run(lambda: _make_hole(connection))
    async with running(sqlite, MemoryBus()) as relay:
        with pytest.raises(IntegrityError):
            await drained(relay)
        await until(lambda: relay.status()[1].offset == 10)
        assert relay.status()[0].offset == 0
        assert "offset" in relay.status()[0].problem


def _make_hole(connection: object) -> None:
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():  # type: ignore[attr-defined]
        connection.execute(f'DROP TRIGGER "{name}"')  # type: ignore[attr-defined]
    connection.execute("DELETE FROM events WHERE partition = 0 AND offset = 4")  # type: ignore[attr-defined]


async def test_the_check_finds_what_is_missing_extra_altered_and_behind(store: LogStore, bus: Bus) -> None:
    await fill(store, 0, 20)
    events = [msgspec.structs.replace(event, agent_key=0, tenant_key=0) for event in await store.read(0, 0, 100)]
    await bus.ensure(PARTITIONS)
    altered = msgspec.structs.replace(events[5], payload=b"other")
    await bus.publish(0, [*events[0:3], *events[8:10], *events[4:5], altered, *events[6:8], events[1], sealed(0, 21)])
    report = (await check_topic(store, bus)).partitions[0]
    assert not report.agrees
    assert report.missing == [(4, 4), (6, 6)]
    assert (report.messages, report.duplicates, report.altered, report.extra, report.behind) == (11, 1, 1, 1, 10)
    assert len(report.problems) == 2
