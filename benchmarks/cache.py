"""Reads of many agents, a few of them most of the time, while some are written: from the cache and at hand, beside bare commands of redis-py."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from contextlib import suppress
from typing import Any

import msgspec
from redis.asyncio import Redis

import perdure
from benchmarks import payloads
from benchmarks.appending import unique
from benchmarks.peers.histogram import Histogram
from benchmarks.report import machine, note, shape
from benchmarks.servers import fresh_database
from benchmarks.settings import Settings
from perdure import Event, append, services
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.projections.hot import HotStates
from perdure.projections.reader import StateReader

__all__ = ["KEYS", "measure"]

KEYS = ("ratios.redis", "figures.hit_rate", "figures.reads_per_s", "figures.read_p50_ms", "figures.read_p99_ms")
MESSAGES = 20
HOT_SHARE = 0.1
"""Of the agents, this share fits at hand."""
EXPONENT = 1.0
"""Zipf's: the second agent is read half as often as the first."""
WRITES = 0.05
VISIBLE_TIMEOUT_S = 120.0
POLL_S = 0.02


class _Counted(HotStates[Any]):
    """States at hand, and how often one was."""

    asked = 0
    found = 0

    def get(self, agent: tuple[str, str]) -> Any:
        """As it is, counted."""
        state = super().get(agent)
        self.asked += 1
        self.found += state is not None
        return state


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of cached reads."""
    servers = await asyncio.to_thread(services.up, root=settings.root, only=("postgres", "redis"))
    assert servers.postgres is not None
    assert servers.redis is not None
    tenant = unique("cache")
    agents = settings.count(1_000, 10_000, least=50)
    redis = Redis.from_url(servers.redis.url)
    try:
        with tempfile.TemporaryDirectory(prefix="perdure-benchmark-") as folder, fresh_database(servers.postgres.url) as url:
            keys = f"file://{folder}/root.key"
            async with perdure.open(url, bus="memory://", cache=servers.redis.url, keys=keys) as engine:
                note(f"cache: {agents} agents of {MESSAGES} messages")
                names = await _fill(engine, tenant, agents)
                running = asyncio.create_task(engine.run(snapshotter=False))
                try:
                    await _visible(engine, names)
                    await _bare(engine, redis, names)
                    report = await _reads(settings, engine, redis, names)
                finally:
                    running.cancel()
                    with suppress(asyncio.CancelledError):
                        await running
    finally:
        async for key in redis.scan_iter(match=f"*{tenant}*", count=1000):
            await redis.unlink(key)
        await redis.aclose()
    found, details = report
    return shape(found, KEYS, details | {"agents": agents}, machine(servers.postgres.url))


async def _fill(engine: Engine, tenant: str, agents: int) -> list[AgentName]:
    messages = itertools.cycle([message for conversation in payloads.conversations() for message in conversation])
    names = [AgentName(tenant, f"agent-{number}") for number in range(agents)]

    async def fill(name: AgentName) -> None:
        events = [Event("message_added", changes=(append("/messages", next(messages)),)) for _ in range(MESSAGES)]
        await engine.log.append_events(name, events)

    for first in range(0, agents, 256):
        await asyncio.gather(*(fill(name) for name in names[first : first + 256]))
    return names


async def _visible(engine: Engine, names: list[AgentName]) -> None:
    async with asyncio.timeout(VISIBLE_TIMEOUT_S):
        while any(token is None or token.version < MESSAGES for token in await engine.cache.tokens(names)):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


async def _bare(engine: Engine, redis: Redis, names: list[AgentName]) -> None:
    """The same documents as plain values."""
    for name in names:
        state = await engine.agent(name.agent, tenant=name.tenant).state()
        await redis.set(_bare_key(name), msgspec.msgpack.encode(state.document))


def _bare_key(name: AgentName) -> str:
    return f"bare:{name.tenant}:{name.agent}"


async def _reads(settings: Settings, engine: Engine, redis: Redis, names: list[AgentName]) -> tuple[dict[str, float], dict[str, Any]]:
    """Reads in turns with the bare ones, of the same agents; every so many an agent is written, and what is at hand of it is old."""
    chance = random.Random(1)
    weights = list(itertools.accumulate(1 / rank**EXPONENT for rank in range(1, len(names) + 1)))
    kept = _Counted(agents_max=max(1, int(len(names) * HOT_SHARE)))
    reader = StateReader(engine.log.store, engine.cache, engine.log.vault, kept=kept)
    ours, bare = Histogram(), Histogram()
    spent = {"ours": 0.0, "bare": 0.0}
    wanted = settings.count(8_000, 100_000, least=200)
    for number in range(2 * wanted):
        name = chance.choices(names, cum_weights=weights)[0]
        if chance.random() < WRITES:
            await engine.log.append_event(name, Event("message_noted", changes=(perdure.set_value("/noted", number),)))
        began = time.perf_counter()
        await reader.state(*name, consistency="eventual")
        middle = time.perf_counter()
        encoded = await redis.get(_bare_key(name))
        assert isinstance(encoded, bytes)
        msgspec.msgpack.decode(encoded)
        ended = time.perf_counter()
        if number == wanted:  # what came before has warmed up
            kept.asked = kept.found = 0
        if number >= wanted:
            ours.add(middle - began)
            bare.add(ended - middle)
            spent["ours"] += middle - began
            spent["bare"] += ended - middle
    found = {
        "ratios.redis": spent["bare"] / spent["ours"],
        "figures.hit_rate": kept.found / kept.asked,
        "figures.reads_per_s": ours.total / spent["ours"],
        "figures.read_p50_ms": ours.percentile(0.5) * 1000,
        "figures.read_p99_ms": ours.percentile(0.99) * 1000,
    }
    return found, {"latency_ms": {"perdure": ours.percentiles_ms(), "redis-py": bare.percentiles_ms()}, "at_hand_agents": len(kept)}
