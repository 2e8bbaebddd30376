"""A rebuild that is killed at each of its steps: what was read is read on, and the next one goes on and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis

import perdure
from perdure import Event, append, config
from perdure.projections.cache_check import check_cache
from perdure.projections.rebuild import LEASE

AGENTS = [f"agent {number}" for number in range(6)]
STEPS = ("begun", "page_built", "built", "decided", "page_cut")
EVENTS = 4
TIMEOUT_S = 90.0


async def command(*words: str, variables: dict[str, str], kill_point: str = "") -> int:
    """A command in a process of its own; its exit code."""
    environment = {**os.environ, **variables, "PERDURE_KILL_POINT": kill_point}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.host_process", *words, stdout=asyncio.subprocess.DEVNULL, env=environment
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def tenants(redis_url: str) -> AsyncIterator[str]:
    """What the names of tenants begin with whose keys in Redis are removed afterwards."""
    name = f"test-{uuid4().hex}"
    yield name
    async with Redis.from_url(redis_url) as redis:
        for step in STEPS:
            if keys := await keys_of(redis, f"{name}-{step}"):
                await redis.unlink(*keys)


async def keys_of(redis: Redis, tenant: str) -> list[bytes]:
    return [key async for key in redis.scan_iter(match=f"perdure:{{{tenant}/*", count=1_000)]


async def killed_and_gone_on_with(step: str, tenant: str, redis_url: str, folder: Path) -> None:
    """A rebuild is killed at the step; what is read meanwhile is right, and what the next one leaves, too."""
    flags = {"log": f"sqlite:///{folder}/state", "keys": f"file://{folder}/root.key", "cache": redis_url}
    variables = {f"PERDURE_{name.upper()}": value for name, value in flags.items()} | {"PERDURE_TENANT": tenant}
    async with perdure.open(settings=config.load(flags), partitions=2) as engine:
        for agent in AGENTS:
            await engine.agent(agent, tenant=tenant).append([Event("said", changes=(append("/said", n),)) for n in range(EVENTS)])
        await engine.run(until_drained=True)
        assert await command("rebuild", "--all", variables=variables, kill_point=f"rebuild.{step}") == -signal.SIGKILL
        for agent in AGENTS:
            state = await engine.agent(agent, tenant=tenant).state(consistency="eventual")
            assert (state.version, state.document) == (EVENTS, {"said": [0, 1, 2, 3]})
        assert all(await engine.cache.get([(tenant, agent) for agent in AGENTS]))
        for lease in await engine.log.store.list_leases(LEASE):  # the dead one's runs out
            await engine.log.store.release_lease(lease)
        left = (await engine.rebuilds.status()).build
        assert left.phase == ("cutting" if step in ("decided", "page_cut") else "building")
        assert await command("rebuild", "--all", variables=variables) == 0
        done = (await engine.rebuilds.status()).build
        assert (done.number, done.phase, done.agents_cut, done.failures) == (left.number, "done", len(AGENTS), 0)
        states = await engine.cache.get([(tenant, agent) for agent in AGENTS])
        assert {state.build for state in states if state is not None} == {done.number}
        assert (await check_cache(engine.log.store, engine.cache, engine.log.vault, tenants=[tenant])).same == len(AGENTS)
        async with Redis.from_url(redis_url) as redis:
            assert len(await keys_of(redis, tenant)) == len(AGENTS), "something of the build is left"
        assert list(await engine.approvals.unfinished()), "the one that was killed stands in the audit trail"


async def test_a_rebuild_killed_at_any_step_is_gone_on_with(tenants: str, redis_url: str, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        for step in STEPS:
            group.create_task(killed_and_gone_on_with(step, f"{tenants}-{step}", redis_url, tmp_path / step), name=step)
