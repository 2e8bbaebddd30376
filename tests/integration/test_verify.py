"""Verification tells what disagrees with the log from what is merely behind it."""

from __future__ import annotations

import msgspec

from perdure.client.verify import Lag, VerifyReport, verify
from perdure.projections.contract import CachedState
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
