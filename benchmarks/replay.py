"""Replay: events folded per second beside a bare COPY out of the same rows; a state at any point of a long history; a fork of it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import psycopg

from benchmarks.append import Settings
from benchmarks.measuring import median, percentile
from benchmarks.report import machine, note, shape
from benchmarks.servers import engine_on_postgres
from perdure import Event, append, set_value
from perdure.client.engine import Engine
from perdure.engine.log.contract import AgentName
from perdure.engine.replay import fold_log

__all__ = ["KEYS", "measure"]

KEYS = ("ratios.replay_vs_copy", "figures.replay_per_s", "figures.pit_ms_p99", "figures.fork_ms")
LONG = AgentName("benchmark", "long")
BATCH = 500
WINDOW = 50
"""Messages that the long agent's state holds: its history is long, not its state."""
POINTS = 60
RUNS = 3


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of replays."""
    events = max(2_000, int((20_000 if settings.quick else 100_000) * settings.scale))
    async with engine_on_postgres(settings.root) as place:
        engine = place.engine
        note(f"replay: an agent of {events} events, with a snapshot every {BATCH}")
        await _fill(engine, events)
        found = await _rates(engine, place.url, events) | await _points(engine, events) | await _forks(engine)
        about = machine(place.postgres_url)
    return shape(found, KEYS, {"events": events, "snapshot_every": BATCH}, about)


async def _fill(engine: Engine, events: int) -> None:
    agent = engine.agent(LONG.agent, tenant=LONG.tenant)
    for start in range(0, events, BATCH):
        batch = []
        for number in range(start, start + BATCH):
            message = {"role": "user", "content": f"message {number}, with some words so that it looks like one that somebody wrote"}
            slot = number % WINDOW
            change = append("/messages", message) if number < WINDOW else set_value(f"/messages/{slot}", message)
            batch.append(Event("message_added", changes=(change,)))
        await agent.append(batch)
        await engine.snapshots.create_snapshot(LONG)


async def _rates(engine: Engine, url: str, events: int) -> dict[str, float]:
    record = await engine.log.vault.record(*LONG)
    folds, copies = [], []
    for _ in range(RUNS):
        began = time.perf_counter()
        folded = await fold_log(engine.log.store, engine.log.vault, record)
        folds.append(events / (time.perf_counter() - began))
        assert folded.version == events
        copies.append(await asyncio.to_thread(_copied, url, events))
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
    took = []
    for number in range(20):
        began = time.perf_counter()
        await engine.recovery.fork(LONG, f"fork-{number}")
        took.append(time.perf_counter() - began)
    return {"figures.fork_ms": median(took) * 1000}
