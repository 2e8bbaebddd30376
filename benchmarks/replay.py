"""Replay: events folded per second beside a bare COPY out of the same rows; a state at any point of a long history; a fork of it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import psycopg

from benchmarks import replaying
from benchmarks.measuring import median, percentile
from benchmarks.report import machine, note, shape
from benchmarks.servers import engine_on_postgres
from benchmarks.settings import Settings
from benchmarks.sides import sides
from perdure import Event, append, set_value
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.engine.replay import fold_log

__all__ = ["KEYS", "measure"]

FORKED = ("figures.fork_ms", "figures.fork_short_ms", "figures.fork_cpu_ms")
KEYS = ("ratios.replay_vs_copy", "figures.replay_per_s", "figures.pit_ms_p99", *FORKED, *replaying.KEYS)
LONG = AgentName("benchmark", "long")
SHORT = AgentName("benchmark", "short")
SHORT_EVENTS = 1_000
BATCH = 500
WINDOW = 50
"""Messages that the long agent's state holds: its history is long, not its state."""
POINTS = 60
FORKS = 40
RUNS = 9
"""Of folds and of copies in turns, each a tenth of a second in the quick form; one of each goes before and does not count."""


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of replays."""
    events = max(2_000, int((20_000 if settings.quick else 100_000) * settings.scale))
    async with engine_on_postgres(settings.root) as place:
        engine = place.engine
        note(f"replay: an agent of {events} events, with a snapshot every {BATCH}")
        await _fill(engine, events, LONG)
        found = await _rates(engine, place.url, events) | await _points(engine, events) | await _forks(engine)
        about = machine(place.postgres_url)
        async with sides(settings, place.postgres_url) as compared:
            beside = await replaying.measure_beside(compared)
    return shape(found | compared.found, KEYS, {"events": events, "snapshot_every": BATCH} | beside, about, compared)


async def _fill(engine: Engine, events: int, agent_name: AgentName) -> None:
    agent = engine.agent(agent_name.agent, tenant=agent_name.tenant)
    for start in range(0, events, BATCH):
        batch = []
        for number in range(start, start + BATCH):
            message = {"role": "user", "content": f"message {number}, with some words so that it looks like one that somebody wrote"}
            slot = number % WINDOW
            change = append("/messages", message) if number < WINDOW else set_value(f"/messages/{slot}", message)
            batch.append(Event("message_added", changes=(change,)))
        await agent.append(batch)
        await engine.snapshots.create_snapshot(agent_name)


async def _rates(engine: Engine, url: str, events: int) -> dict[str, float]:
    record = await engine.log.vault.record(*LONG)
    folds, copies = [], []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        folded = await fold_log(engine.log.store, engine.log.vault, record)
        folds.append(events / (time.perf_counter() - began))
        assert folded.version == events
        copies.append(await asyncio.to_thread(_copied, url, events))
    folds, copies = folds[1:], copies[1:]  # the first ones connect, and read what no memory has yet
    return {"ratios.replay_vs_copy": median(folds) / median(copies), "figures.replay_per_s": median(folds)}


def _copied(url: str, events: int) -> float:
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        began = time.perf_counter()
        with cursor.copy("COPY (SELECT * FROM perdure.events ORDER BY agent_key, version) TO STDOUT (FORMAT binary)") as copy:
            size = sum(len(piece) for piece in copy)
        assert size
        return events / (time.perf_counter() - began)


async def _points(engine: Engine, events: int) -> dict[str, float]:
    chance = random.Random(1)
    took = []
    for _ in range(POINTS):
        version = chance.randrange(1, events + 1)
        began = time.perf_counter()
        state = await engine.states.project_state(LONG, version)
        took.append(time.perf_counter() - began)
        assert state.version == version
    return {"figures.pit_ms_p99": percentile(took, 0.99) * 1000}


async def _forks(engine: Engine) -> dict[str, float]:
    """Of the long agent and of one of a thousand events, in turns. cpu: processor time of this process."""
    await _fill(engine, SHORT_EVENTS, SHORT)
    took: dict[AgentName, list[float]] = {LONG: [], SHORT: []}
    spent = []
    for number in range(FORKS):
        for name, times in took.items():
            began, used = time.perf_counter(), time.process_time()
            await engine.recovery.fork(name, f"{name.agent}-{number}")
            times.append(time.perf_counter() - began)
            spent.append(time.process_time() - used)
    return {key: median(seconds) * 1000 for key, seconds in zip(FORKED, (took[LONG], took[SHORT], spent), strict=True)}
