"""More processes on one log: 1, 2 and 4 writers, 1 and 2 relays, 1 and 2 projectors. They share the processors with the servers."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

import perdure
from benchmarks.appending import Agents, unique
from benchmarks.report import machine, note, shape
from benchmarks.servers import fresh_database
from benchmarks.settings import Settings
from benchmarks.worker import Worker
from perdure import services
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.services.model import Services

__all__ = ["KEYS", "measure"]

KEYS = (
    *("ratios.writers2", "ratios.writers4", "ratios.relays2", "ratios.projectors2"),
    *("figures.append_per_s", "figures.relay_per_s", "figures.project_per_s"),
)
CALLERS = 256
AGENTS = 512
WRITERS = (1, 2, 4)
EVENTS_PER_APPEND = 5
POLL_S = 0.01
CATCH_UP_TIMEOUT_S = 300.0


class _Place(NamedTuple):
    """A log with a topic and a cache of its own, filled. versions: of all agents."""

    given: dict[str, str]
    engine: Engine
    tenant: str
    versions: dict[AgentName, int]

    @property
    def events(self) -> int:
        return sum(self.versions.values())


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of scaling out."""
    servers = await asyncio.to_thread(services.up, root=settings.root, only=("postgres", "redis", "kafka"))
    assert servers.postgres is not None
    found: dict[str, float] = {}
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="perdure-benchmark-") as folder:
        writers = await _writers(settings, servers.postgres.url, folder)
        found |= {f"ratios.writers{count}": writers[count] / writers[1] for count in (2, 4)} | {"figures.append_per_s": writers[1]}
        details["writers_per_s"] = {count: round(rate) for count, rate in writers.items()}
        relays, projectors = {}, {}
        for count in (1, 2):
            async with _filled(settings, servers, Path(folder)) as place:
                note(f"scale: {count} relays, {count} projectors")
                relays[count] = await _timed(place, "relay", count, _published)
                projectors[count] = await _timed(place, "project", count, _projected)
        for name, rates in (("relay", relays), ("project", projectors)):
            found[f"figures.{name}_per_s"] = rates[1]
            found[f"ratios.{'relays' if name == 'relay' else 'projectors'}2"] = rates[2] / rates[1]
    return shape(found, KEYS, details, machine(servers.postgres.url))


async def _writers(settings: Settings, postgres_url: str, folder: str) -> dict[int, float]:
    """Appends per second of so many writer processes on one log: of those that are there, so many work."""
    keys = f"file://{folder}/root.key"
    rates = {}
    with fresh_database(postgres_url) as url:
        async with perdure.open(url, bus="memory://", cache="memory://", keys=keys):
            pass  # made once, before several open it
        given = {"log": url, "keys": keys, "agents": AGENTS, "callers": CALLERS, "duration_s": settings.seconds(2, 20)}
        workers = await asyncio.gather(*(Worker.start("append", prefix=f"writer{number}", **given) for number in range(WRITERS[-1])))
        try:
            for count in WRITERS:
                note(f"scale: {count} writers")
                for worker in workers[:count]:
                    worker.go()
                rates[count] = sum([float(await worker.line()) for worker in workers[:count]])
        finally:
            for worker in workers:
                await worker.end()
    return rates


@asynccontextmanager
async def _filled(settings: Settings, servers: Services, folder: Path) -> AsyncIterator[_Place]:
    assert servers.postgres is not None
    assert servers.kafka is not None
    assert servers.redis is not None
    tenant = unique("scale")
    with fresh_database(servers.postgres.url) as url:
        given = {"log": url, "bus": f"{servers.kafka.url}?topic={tenant}", "cache": servers.redis.url, "keys": f"file://{folder}/root.key"}
        async with perdure.open(url, bus=given["bus"], cache=given["cache"], keys=given["keys"]) as engine:
            agents = Agents(engine, tenant=tenant)
            place = _Place(given, engine, tenant, {})
            try:
                for _ in range(max(1, settings.count(30_000, 300_000) // (AGENTS * EVENTS_PER_APPEND))):
                    await asyncio.gather(*(_append(place, agents, number) for number in range(AGENTS)))
                await engine.bus.ensure(engine.log.store.partitions)
                yield place
            finally:
                await _clean(place)


async def _append(place: _Place, agents: Agents, number: int) -> None:
    name = AgentName(place.tenant, f"agent-{number}")
    done = await place.engine.log.append_events(name, [agents.event() for _ in range(EVENTS_PER_APPEND)])
    place.versions[name] = done.version


async def _timed(place: _Place, role: str, count: int, wait: Callable[[_Place], Awaitable[None]]) -> float:
    """Events per second of so many processes until all is done."""
    share = place.engine.log.store.partitions // count
    # They join at once: each is ready when all have their share.
    starting = [Worker.start(role, group=place.tenant, share=share, **place.given) for _ in range(count)]
    workers = await asyncio.gather(*starting)
    try:
        began = time.perf_counter()
        for worker in workers:
            worker.go()
        async with asyncio.timeout(CATCH_UP_TIMEOUT_S):
            await wait(place)
        return place.events / (time.perf_counter() - began)
    finally:
        for worker in workers:
            await worker.end()


async def _published(place: _Place) -> None:
    """Until the topic holds every event."""
    consumer = AIOKafkaConsumer(bootstrap_servers=_bootstrap(place))
    await consumer.start()
    try:
        partitions = [TopicPartition(place.tenant, number) for number in range(place.engine.log.store.partitions)]
        while sum((await consumer.end_offsets(partitions)).values()) < place.events:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
    finally:
        await consumer.stop()


async def _projected(place: _Place) -> None:
    """Until the cache holds every agent as the log does."""
    awaited = dict(place.versions)
    while awaited:
        tokens = await place.engine.cache.tokens(list(awaited))
        seen = {name for name, token in zip(awaited, tokens, strict=True) if token is not None and token.version >= awaited[name]}
        awaited = {name: version for name, version in awaited.items() if name not in seen}
        await asyncio.sleep(POLL_S)


def _bootstrap(place: _Place) -> str:
    return place.given["bus"].removeprefix("kafka://").partition("?")[0]


async def _clean(place: _Place) -> None:
    """The topic and the keys of this run."""
    redis = Redis.from_url(place.given["cache"])
    async for key in redis.scan_iter(match=f"*{place.tenant}*", count=1000):
        await redis.unlink(key)
    await redis.aclose()
    admin = AIOKafkaAdminClient(bootstrap_servers=_bootstrap(place))
    await admin.start()
    try:
        await admin.delete_topics([place.tenant])
    finally:
        await admin.close()
