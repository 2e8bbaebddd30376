"""Verification tells what disagrees with the log from what is merely behind it."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from perdure import limits
from perdure.client.verify import Lag, Verification, VerifyReport, verify
from perdure.client.verify_order import VerifyOrder, load_checkpoint, parse_sample, sampled_partitions
from perdure.errors import InvalidInput
from perdure.projections.contract import CachedState, Token
from perdure.testing.cache_kit import whole
from tests.fix_projections import World


async def checked(world: World) -> VerifyReport:
    return await verify(world.store, world.vault, bus=world.bus, cache=world.cache)


async def test_what_is_all_there_is_current(world: World) -> None:
    await world.talk("a", 5)
    await world.publish()
    await world.projector().drain()
    report = await checked(world)
    assert (report.ok, report.current, report.lag) == (True, True, Lag())


async def test_a_relay_and_a_projector_that_are_behind_are_a_lag_and_no_fault(world: World) -> None:
    projector = world.projector()
    for agent in "ab":
        await world.talk(agent, 5)
    await world.publish()
    await projector.drain()
    await world.talk("a", 3)
    report = await checked(world)
    assert (report.ok, report.current, report.lag) == (True, False, Lag(relay_events=3, cache_agents=1, cache_events=3))
    await world.publish()
    report = await checked(world)
    assert (report.ok, report.current, report.lag) == (True, False, Lag(cache_agents=1, cache_events=3))
    assert report.cache.problems == []
    await projector.drain()
    assert (await checked(world)).current


async def test_a_message_that_says_something_else_is_a_fault(world: World) -> None:
    await world.talk("a", 5)
    world.tamper = lambda event: msgspec.structs.replace(event, payload=event.payload + b"x") if event.version == 3 else event
    await world.publish()
    report = await checked(world)
    assert (report.ok, report.topic.sound, report.lag.relay_events) == (False, False, 0)


async def test_a_message_that_was_left_out_is_a_fault(world: World) -> None:
    await world.talk("a", 5)
    for partition in world.published:
        events = await world.store.read(partition, 0, 100)
        await world.bus.publish(partition, [event for event in events if event.version != 2])
    report = await checked(world)
    assert (report.ok, report.topic.sound) == (False, False)


async def test_a_cached_state_of_another_history_is_a_fault_also_when_it_is_old(world: World) -> None:
    projector = world.projector()
    for agent in "ab":
        await world.talk(agent, 3)
    await world.publish()
    await projector.drain()
    (foreign,) = await world.cache.get([("t", "b")])
    assert foreign is not None
    await world.cache.remove([("t", "a")])
    await world.cache.apply([whole(("t", "a"), foreign.token, CachedState(*foreign).cells)])
    await world.talk("a", 1)
    await world.publish()
    report = await checked(world)
    assert (report.ok, report.cache.sound, report.cache.wrong) == (False, False, 1)
    assert report.cache.problems[0].agent == "a"


def verification(world: World, order: VerifyOrder) -> Verification:
    return Verification(world.log, bus=world.bus, cache=world.cache, order=order)


async def test_a_sample_is_the_same_for_the_same_seed_and_says_what_was_looked_at(world: World) -> None:
    projector = world.projector()
    for number in range(40):
        await world.talk(f"agent {number}", 2)
    await world.publish()
    await projector.drain()
    await projector.close()
    await world.cache.remove([("t", "agent 7")])
    await world.cache.apply([whole(("t", "agent 7"), Token(1, 0, 2), {b"x": b"1"})])
    found: dict[int, tuple[bool, int]] = {}
    for seed in range(12):
        reports = [await verification(world, VerifyOrder(sample=0.25, seed=seed)).run() for _ in range(2)]
        first, again = reports
        assert (first.ok, first.looked.agents, first.looked.partitions) == (again.ok, again.looked.agents, again.looked.partitions)
        looked = first.looked
        assert (looked.sample, looked.seed, looked.agents_total, looked.partitions_total) == (0.25, seed, 40, 2)
        assert (first.log.agents, first.cache.agents, len(first.topic.partitions)) == (looked.agents, looked.agents, 1)
        assert looked.events >= 2 * looked.agents
        found[seed] = (first.ok, looked.agents)
    assert {ok for ok, _ in found.values()} == {True, False}, "some seeds choose the damaged agent, some do not"
    assert all(0 < agents < 25 for _, agents in found.values())
    assert not (await verification(world, VerifyOrder()).run()).ok


async def test_an_interrupted_verification_goes_on_and_keeps_what_it_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VERIFY_PAGE_AGENTS", 1)
    monkeypatch.setattr(limits, "VERIFY_NOTE_S", 0.0)
    projector = world.projector()
    for agent in "abcd":
        await world.talk(agent, 3)
    await world.publish()
    await projector.drain()
    await projector.close()
    (token,) = await world.cache.tokens([("t", "a")])
    assert token is not None
    await world.cache.remove([("t", "a")])
    await world.cache.apply([whole(("t", "a"), token, {b"x": b"1"})])
    for enough in (6, 9, 12):  # in the third agent, then in the fourth, then among the partitions
        order = VerifyOrder(keep=True, resume=True)
        dying = verification(world, order)

        def interrupt(events: int, total: int, enough: int = enough) -> None:
            assert total == 36, "each event of the log, by agent and by partition, and of the topic"
            if events > enough:
                raise asyncio.CancelledError

        dying._progress = interrupt
        with pytest.raises(asyncio.CancelledError):
            await dying.run()
    left = await load_checkpoint(world.store)
    assert left is not None
    assert (left.ended_us, left.agents_over, left.after, left.resumed) == (0, True, ("t", "d"), 2)
    report = await verification(world, VerifyOrder(keep=True, resume=True)).run()
    assert (report.ok, report.log.agents, report.log.events, report.cache.agents, report.cache.wrong) == (False, 4, 12, 4, 1)
    assert (report.looked.resumed, report.looked.agents, report.looked.agents_total) == (3, 4, 4)
    assert sorted(report.looked.partitions) == [0, 1]
    done = await load_checkpoint(world.store)
    assert done is not None
    assert (done.ended_us > 0, done.ok) == (True, False)
    # It is over: the next one begins anew, with what it is told.
    again = await verification(world, VerifyOrder(sample=0.5, seed=3, keep=True, resume=True)).run()
    assert (again.looked.resumed, again.looked.seed) == (0, 3)


async def test_a_rate_is_kept(world: World) -> None:
    await world.talk("a", 60)
    began_s = time.monotonic()
    report = await verification(world, VerifyOrder(events_per_s=200)).run()
    assert report.looked.events == 120
    assert time.monotonic() - began_s >= 120 / 200 - 0.01, "faster than it was told"


def test_orders_that_cannot_be_are_refused() -> None:
    assert [parse_sample(text) for text in ("5%", "0.05", "100%")] == [0.05, 0.05, 1.0]
    for order in (
        VerifyOrder(sample=0),
        VerifyOrder(sample=1.01),
        VerifyOrder(events_per_s=-1),
        VerifyOrder(seed=-1),
        VerifyOrder(seed=1 << 64),
    ):
        with pytest.raises(InvalidInput):
            order.checked()
    with pytest.raises(InvalidInput):
        parse_sample("some")
    assert [len(sampled_partitions(16, sample, 1)) for sample in (0.01, 0.0625, 0.07, 1)] == [1, 1, 2, 16]
