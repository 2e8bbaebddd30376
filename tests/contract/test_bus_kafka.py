"""The bus kit on a real Kafka, and what only a server can do: be away, lack the topic, hold foreign messages."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from perdure.engine.bus import open_bus
from perdure.engine.bus.contract import Bus
from perdure.errors import Unavailable
from perdure.testing import bus_kit


@pytest.mark.parametrize("case", bus_kit.CASES, ids=lambda case: case.__name__)
async def test_the_kafka_bus_keeps_the_contract(case: bus_kit.Case, kafka_url: str) -> None:
    @asynccontextmanager
    async def make() -> AsyncIterator[Bus]:
        bus = await open_bus(f"kafka://{kafka_url.removeprefix('kafka://')}?topic=kit-{uuid4().hex}")
        try:
            yield bus
        finally:
            await bus.close()

    await case(make)


async def test_a_message_that_is_no_event_comes_with_its_reason_and_stops_nothing(kafka_url: str) -> None:
    topic = f"poison-{uuid4().hex}"
    bus = await open_bus(f"kafka://{kafka_url}?topic={topic}")
    await bus.ensure(1)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_url)
    await producer.start()
    await bus.publish(0, bus_kit.sealed_events(0, 1, 1))
    await producer.send_and_wait(topic, b"rubbish", partition=0)
    await producer.send_and_wait(topic, None, key=b"tombstone", partition=0)
    await bus.publish(0, bus_kit.sealed_events(0, 2, 1))
    await producer.stop()
    consumer = await bus.consumer("poison")
    found = await bus_kit.collect(consumer, 4)
    assert [each.event is None for each in found] == [False, True, True, False]
    assert all(bool(each.problem) == (each.event is None) for each in found)
    await consumer.close()
    await bus.close()


async def test_without_a_broker_every_call_is_unavailable_in_bounded_time() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    bus = await open_bus(f"kafka://127.0.0.1:{port}")
    async with asyncio.timeout(60):
        for call in (bus.ensure(1), bus.mark(0), bus.publish(0, bus_kit.sealed_events(0, 1, 1)), bus.read(0, 0, 1), bus.consumer("x")):
            with pytest.raises(Unavailable):
                await call
        await bus.close()


async def test_a_topic_that_is_missing_is_unavailable_until_it_is_made(kafka_url: str) -> None:
    bus = await open_bus(f"kafka://{kafka_url}?topic=missing-{uuid4().hex}")
    with pytest.raises(Unavailable):
        await bus.mark(0)
    await bus.ensure(1)
    assert (await bus.mark(0)).end == 0
    await bus.close()
