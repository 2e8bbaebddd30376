"""What every bus must do, as plain asynchronous functions; a backend's test file only brings the bus.

::

    @pytest.mark.parametrize("case", bus_kit.CASES, ids=lambda case: case.__name__)
    async def test_my_bus(case): await case(make)

`make()` is an asynchronous context manager of a fresh, empty bus whose `ensure` has not been called.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final
from uuid import UUID

import msgspec

from perdure.engine.bus.contract import Bus, Consumer, Delivery
from perdure.engine.log.records import SealedEvent
from perdure.errors import ConfigurationError

__all__ = ["CASES", "Case", "MakeBus", "collect", "sealed", "sealed_events"]

MakeBus = Callable[[], AbstractAsyncContextManager[Bus]]
Case = Callable[[MakeBus], Awaitable[None]]

PARTITIONS: Final = 4
DEADLINE_S: Final = 60.0


def sealed(partition: int, offset: int, payload: bytes = b"sealed", *, agents: int = 5) -> SealedEvent:
    """An event that only its place decides: the agents of a partition take turns."""
    name = hashlib.sha256(f"{partition}/{offset}".encode()).digest()
    return SealedEvent(
        tenant="kit",
        agent=f"agent-{partition}-{offset % agents}",
        tenant_key=0,
        agent_key=0,
        partition=partition,
        offset=offset,
        version=(offset + agents - 1) // agents,
        epoch=1,
        id=UUID(bytes=name[:16], version=4),
        type="kit_event",
        time_us=1_700_000_000_000_000 + offset,
        causation_id=UUID(bytes=name[16:], version=4) if offset % 2 else None,
        correlation_id=f"run-{offset % 3}" if offset % 3 else None,
        trace_id="trace-ü" if offset % 4 else None,
        project="" if offset % 5 else None,
        module="kit" if offset % 7 else None,
        chain=name,
        payload=payload,
    )


def sealed_events(partition: int, first: int, count: int) -> list[SealedEvent]:
    """Events with the offsets first, first+1, …"""
    return [sealed(partition, offset) for offset in range(first, first + count)]


async def collect(consumer: Consumer, count: int, *, deadline_s: float = DEADLINE_S) -> list[Delivery]:
    """Receive until there are at least `count` messages; AssertionError at the deadline."""
    found: list[Delivery] = []
    end = time.monotonic() + deadline_s
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} messages came"
        found += await consumer.receive(500, 0.5)
    return found


def next_positions(deliveries: Sequence[Delivery]) -> dict[int, int]:
    """What to commit after having handled these."""
    return {each.partition: each.bus_offset + 1 for each in deliveries}


def offsets_of(deliveries: Sequence[Delivery], partition: int) -> list[int]:
    """The log offsets that came from a partition, in order."""
    return [each.event.offset for each in deliveries if each.partition == partition and each.event is not None]


async def events_come_back_as_published_and_in_order(make: MakeBus) -> None:
    """Every field, every partition."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        for partition in range(PARTITIONS):
            await bus.publish(partition, sealed_events(partition, 1, 20))
            await bus.publish(partition, sealed_events(partition, 21, 5))
        consumer = await bus.consumer("order")
        found = await collect(consumer, 25 * PARTITIONS)
        for partition in range(PARTITIONS):
            assert [each.event for each in found if each.partition == partition] == sealed_events(partition, 1, 25)
        await consumer.close()


async def messages_published_while_waiting_are_received(make: MakeBus) -> None:
    """A waiting member wakes up."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        consumer = await bus.consumer("waiting")
        await consumer.receive(1, 0.2)
        receiving = asyncio.create_task(collect(consumer, 3))
        await asyncio.sleep(0)
        await bus.publish(2, sealed_events(2, 1, 3))
        assert offsets_of(await receiving, 2) == [1, 2, 3]
        await consumer.close()


async def nothing_is_received_at_the_timeout(make: MakeBus) -> None:
    """An empty bus gives an empty list, in time."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        consumer = await bus.consumer("nothing")
        started_at = time.monotonic()
        assert await consumer.receive(10, 0.2) == []
        assert time.monotonic() - started_at < DEADLINE_S
        await consumer.close()


async def a_receive_is_never_larger_than_asked(make: MakeBus) -> None:
    """`limit` holds, and what is above comes next."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        await bus.publish(0, sealed_events(0, 1, 10))
        consumer = await bus.consumer("limit")
        found: list[Delivery] = []
        while len(found) < 10:
            part = await consumer.receive(3, 5.0)
            assert len(part) <= 3
            found += part
        assert offsets_of(found, 0) == list(range(1, 11))
        await consumer.close()


async def uncommitted_messages_come_again_and_committed_do_not(make: MakeBus) -> None:
    """The next member goes on from the committed position."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        await bus.publish(1, sealed_events(1, 1, 10))
        first = await bus.consumer("commits")
        found = await collect(first, 10)
        await first.commit({1: found[3].bus_offset + 1})
        await first.close()
        second = await bus.consumer("commits")
        assert offsets_of(await collect(second, 6), 1) == [5, 6, 7, 8, 9, 10]
        await second.close()


async def groups_do_not_disturb_each_other(make: MakeBus) -> None:
    """Each group receives everything."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        await bus.publish(0, sealed_events(0, 1, 5))
        for name in ("group-a", "group-b"):
            consumer = await bus.consumer(name)
            found = await collect(consumer, 5)
            assert offsets_of(found, 0) == [1, 2, 3, 4, 5]
            await consumer.commit(next_positions(found))
            await consumer.close()


async def members_share_partitions_and_inherit_them(make: MakeBus) -> None:
    """Two members have disjoint partitions; the one that stays takes over what the other has not committed."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        members = [await bus.consumer("shared"), await bus.consumer("shared")]
        await _settled(members)
        for partition in range(PARTITIONS):
            await bus.publish(partition, sealed_events(partition, 1, 5))
        parts = await asyncio.gather(*(collect(member, 10) for member in members))
        owned = [{each.partition for each in part} for part in parts]
        assert owned[0] | owned[1] == set(range(PARTITIONS))
        assert not owned[0] & owned[1]
        await members[0].commit(next_positions(parts[0]))
        await members[1].close()
        again = await collect(members[0], 10)
        assert {each.partition for each in again} == owned[1]
        await members[0].close()


async def commits_of_other_members_partitions_are_no_error(make: MakeBus) -> None:
    """A member that lost a partition and commits late harms nobody."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        await bus.publish(0, sealed_events(0, 1, 4))
        first = await bus.consumer("late")
        found = await collect(first, 4)
        second = await bus.consumer("late")
        await _settled([first, second])
        await first.commit(dict.fromkeys(range(PARTITIONS), 4))
        await first.close()
        await second.close()
        assert len(found) == 4


async def lag_counts_what_is_not_committed(make: MakeBus) -> None:
    """Published minus committed, per assigned partition."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        await bus.publish(3, sealed_events(3, 1, 7))
        consumer = await bus.consumer("lag")
        found = await collect(consumer, 7)
        assert await consumer.lag() == {0: 0, 1: 0, 2: 0, 3: 7}
        await consumer.commit({3: found[4].bus_offset + 1})
        assert await consumer.lag() == {0: 0, 1: 0, 2: 0, 3: 2}
        await consumer.close()


async def the_mark_grows_by_what_was_published(make: MakeBus) -> None:
    """`publish` returns the mark, `mark` tells the same, and the incarnation stays."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        before = await bus.mark(0)
        assert before.end == 0
        assert await bus.publish(0, sealed_events(0, 1, 3)) == (before.incarnation, 3)
        assert await bus.publish(0, sealed_events(0, 4, 2)) == (before.incarnation, 5)
        assert await bus.mark(0) == (before.incarnation, 5)
        assert (await bus.mark(1)).end == 0


async def everything_can_be_read_outside_a_group(make: MakeBus) -> None:
    """In pages, from any bus offset, to an empty page at the end; no group is moved."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        await bus.publish(2, sealed_events(2, 1, 10))
        found: list[Delivery] = []
        while page := await bus.read(2, found[-1].bus_offset + 1 if found else 0, 4):
            assert len(page) <= 4
            found += page
        assert [each.event for each in found] == sealed_events(2, 1, 10)
        assert offsets_of(await bus.read(2, found[6].bus_offset, 100), 2) == [7, 8, 9, 10]
        assert offsets_of(await bus.read(2, found[2].bus_offset, 2), 2) == [3, 4]
        assert await bus.read(1, 0, 10) == []


async def pages_and_large_events_pass(make: MakeBus) -> None:
    """A whole page at once, and an event of four mebibytes among small ones."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        await bus.publish(0, sealed_events(0, 1, 1_000))
        large = msgspec.structs.replace(sealed(0, 1_001), payload=bytes(range(256)) * 16_384)
        await bus.publish(0, [large, sealed(0, 1_002)])
        consumer = await bus.consumer("large")
        found = await collect(consumer, 1_002)
        assert offsets_of(found, 0) == list(range(1, 1_003))
        assert found[1_000].event == large
        await consumer.close()


async def the_same_message_twice_comes_twice(make: MakeBus) -> None:
    """A bus drops nothing; consumers do, by version."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        for _ in range(2):
            await bus.publish(0, sealed_events(0, 1, 2))
        consumer = await bus.consumer("twice")
        assert offsets_of(await collect(consumer, 4), 0) == [1, 2, 1, 2]
        await consumer.close()


async def partitions_publish_at_the_same_time(make: MakeBus) -> None:
    """Concurrent publishers of different partitions keep each partition's order."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)

        async def publish(partition: int) -> None:
            for first in range(1, 101, 10):
                await bus.publish(partition, sealed_events(partition, first, 10))

        await asyncio.gather(*(publish(partition) for partition in range(PARTITIONS)))
        for partition in range(PARTITIONS):
            assert offsets_of(await bus.read(partition, 0, 200), partition) == list(range(1, 101))


async def the_number_of_partitions_is_fixed(make: MakeBus) -> None:
    """`ensure` again is no error; with another number it is."""
    async with make() as bus:
        await bus.ensure(PARTITIONS)
        await bus.ensure(PARTITIONS)
        try:
            await bus.ensure(PARTITIONS + 1)
        except ConfigurationError:
            return
        raise AssertionError("another number of partitions was accepted")


async def _settled(members: Sequence[Consumer]) -> None:
    """Until every member has partitions, and they are shared out evenly."""
    end = time.monotonic() + DEADLINE_S
    while [len(await member.lag()) for member in members] != [PARTITIONS // len(members)] * len(members):
        assert time.monotonic() < end, "the group did not settle"
        await asyncio.gather(*(member.receive(1, 0.1) for member in members))


CASES: Final[tuple[Case, ...]] = (
    events_come_back_as_published_and_in_order,
    messages_published_while_waiting_are_received,
    nothing_is_received_at_the_timeout,
    a_receive_is_never_larger_than_asked,
    uncommitted_messages_come_again_and_committed_do_not,
    groups_do_not_disturb_each_other,
    members_share_partitions_and_inherit_them,
    commits_of_other_members_partitions_are_no_error,
    lag_counts_what_is_not_committed,
    the_mark_grows_by_what_was_published,
    everything_can_be_read_outside_a_group,
    pages_and_large_events_pass,
    the_same_message_twice_comes_twice,
    partitions_publish_at_the_same_time,
    the_number_of_partitions_is_fixed,
)
