"""Servers that go away under a relay and a projector: the log, a broker of three, all brokers, Redis, and what retention took from the topic."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

import perdure
from perdure import Event, services, set_value
from perdure.client.engine import Engine
from perdure.engine.bus import open_bus
from perdure.engine.bus.contract import Bus
from perdure.engine.log import postgres_tails
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.records import AgentName
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.relay import Relay
from perdure.engine.topic_check import check_topic
from tests import relays
from tests.fix_command import Perdure
from tests.fix_proxy import Proxy
from tests.fix_services import PrivateServices
from tests.relays import fill_all, running

PARTITIONS = 4
DEADLINE_S = 90
LARGE_BYTES = 40_000
NAMES = [AgentName("outages", f"agent-{number}") for number in range(20)]
WARM_EVENTS = 20
"""Of each agent; together they fill every buffer that there is."""
ROUNDS_MAX = 15
ROUND_S = 1.0
FLAT_ROUNDS = 3
FLAT_BYTES = 4_000_000
"""Of the 16 MB that are appended in a round."""


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "log", partitions=PARTITIONS)
    yield opened
    await opened.close()


@pytest.fixture
def topic() -> str:
    return f"outages-{uuid4().hex}"


@pytest.fixture
async def bus(kafka_url: str, topic: str) -> AsyncIterator[Bus]:
    opened = await open_bus(f"kafka://{kafka_url}?topic={topic}")
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def cluster(private_services: Callable[..., PrivateServices]) -> PrivateServices:
    """Three brokers and a Redis of this module's own."""
    return private_services("kafka", "redis", kafka_brokers=3)


drained = partial(relays.drained, deadline_s=DEADLINE_S)


until = partial(relays.until, deadline_s=DEADLINE_S)


async def test_the_log_may_be_away_under_a_relay(fresh_database: str, proxy_before: Callable[[str], Awaitable[Proxy]], bus: Bus) -> None:
    direct = await PostgresStore.open(fresh_database, partitions=PARTITIONS)
    proxy = await proxy_before(fresh_database)
    through = await PostgresStore.open(proxy.url)
    async with running(through, bus) as relay:
        await fill_all(direct, 50)
        await drained(relay)
        proxy.cut()
        await fill_all(direct, 200)
        await drained(Relay(direct, bus))
        await proxy.shut()
        await fill_all(direct, 2_000)
        # It cannot renew its leases, so it stops by itself; and goes on when the log is back.
        await until(lambda: not any(each.owner for each in relay.status()))
        await proxy.open()
        await drained(Relay(direct, bus))
        report = await check_topic(direct, bus)
    await through.close()
    await direct.close()
    assert report.agrees, report


async def test_a_log_that_does_not_answer_is_given_up_and_asked_again(
    fresh_database: str,
    proxy_before: Callable[[str], Awaitable[Proxy]],
    bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(postgres_tails, "ANSWER_TIMEOUT_S", 0.3)
    direct = await PostgresStore.open(fresh_database, partitions=PARTITIONS)
    proxy = await proxy_before(fresh_database)
    through = await PostgresStore.open(proxy.url)
    async with running(through, bus) as relay:
        await fill_all(direct, 5)
        await drained(Relay(direct, bus))
        proxy.stall()
        await fill_all(direct, 5)
        await until(lambda: "did not answer" in caplog.text)
        proxy.flow()
        await drained(Relay(direct, bus))
        assert {each.owner for each in relay.status()} == {relay.holder}
        report = await check_topic(direct, bus)
    await through.close()
    await direct.close()
    assert report.agrees, report


async def expire(bootstrap: str, topic: str, before: dict[int, int]) -> None:
    """As retention does: let the topic begin at these offsets."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        places = {TopicPartition(topic, partition): RecordsToDelete(before_offset=offset) for partition, offset in before.items()}
        await admin.delete_records(places)
    finally:
        await admin.close()


async def test_what_retention_took_is_told_and_is_no_fault(sqlite: SqliteStore, bus: Bus, kafka_url: str, topic: str) -> None:
    async with running(sqlite, bus) as relay:
        await fill_all(sqlite, 100)
        await drained(relay)
        before = await bus.mark(0)
        await expire(kafka_url, topic, {0: 40, 1: 100})
        report = await check_topic(sqlite, bus)
        assert [each.expired for each in report.partitions] == [40, 100, 0, 0]
        assert report.agrees, report
        await fill_all(sqlite, 10)
        await drained(relay)
        # It is the same topic as before: nothing is published again.
        assert await bus.mark(0) == (before.incarnation, 110)
    report = await check_topic(sqlite, bus)
    assert [each.expired for each in report.partitions] == [40, 100, 0, 0]
    assert [each.messages for each in report.partitions] == [70, 10, 110, 110]
    assert report.agrees, report


async def test_a_consumer_whose_messages_have_expired_goes_on_with_the_oldest_that_are_left(
    sqlite: SqliteStore, bus: Bus, kafka_url: str, topic: str
) -> None:
    async with running(sqlite, bus) as relay:
        await fill_all(sqlite, 60)
        await drained(relay)
    await expire(kafka_url, topic, {0: 60, 1: 20})
    consumer = await bus.consumer("late")
    found: list[tuple[int, int]] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < 160:
            found += [(each.partition, each.bus_offset) for each in await consumer.receive(500, 1.0)]
    await consumer.close()
    assert min(offset for partition, offset in found if partition == 1) == 20
    assert {partition for partition, _ in found} == {1, 2, 3}


async def test_one_broker_of_three_may_be_killed(sqlite: SqliteStore, cluster: PrivateServices, topic: str) -> None:
    assert cluster.services.kafka is not None
    bus = await open_bus(f"{cluster.services.kafka.url}?topic={topic}")
    async with running(sqlite, bus) as relay:
        await fill_all(sqlite, 100)
        await drained(relay)
        kill = asyncio.to_thread(services.stop, "kafka", cluster.root, how="kill", broker=2)
        await asyncio.gather(fill_all(sqlite, 2_000), kill)
        await fill_all(sqlite, 100)
        await drained(relay)  # by the other two
        await asyncio.to_thread(services.start, "kafka", cluster.root, broker=2)
        await fill_all(sqlite, 10)
        await drained(relay)
    report = await check_topic(sqlite, bus)
    await bus.close()
    assert report.agrees, report


@asynccontextmanager
async def installation(cluster: PrivateServices, tmp_path: Path, topic: str) -> AsyncIterator[tuple[Engine, Perdure]]:
    assert cluster.services.kafka is not None
    assert cluster.services.redis is not None
    settings = {
        "PERDURE_LOG": f"sqlite:///{tmp_path}/log",
        "PERDURE_BUS": f"{cluster.services.kafka.url}?topic={topic}",
        "PERDURE_CACHE": cluster.services.redis.url,
        "PERDURE_KEYS": f"file://{tmp_path}/root.key",
    }
    log, bus, cache, keys = settings.values()
    async with perdure.open(log, bus=bus, cache=cache, keys=keys, partitions=PARTITIONS) as engine:
        yield engine, Perdure(tmp_path, settings)


async def talk(engine: Engine, count: int) -> None:
    """Large events of random bytes that nothing makes smaller; they replace what they say, so that states stay small."""
    for name in NAMES:
        events = [Event("said", changes=(set_value("/number", i), set_value("/last", os.urandom(LARGE_BYTES)))) for i in range(count)]
        await engine.log.append_events(name, events)


class Processes:
    """A relay and a projector, and what they weigh."""

    def __init__(self, command: Perdure) -> None:
        self._running = [command.start(role) for role in ("relay", "project")]

    def weigh(self) -> list[int]:
        """The memory of each."""
        return [_resident_bytes(process) for process in self._running]

    def kill(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


def _resident_bytes(process: subprocess.Popen[str]) -> int:
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, text=True, check=True).stdout) * 1024


async def relayed(engine: Engine) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while any(lag.lag_events for lag in (await engine.lags())["relay"]):
            await asyncio.sleep(0.05)


async def cached(engine: Engine, version: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while any(token is None or token.version < version for token in await engine.cache.tokens(NAMES)):
            await asyncio.sleep(0.05)


async def level_off(engine: Engine, processes: Processes) -> int:
    """Append while a server is away until what the processes weigh stays: they may fill their hands, and no more. The events of each agent."""
    before = processes.weigh()
    flat = 0
    for number in range(1, ROUNDS_MAX + 1):
        await talk(engine, WARM_EVENTS)
        await asyncio.sleep(ROUND_S)
        now = processes.weigh()
        grown_bytes = max(after - earlier for after, earlier in zip(now, before, strict=True))
        flat = flat + 1 if grown_bytes < FLAT_BYTES else 0
        if flat == FLAT_ROUNDS:
            return number * WARM_EVENTS
        before = now
    raise AssertionError(f"they still grow after {ROUNDS_MAX} rounds: {grown_bytes} bytes in the last")


async def test_memory_levels_off_while_redis_and_then_kafka_are_away(cluster: PrivateServices, tmp_path: Path, topic: str) -> None:
    async with installation(cluster, tmp_path, topic) as (engine, command):
        await talk(engine, WARM_EVENTS)
        processes = Processes(command)
        try:
            await cached(engine, WARM_EVENTS)
            await asyncio.to_thread(services.stop, "redis", cluster.root, how="kill")
            events = await level_off(engine, processes)
            await relayed(engine)
            await asyncio.to_thread(services.start, "redis", cluster.root)
            await cached(engine, WARM_EVENTS + events)
            report = await engine.verify()
            assert (report.ok, report.current) == (True, True), report
            # The last of the module: the brokers stay away.
            await asyncio.to_thread(services.stop, "kafka", cluster.root, how="kill")
            await level_off(engine, processes)
        finally:
            processes.kill()
