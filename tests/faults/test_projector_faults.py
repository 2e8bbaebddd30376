"""Projectors that are killed, and a bus that repeats and reorders: afterwards log, topic and cache say the same."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

import perdure
from perdure.client.engine import Engine
from perdure.engine.log.records import SealedEvent
from perdure.projections.cache_check import check_cache
from perdure.projections.projector import Projector
from tests.fix_installation import Installation
from tests.fix_projections import World
from tests.fix_services import PrivateServices

KILL_POINTS = ("projector.received", "projector.received:3", "projector.applied", "projector.applied:3", "projector.committed:2")
AGENTS = 6


async def talk(engine: Engine, tenant: str, turns: int, team: str = "agent") -> None:
    """Each agent of the team says something so many times."""
    for turn in range(turns):
        event = [perdure.Event("said", changes=(perdure.append("/messages", {"content": f"turn {turn}"}),)) for _ in range(AGENTS)]
        await asyncio.gather(*(engine.agent(f"{team} {n}", tenant=tenant).append([event[n]]) for n in range(AGENTS)))


async def killed_and_replaced(installation: Installation, kill_point: str) -> None:
    """A projector is killed at the step while events arrive; what another one then leaves in the cache is right."""
    numbers = itertools.count()
    async with installation.engine() as engine:
        await talk(engine, installation.tenant, 2)
        async with installation.process("relay"), installation.process("projector", kill_point=kill_point) as victim:
            ended = asyncio.create_task(installation.killed(victim))
            while not ended.done():
                # Others each time: a later event of the same agent would mend what was lost of it.
                await talk(engine, installation.tenant, 1, team=f"team {next(numbers)}")
                await asyncio.wait([ended], timeout=0.1)
            await ended
        await installation.settled(engine)


async def test_a_projector_killed_at_any_step_is_replaced(new_installation: Callable[[], Installation]) -> None:
    # Together, because each has to outwait the killed member's session with the consumer group.
    async with asyncio.TaskGroup() as group:
        for kill_point in KILL_POINTS:
            group.create_task(killed_and_replaced(new_installation(), kill_point), name=kill_point)


def scrambled(events: list[SealedEvent], seed: int) -> list[SealedEvent]:
    """Every event at least once, some more often, each somewhere near its place or far from it."""
    chance = random.Random(seed)
    repeated = [event for event in events for _ in range(chance.choice((1, 1, 2, 3)))]
    far = chance.choice((2, 10, len(repeated)))
    return [event for _, event in sorted(enumerate(repeated), key=lambda item: item[0] + chance.uniform(0, far))]


async def all_events(world: World) -> dict[int, list[SealedEvent]]:
    return {partition: await world.store.read(partition, 0, 1_000) for partition in world.published}


@pytest.mark.parametrize("seed", range(5))
async def test_repeated_and_reordered_messages_lead_to_the_same_states(seed: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.projections.projector.BATCH_MESSAGES_MAX", random.Random(seed).choice((1, 3, 17)))
    for _ in range(4):
        for agent in "abc":
            await world.talk(agent, 5)
    projector, reader = world.projector(), world.reader()
    seen: dict[str, int] = {}
    for partition, events in (await all_events(world)).items():
        mixed = scrambled(events, seed)
        for start in range(0, len(mixed), 25):
            await world.bus.publish(partition, mixed[start : start + 25])
            await projector.drain()
            for agent in sorted({event.agent for event in mixed[start : start + 25]}):
                version = (await reader.state("t", agent, consistency="eventual")).version
                assert version >= seen.get(agent, 0), "the cache went back"
                seen[agent] = version
    await projector.close()
    report = await check_cache(world.store, world.cache, world.vault)
    assert (report.same, report.ok) == (3, True)
    assert projector.status.quarantined_agents == 0


async def test_a_topic_with_repeated_and_reordered_messages_is_projected_right(installation: Installation) -> None:
    async with installation.engine() as engine:
        await talk(engine, installation.tenant, 20)
        store = engine.log.store
        await engine.bus.ensure(store.partitions)
        for partition in range(store.partitions):
            mixed = scrambled(await store.read(partition, 0, 1_000), partition)
            for start in range(0, len(mixed), 13):
                await engine.bus.publish(partition, mixed[start : start + 13])
        projector = Projector(store, engine.bus, engine.cache, engine.log.vault)
        try:
            await projector.drain()
        finally:
            await projector.close()
        report = await check_cache(store, engine.cache, engine.log.vault)
        assert (report.same, report.ok, projector.status.quarantined_agents) == (AGENTS, True, 0)
        for number in range(AGENTS):
            state = await engine.agent(f"agent {number}", tenant=installation.tenant).state(consistency="eventual")
            assert [message["content"] for message in state.document["messages"]] == [f"turn {turn}" for turn in range(20)]


async def test_a_redis_that_is_flushed_under_load_serves_no_empty_agent(
    installation: Installation, private_services: Callable[..., PrivateServices]
) -> None:
    redis_url = private_services("redis").services.redis.url
    installation.variables["PERDURE_CACHE"] = redis_url
    names = [f"agent {number}" for number in range(AGENTS)]
    async with installation.engine() as engine, Redis.from_url(redis_url) as redis:
        await talk(engine, installation.tenant, 1)
        await talk(engine, installation.tenant, 3, team="silent")
        async with installation.process("relay", "projector"):
            for turn in range(2, 12):
                await talk(engine, installation.tenant, 1)
                if turn % 3 == 0:
                    await redis.flushall()
                for name in names:
                    state = await engine.agent(name, tenant=installation.tenant).state()
                    assert (state.version, len(state.document["messages"])) == (turn, turn)
            await redis.flushall()
            for number in range(AGENTS):
                state = await engine.agent(f"silent {number}", tenant=installation.tenant).state(consistency="eventual")
                assert state.version == 3
        await engine.run(until_drained=True)
        for name in names:
            assert (await engine.agent(name, tenant=installation.tenant).state(consistency="eventual")).version == 11
        report = await installation.settled(engine)
    assert report.log.agents == 2 * AGENTS
