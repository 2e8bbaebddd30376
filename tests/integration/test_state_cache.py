"""The cache as people hold it: how reads are served, warming, invalidating across processes, bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

import perdure
from perdure import Event, append, config
from perdure.client.engine import Engine, Opening
from perdure.engine.log.records import AgentName
from perdure.errors import AgentNotFound, InvalidInput

AGENTS = [f"agent {number}" for number in range(20)]


@pytest.fixture
async def new_engine(tmp_path: Path, redis_url: str) -> AsyncIterator[Callable[[], Opening]]:
    """A factory of engines, as of several processes, on one log and one Redis; keys are of a tenant of the test's own."""
    flags = {"log": f"sqlite:///{tmp_path}/state", "keys": f"file://{tmp_path}/root.key", "cache": redis_url}
    yield lambda: perdure.open(settings=config.load(flags, {}), partitions=2)
    async with Redis.from_url(redis_url) as redis:
        if keys := [key async for key in redis.scan_iter(match=f"perdure:{{{tmp_path.name}/*", count=1_000)]:
            await redis.unlink(*keys)


async def talk(engine: Engine, tenant: str, *agents: str) -> list[AgentName]:
    for agent in agents:
        await engine.agent(agent, tenant=tenant).append([Event("said", changes=(append("/said", n),)) for n in range(3)])
    return [AgentName(tenant, agent) for agent in agents]


async def test_hot_agents_are_served_without_a_fold(new_engine: Callable[[], Opening], tmp_path: Path) -> None:
    async with new_engine() as engine:
        names = await talk(engine, tmp_path.name, *AGENTS)
        for consistency in ("strong", "eventual"):
            for _ in range(20):
                for name in names:
                    await engine.states.get_current_state(name, consistency=consistency)
        facts = await engine.state_cache.statistics()
        assert (facts.reads.reads, facts.reads.folded, facts.reads.at_hand, facts.reads.damaged) == (800, 20, 780, 0)
        assert (facts.hit_ratio > 0.95, facts.states_at_hand, facts.cache.entries >= 20) == (True, 20, True)
        assert facts.bytes_at_hand > 0
        assert facts.reads.slowest_s >= facts.mean_s > 0
        engine.state_cache.reset_statistics()
        engine.state_cache.optimise(agents_max=5)
        facts = await engine.state_cache.statistics()
        assert (facts.reads.reads, facts.states_at_hand, facts.evicted_at_hand) == (0, 5, 15)
        for name in names:
            await engine.state_cache.get(name)
        assert (await engine.state_cache.statistics()).reads.cached == 20, "what is not at hand is in the cache"
        await talk(engine, tmp_path.name, AGENTS[0])
        await engine.states.get_current_state(names[0])
        assert (await engine.state_cache.statistics()).reads.caught_up == 1
        with pytest.raises(InvalidInput):
            engine.state_cache.optimise(bytes_max=-1)


async def test_what_one_process_invalidates_the_others_fold_anew(new_engine: Callable[[], Opening], tmp_path: Path) -> None:
    async with new_engine() as one, new_engine() as other:
        names = await talk(one, tmp_path.name, *AGENTS[:4])
        for name in names:
            assert (await other.state_cache.get(name)).version == 3
        assert await one.state_cache.invalidate(names[:1]) == 1
        other.state_cache.reset_statistics()
        for name in names:
            assert (await other.state_cache.get(name)).version == 3
        reads = (await other.state_cache.statistics()).reads
        assert (reads.folded, reads.at_hand) == (1, 3)
        assert await one.state_cache.invalidate(tenant=tmp_path.name) == 4
        assert await one.cache.tokens(names) == [None] * 4


async def test_warming_puts_what_is_missing_and_brings_forward_what_is_behind(new_engine: Callable[[], Opening], tmp_path: Path) -> None:
    async with new_engine() as engine:
        names = await talk(engine, tmp_path.name, *AGENTS[:6])
        for name in names[:3]:
            await engine.state_cache.get(name)
        await talk(engine, tmp_path.name, AGENTS[0])
        done = await engine.state_cache.warm(tenant=tmp_path.name, parallel=2)
        assert (done.agents, done.fresh, done.written, done.skipped) == (6, 2, 4, 0)
        tokens = await engine.cache.tokens(names)
        assert [token and token.version for token in tokens] == [6, 3, 3, 3, 3, 3]
        await talk(engine, tmp_path.name, AGENTS[1])
        assert await engine.state_cache.sync(names[1]) == 6
        assert (await engine.state_cache.get(names[1])).version == 6
        assert (await engine.state_cache.warm(names)).fresh == 6
        for wrong in (engine.state_cache.warm([AgentName(tmp_path.name, "nobody")]), engine.state_cache.sync(AgentName("no", "body"))):
            with pytest.raises(AgentNotFound):
                await wrong
        with pytest.raises(InvalidInput):
            await engine.state_cache.warm(names, parallel=0)
