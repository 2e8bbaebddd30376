"""A relay that is killed or stopped, a broker that is killed, a topic that is lost: afterwards log and topic agree event by event.

The log is SQLite in some of them and Postgres in the others, so that each step meets both.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from perdure import services
from perdure.engine.bus import open_bus
from perdure.engine.bus.contract import Bus
from perdure.engine.log.contract import LogStore
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.relay import Relay
from perdure.engine.topic_check import check_topic
from perdure.errors import Unavailable
from tests import relays
from tests.relays import fill_all

PARTITIONS = 4
DEADLINE_S = 60


POSTGRES = pytest.mark.parametrize("kind", ["postgres"])


@pytest.fixture
def kind() -> str:
    """Which log a test works on, where it does not say."""
    return "sqlite"


@pytest.fixture
def log_address(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What a relay in another process opens the log by."""
    return str(tmp_path) if kind == "sqlite" else str(request.getfixturevalue("fresh_database"))


@pytest.fixture
async def store(kind: str, log_address: str) -> AsyncIterator[LogStore]:
    opened: LogStore
    if kind == "sqlite":
        opened = await SqliteStore.open(Path(log_address), partitions=PARTITIONS)
    else:
        opened = await PostgresStore.open(log_address, partitions=PARTITIONS)
    yield opened
    await opened.close()


@pytest.fixture
def bus_url(kafka_url: str) -> str:
    return f"kafka://{kafka_url}?topic=faults-{uuid4().hex}"


@pytest.fixture
async def bus(bus_url: str) -> AsyncIterator[Bus]:
    opened = await open_bus(bus_url)
    yield opened
    await opened.close()


@asynccontextmanager
async def relay_process(log: str, bus_url: str, holder: str, kill_point: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "perdure.testing.relay_process", log, bus_url, holder)
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PERDURE_KILL_POINT": kill_point})
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


running = partial(relays.running, holder="here")
drained = partial(relays.drained, deadline_s=DEADLINE_S)


async def published(store: LogStore, bus: Bus) -> None:
    """Wait, without a relay of our own, until the log's end is kept as published."""
    await drained(Relay(store, bus))


@pytest.mark.parametrize(
    ("kind", "kill_point"),
    [
        ("postgres", "relay.leased"),
        ("postgres", "relay.read"),
        ("sqlite", "relay.read:4"),
        ("postgres", "relay.published"),
        ("sqlite", "relay.published:5"),
        ("sqlite", "relay.kept"),
        ("postgres", "relay.kept:3"),
    ],
)
async def test_a_relay_killed_at_any_step_is_replaced(kill_point: str, store: LogStore, bus: Bus, bus_url: str, log_address: str) -> None:
    await fill_all(store, 2_500)
    async with relay_process(log_address, bus_url, "victim", kill_point) as victim:
        async with asyncio.timeout(DEADLINE_S):
            assert await victim.wait() == -signal.SIGKILL
    await fill_all(store, 10)
    async with running(store, bus) as relay:
        await drained(relay)
    report = await check_topic(store, bus)
    assert report.agrees, report


async def test_a_relay_killed_while_it_rewinds_is_replaced(store: LogStore, bus_url: str, kafka_url: str, log_address: str) -> None:
    await fill_all(store, 100)
    async with relay_process(log_address, bus_url, "first"):
        bus = await open_bus(bus_url)
        await published(store, bus)
        await bus.close()
    await delete_topic(kafka_url, bus_url)
    async with relay_process(log_address, bus_url, "victim", "relay.rewound") as victim:
        async with asyncio.timeout(DEADLINE_S):
            assert await victim.wait() == -signal.SIGKILL
    bus = await open_bus(bus_url)
    async with running(store, bus) as relay:
        await drained(relay)
    report = await check_topic(store, bus)
    await bus.close()
    assert report.agrees, report


@POSTGRES
async def test_a_zombie_relay_does_no_harm(store: LogStore, bus: Bus, bus_url: str, log_address: str) -> None:
    async with relay_process(log_address, bus_url, "zombie") as zombie:
        await fill_all(store, 200)
        await published(store, bus)
        zombie.send_signal(signal.SIGSTOP)
        await fill_all(store, 2_000)
        async with running(store, bus) as relay:
            await drained(relay)
            zombie.send_signal(signal.SIGCONT)
            await fill_all(store, 500)
            await drained(relay)
        await fill_all(store, 20)
        await published(store, bus)  # by the former zombie, which has come back as an ordinary member
        zombie.send_signal(signal.SIGTERM)
        assert await zombie.wait() == 0
    report = await check_topic(store, bus)
    assert report.agrees, report


async def delete_topic(bootstrap: str, bus_url: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.delete_topics([bus_url.partition("topic=")[2]])
    await admin.close()


@POSTGRES
async def test_a_topic_deleted_under_a_running_relay_is_made_and_filled_again(
    store: LogStore, bus: Bus, bus_url: str, kafka_url: str
) -> None:
    await fill_all(store, 300)
    async with running(store, bus) as relay:
        await drained(relay)
        consumer = await bus.consumer("projector")
        await consume_all(consumer, 300)
        before = await bus.mark(0)
        await delete_topic(kafka_url, bus_url)
        await fill_all(store, 400)
        async with asyncio.timeout(DEADLINE_S):
            await relay.drain()
            await consume_all(consumer, 700)
        assert (await bus.mark(0)).incarnation != before.incarnation
        await consumer.close()
    report = await check_topic(store, bus)
    assert report.agrees, report


async def consume_all(consumer: Any, offset_max: int) -> None:
    """Until all log offsets up to this one were received; each time anew, as after a topic was lost."""
    wanted = {(partition, offset) for partition in range(PARTITIONS) for offset in range(1, offset_max + 1)}
    while wanted:
        try:
            part = await consumer.receive(500, 0.5)
        except Unavailable:
            await asyncio.sleep(0.05)
            continue
        await consumer.commit({each.partition: each.bus_offset + 1 for each in part})
        wanted -= {(each.partition, each.event.offset) for each in part if each.event is not None}


async def test_a_killed_broker_delays_the_relay_and_loses_nothing(store: LogStore, private_services: Callable[..., Any]) -> None:
    private = private_services("kafka")
    bus = await open_bus(f"{private.services.kafka.url}?topic=broker-killed")
    async with running(store, bus) as relay:
        await fill_all(store, 100)
        await drained(relay)
        # Killed while it is being written to; the log goes on without the bus.
        await asyncio.gather(fill_all(store, 3_000), asyncio.to_thread(services.stop, "kafka", private.root, how="kill"))
        await fill_all(store, 1_500)
        async with asyncio.timeout(DEADLINE_S):
            while sum(each.lag_events or 0 for each in relay.status()) < PARTITIONS * 1_500:
                await asyncio.sleep(0.02)
        await asyncio.to_thread(services.start, "kafka", private.root)
        await drained(relay)
        await fill_all(store, 10)
        await drained(relay)
    report = await check_topic(store, bus)
    await bus.close()
    assert report.agrees, report
