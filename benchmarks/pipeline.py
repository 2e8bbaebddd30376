"""From the log through Kafka into Redis, and back out of Redis."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import UUID

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

import perdure
from benchmarks import messaging
from benchmarks.appending import EVENT_BYTES, Agents, unique
from benchmarks.measuring import median, open_load, percentile
from benchmarks.report import machine, note, shape
from benchmarks.servers import fresh_database
from benchmarks.settings import Settings
from benchmarks.worker import Worker
from perdure import Event, append, services
from perdure.client.engine import Engine
from perdure.engine.log.log import AgentAppend
from perdure.engine.log.records import AgentName
from perdure.engine.relay import Relay
from perdure.projections.contract import StateCache
from perdure.projections.hot import HotStates
from perdure.projections.projector import Projector
from perdure.projections.reader import StateReader

__all__ = ["KEYS", "measure"]

KEYS = (
    *("ratios.redis_read", "ratios.hot_read", "figures.kafka_p50_ms", "figures.kafka_p99_ms", "figures.redis_p50_ms"),
    *("figures.redis_p99_ms", "figures.project_per_s", "figures.relay_per_s"),
    *messaging.KEYS,
)
RATE_PER_S = 5_000
AGENTS = 2_000
FILL_AGENTS = 100
"""Agents of one append while the log is filled, each with FILL_EVENTS events."""
FILL_EVENTS = 5
MESSAGES = 50
WATCHED_PARTITIONS = (0, 1)
"""The bare consumer reads these alone: a sample, so that consuming weighs little on the same processors."""
TOKEN_SAMPLE = 50
"""Of so many appends one is looked for in Redis."""
POLL_S = 0.0005
LOOK_S = 0.001
"""Between two looks into Redis; more often, looking would weigh more than what is looked at."""
WAIT_POLL_S = 0.05
VISIBLE_TIMEOUT_S = 60.0
WARM_UP_S = 1.0


class _Run:
    """One run: an engine on servers of its own names, and what was found."""

    def __init__(self, settings: Settings, engine: Engine, given: dict[str, str], tenant: str) -> None:
        self.settings = settings
        self.engine = engine
        self.given = given
        self.tenant = tenant
        self.limits = messaging.Limits(
            given["bus"].removeprefix("kafka://").partition("?")[0], given["cache"], f"{tenant}-bare", tools=settings.peers
        )
        self.found: dict[str, float] = {}
        self.details: dict[str, Any] = {}


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of the pipeline."""
    servers = await asyncio.to_thread(services.up, root=settings.root)
    assert servers.postgres is not None
    assert servers.kafka is not None
    assert servers.redis is not None
    about = machine(servers.postgres.url)
    tenant = unique("benchmark")
    bus = f"{servers.kafka.url}?topic={tenant}"
    with tempfile.TemporaryDirectory(prefix="perdure-benchmark-") as folder, fresh_database(servers.postgres.url) as url:
        given = {"log": url, "bus": bus, "cache": servers.redis.url, "keys": f"file://{folder}/root.key"}
        async with perdure.open(url, bus=bus, cache=given["cache"], keys=given["keys"]) as engine:
            run = _Run(settings, engine, given, tenant)
            try:
                for part in (_catch_up, _latencies, _reads):
                    note(f"pipeline: {part.__name__.strip('_')}")
                    await part(run)
            finally:
                await _clean(run, servers.kafka.url)
    run.details["uvloop"] = type(asyncio.get_running_loop()).__module__ == "uvloop"
    return shape(run.found, KEYS, run.details, about, run.limits)


async def _clean(run: _Run, kafka_url: str) -> None:
    """The topic and the keys of this run."""
    redis = Redis.from_url(run.given["cache"])
    async for key in redis.scan_iter(match=f"*{run.tenant}*", count=1000):
        await redis.unlink(key)
    await redis.aclose()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    await admin.start()
    try:
        await admin.delete_topics([run.tenant])
    finally:
        await admin.close()


# --- catching up ---


async def _catch_up(run: _Run) -> None:
    """What one relay and then one projector do when everything is there already."""
    store, bus = run.engine.log.store, run.engine.bus
    events = await _fill(run, int(run.settings.seconds(30_000, 300_000)))
    await bus.ensure(store.partitions)
    relay, stop = Relay(store, bus), asyncio.Event()
    started = time.perf_counter()
    relaying = asyncio.create_task(relay.run(stop))
    await relay.drain()
    run.found["figures.relay_per_s"] = events / (time.perf_counter() - started)
    stop.set()
    await relaying
    run.found["figures.project_per_s"] = await _project(run, events)
    bare = await run.limits.publishing(events, EVENT_BYTES)
    run.found |= {f"ratios.{name}": run.found["figures.relay_per_s"] / rate for name, rate in bare.items()}
    run.details |= {"caught_up_events": events, "bare_per_s": {name: round(rate) for name, rate in bare.items()}}


async def _project(run: _Run, events: int) -> float:
    engine = run.engine
    projector = Projector(engine.log.store, engine.bus, engine.cache, engine.log.vault, group=run.tenant)
    stop = asyncio.Event()
    while not await projector.lag():  # noqa: ASYNC110 - joining the group is no work on events
        await asyncio.sleep(POLL_S)
    started = time.perf_counter()
    projecting = asyncio.create_task(projector.run(stop))
    while projector.status.messages < events and not projecting.done():  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    rate = events / (time.perf_counter() - started)
    stop.set()
    await projecting
    return rate


async def _fill(run: _Run, events: int) -> int:
    """Events of 1 KB, spread over the agents; how many there are then."""
    agents = Agents(run.engine, tenant=run.tenant)
    names = [AgentName(run.tenant, f"filled-{number}") for number in range(AGENTS)]
    written = 0
    while written < events:
        for first in range(0, AGENTS, FILL_AGENTS):
            chosen = names[first : first + FILL_AGENTS]
            await run.engine.log.append_many([AgentAppend(name, [agents.event() for _ in range(FILL_EVENTS)]) for name in chosen])
            written += len(chosen) * FILL_EVENTS
    return written


# --- latencies ---


class _Watch:
    """When events were committed, and how long after that they were seen."""

    def __init__(self) -> None:
        self.committed: dict[UUID, float] = {}
        self.early: dict[UUID, float] = {}
        self.kafka: list[float] = []
        self.redis: list[float] = []
        self.awaited: dict[AgentName, tuple[int, float]] = {}

    def commit(self, event: UUID, at: float) -> None:
        """Note a commit; one that a consumer has seen already took no time."""
        seen = self.early.pop(event, None)
        if seen is None:
            self.committed[event] = at
        else:
            self.kafka.append(max(0.0, seen - at))

    def consume(self, event: UUID, at: float) -> None:
        """Note that a consumer saw an event."""
        committed = self.committed.pop(event, None)
        if committed is None:
            self.early[event] = at
        else:
            self.kafka.append(at - committed)

    def await_visible(self, name: AgentName, version: int, at: float) -> None:
        """Look for a version in Redis, unless an earlier one of the agent is still looked for."""
        self.awaited.setdefault(name, (version, at))

    async def look(self, cache: StateCache) -> None:
        """Look for all that is awaited in one round trip."""
        names = list(self.awaited)
        tokens = await cache.tokens(names)
        now = time.perf_counter()
        for name, token in zip(names, tokens, strict=True):
            version, at = self.awaited[name]
            if token is not None and token.version >= version:
                self.redis.append(now - at)
                del self.awaited[name]


async def _look(watch: _Watch, cache: StateCache) -> None:
    """One looker for all samples, so that looking costs the same however far behind Redis is."""
    while True:
        if watch.awaited:
            await watch.look(cache)
        await asyncio.sleep(LOOK_S)


async def _latencies(run: _Run) -> None:
    """5 000 events/s at intended times, with relay and projector in processes of their own."""
    agents = Agents(run.engine, prefix="paced", tenant=run.tenant)
    await agents.make(AGENTS)
    workers = [await Worker.start(role, group=run.tenant, **run.given) for role in ("relay", "project")]
    try:
        await _wait_visible(run, agents)
        watch = _Watch()
        async with _consuming(run, watch):
            # A group of its own per run: members of one group on other topics would rebalance it.
            rate = RATE_PER_S * min(1.0, run.settings.scale)
            await open_load(rate, WARM_UP_S, agents.step)
            append_latencies = await open_load(rate, run.settings.seconds(8, 60), _watched(agents, watch))
            await _wait_visible(run, agents)
    finally:
        for worker in workers:
            await worker.end()
    for name, values in (("kafka", watch.kafka), ("redis", watch.redis)):
        run.found[f"figures.{name}_p50_ms"] = median(values) * 1000
        run.found[f"figures.{name}_p99_ms"] = percentile(values, 0.99) * 1000
        run.details[f"{name}_samples"] = len(values)
    run.details["rate_per_s"] = rate
    run.details["append_p50_ms"] = round(median(append_latencies) * 1000, 2)
    run.details["append_p99_ms"] = round(percentile(append_latencies, 0.99) * 1000, 2)


def _watched(agents: Agents, watch: _Watch) -> Callable[[], Awaitable[None]]:
    """An append whose commit is noted; of some the way into Redis is watched."""
    numbers = count(1)

    async def work() -> None:
        name, event, version = await agents.next()
        at = time.perf_counter()
        watch.commit(event.id, at)
        if next(numbers) % TOKEN_SAMPLE == 0:
            watch.await_visible(name, version, at)

    return work


async def _wait_visible(run: _Run, agents: Agents) -> None:
    """Until Redis holds every agent as the log does."""
    watch = _Watch()
    for name, version in agents.versions.items():
        watch.await_visible(name, version, 0.0)
    async with asyncio.timeout(VISIBLE_TIMEOUT_S):
        while watch.awaited:
            await watch.look(run.engine.cache)
            await asyncio.sleep(WAIT_POLL_S)


@asynccontextmanager
async def _consuming(run: _Run, watch: _Watch) -> AsyncIterator[None]:
    """A bare consumer, as a user of the topic would write it."""
    bootstrap = run.given["bus"].removeprefix("kafka://").partition("?")[0]
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="latest", fetch_max_wait_ms=100)
    await consumer.start()
    places = [TopicPartition(run.tenant, partition) for partition in WATCHED_PARTITIONS]
    consumer.assign(places)
    await consumer.seek_to_end(*places)
    for place in places:
        await consumer.position(place)
    watching = [asyncio.create_task(_consume(consumer, watch)), asyncio.create_task(_look(watch, run.engine.cache))]
    try:
        yield
    finally:
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
        await consumer.stop()


async def _consume(consumer: Any, watch: _Watch) -> None:
    async for message in consumer:
        at = time.perf_counter()
        event = next(value for name, value in message.headers if name == "ce_id")
        watch.consume(UUID(event.decode()), at)


# --- reads ---


async def _reads(run: _Run) -> None:
    """A conversation of 50 messages: from Redis and at hand, beside bare commands of redis-py."""
    engine = run.engine
    agent = engine.agent("read", tenant=run.tenant)
    for number in range(MESSAGES):
        message = {"role": "assistant" if number % 2 else "user", "content": f"{number}: " + "the flight is confirmed, " * 16}
        await agent.append(Event("message_added", changes=(append("/messages", message),)))
    store, cache, vault = engine.log.store, engine.cache, engine.log.vault
    cold = StateReader(store, cache, vault, kept=HotStates(agents_max=0))
    hot = StateReader(store, cache, vault)
    document = (await cold.state(run.tenant, "read")).document
    redis = Redis.from_url(run.given["cache"])
    await redis.set(f"{run.tenant}:bare", msgspec.msgpack.encode(document))
    await redis.set(f"{run.tenant}:small", b"1:1:50:51")

    async def bare() -> None:
        encoded = await redis.get(f"{run.tenant}:bare")
        assert isinstance(encoded, bytes)
        msgspec.msgpack.decode(encoded)

    async def small() -> None:
        await redis.get(f"{run.tenant}:small")

    async def from_redis() -> None:
        await cold.state(run.tenant, "read", consistency="eventual")

    async def at_hand() -> None:
        await hot.state(run.tenant, "read", consistency="eventual")

    reads = (bare, small, from_redis, at_hand)
    found: dict[str, list[float]] = {read.__name__: [] for read in reads}
    # In turns: what else the machine does weighs on each alike.
    for _ in range(int(1 + run.settings.seconds(1_500, 20_000))):
        for read in reads:
            started = time.perf_counter()
            await read()
            found[read.__name__].append(time.perf_counter() - started)
    await redis.aclose()
    p50 = {name: median(values) for name, values in found.items()}
    run.found["ratios.redis_read"] = p50["from_redis"] / p50["bare"]
    run.found["ratios.hot_read"] = p50["at_hand"] / p50["small"]
    bare_per_s = await run.limits.reading(int(1_000 + run.settings.seconds(20_000, 200_000)), len(msgspec.msgpack.encode(document)))
    if bare_per_s is not None:
        run.found["ratios.redis_benchmark"] = 1 / p50["from_redis"] / bare_per_s
    run.details["read_p50_us"] = {name: round(value * 1e6) for name, value in p50.items()}
