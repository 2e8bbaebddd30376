"""The bus kit on the in-process bus, and what is only its own: bounds, and the new incarnation instead of a skipped message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perdure.engine.bus import open_bus
from perdure.engine.bus.contract import Bus
from perdure.engine.bus.memory import MemoryBus
from perdure.errors import ConfigurationError, Overloaded, Unavailable
from perdure.testing import bus_kit
from perdure.testing.bus_kit import collect, next_positions, offsets_of, sealed_events


@asynccontextmanager
async def make() -> AsyncIterator[Bus]:
    bus = await open_bus("memory://")
    yield bus
    await bus.close()


@pytest.mark.parametrize("case", bus_kit.CASES, ids=lambda case: case.__name__)
async def test_the_memory_bus_keeps_the_contract(case: bus_kit.Case) -> None:
    await case(make)


async def test_without_a_consumer_the_oldest_are_dropped_and_nothing_blocks() -> None:
    bus = MemoryBus(retained_messages_max=10)
    await bus.ensure(1)
    assert (await bus.publish(0, sealed_events(0, 1, 100))).end == 100
    assert offsets_of(await bus.read(0, 0, 1_000), 0) == list(range(91, 101))


async def test_a_group_that_comes_too_late_makes_a_new_incarnation_and_skips_nothing() -> None:
    bus = MemoryBus(retained_messages_max=10, room_timeout_s=5.0)
    await bus.ensure(1)
    before = await bus.publish(0, sealed_events(0, 1, 100))
    consumer = await bus.consumer("late")
    after = await bus.mark(0)
    assert after.incarnation != before.incarnation
    publishing = asyncio.create_task(bus.publish(0, sealed_events(0, 1, 100)))
    found = []
    while len(found) < 100:
        part = await consumer.receive(7, 5.0)
        await consumer.commit(next_positions(part))
        found += part
    await publishing
    assert offsets_of(found, 0) == list(range(1, 101))


async def test_a_consumer_that_stands_still_gives_overloaded_and_loses_nothing() -> None:
    bus = MemoryBus(retained_messages_max=10, room_timeout_s=0.05)
    await bus.ensure(1)
    consumer = await bus.consumer("slow")
    with pytest.raises(Overloaded):
        await bus.publish(0, sealed_events(0, 1, 11))
    found = await collect(consumer, 10)
    assert offsets_of(found, 0) == list(range(1, 11))
    await consumer.commit(next_positions(found))
    await bus.publish(0, sealed_events(0, 11, 1))
    assert offsets_of(await collect(consumer, 1), 0) == [11]


async def test_a_commit_from_before_a_new_incarnation_moves_nothing() -> None:
    bus = MemoryBus(retained_messages_max=10)
    await bus.ensure(1)
    first = await bus.consumer("group")
    await bus.publish(0, sealed_events(0, 1, 5))
    old = await collect(first, 5)
    await first.close()
    await bus.publish(0, sealed_events(0, 6, 20))
    second = await bus.consumer("group")
    await bus.publish(0, sealed_events(0, 1, 3))
    await second.commit(next_positions(old))
    await second.close()
    third = await bus.consumer("group")
    assert offsets_of(await collect(third, 3), 0) == [1, 2, 3]


async def test_a_closed_bus_is_unavailable_and_a_wrong_partition_a_clear_error() -> None:
    bus = MemoryBus()
    await bus.ensure(2)
    with pytest.raises(ConfigurationError):
        await bus.mark(2)
    await bus.close()
    with pytest.raises(Unavailable):
        await bus.mark(0)


async def test_other_urls_are_refused() -> None:
    for url in ("redis://x", "kafka://", "kafka://host", "kafka://host:1/path", "kafka://host:1?replicas=0", "kafka://host:1?retention=1"):
        with pytest.raises(ConfigurationError):
            await open_bus(url)
