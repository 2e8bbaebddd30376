"""Agents that move between two engines on Postgres: 1 GB in a set of many, and one large agent of 200 MB; the quick form a part of both.

Every byte is checked on the way and both states are compared, as always; the second for which a run waits until every process knows of it counts.
Beside it: COPY of the same rows in one transaction, into a table like a segment of the log.
"""

from __future__ import annotations

import asyncio
import os
import time
from itertools import count
from typing import Any

import perdure
from benchmarks.measuring import percentile
from benchmarks.report import machine, note, shape
from benchmarks.servers import Baseline, copy_rate, engine_on_postgres, fresh_database
from benchmarks.settings import Settings
from perdure import Event, config
from perdure.client.engine import Engine
from perdure.engine.changes import set_value
from perdure.engine.log.records import AgentName
from perdure.migration.transfer.runs import Report

__all__ = ["KEYS", "measure"]

KEYS = (
    *("ratios.large_vs_copy", "figures.gb_per_min", "figures.large_gb_per_min", "figures.agents_per_s"),
    *("figures.downtime_p50_ms", "figures.downtime_max_ms", "figures.large_downtime_ms"),
)
GB = 1_000_000_000
TENANT = "benchmark"
EVENT_BYTES = 8 * 1024
SLOTS = 500
PER_AGENT = 250
"""Events of one agent of the set: 2 MB."""
PER_APPEND = 250
AT_ONCE = 4
COPY_ROWS_MAX = 20_000
QUICK_PART = 0.15


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of transfers."""
    part = (QUICK_PART if settings.quick else 1.0) * settings.scale
    agents = max(4, int(GB * part / EVENT_BYTES / PER_AGENT))
    large = max(500, int(GB / 5 * part / EVENT_BYTES))
    async with engine_on_postgres(settings.root) as place:
        with fresh_database(place.postgres_url) as there, fresh_database(place.postgres_url) as beside:
            flags = {"log": there, "keys": f"file://{place.folder}/there.key", "store": f"file://{place.folder}/there"}
            async with perdure.open(settings=config.load(flags, {})) as target:
                note(f"transfer: {agents} agents with {PER_AGENT} events of 8 KB each, and one with {large}")
                names = [AgentName(TENANT, f"agent-{number}") for number in range(agents)]
                await _fill(place.engine, names, PER_AGENT)
                await _fill(place.engine, [AgentName(TENANT, "large")], large)
                for name in (*names, AgentName(TENANT, "large")):
                    await place.engine.states.get_current_state(name)  # as a running projector leaves the cache
                began_cpu_s = time.process_time()
                many = await place.engine.transfers.run(target, names, at_once=AT_ONCE)
                many_cpu_s = time.process_time() - began_cpu_s
                one = await place.engine.transfers.run(target, [AgentName(TENANT, "large")])
                large_cpu_s = time.process_time() - began_cpu_s - many_cpu_s
            rows_per_s = await asyncio.to_thread(copy_rate, Baseline(beside, _noise()), min(large, COPY_ROWS_MAX))
        about = machine(place.postgres_url)
    found = {
        "ratios.large_vs_copy": _events_per_s(one) / rows_per_s,
        "figures.gb_per_min": _gb_per_min(many, agents * PER_AGENT),
        "figures.large_gb_per_min": _gb_per_min(one, large),
        "figures.agents_per_s": many.moved / many.duration_s,
        "figures.downtime_p50_ms": percentile(many.downtime_ms, 0.5),
        "figures.downtime_max_ms": many.downtime_ms[-1],
        "figures.large_downtime_ms": one.downtime_ms[-1],
    }
    details = {
        "agents": agents,
        "events": many.events,
        "sealed_bytes": many.bytes,
        "large_events": one.events,
        "large_sealed_bytes": one.bytes,
        "seconds": many.duration_s,
        "large_seconds": one.duration_s,
        "mover_cpu_seconds": many_cpu_s,
        "large_mover_cpu_seconds": large_cpu_s,
    }
    return shape(found, KEYS, details, about)


def _noise() -> bytes:
    """As an event is sealed: half of it can be compressed."""
    return os.urandom(EVENT_BYTES // 2)


async def _fill(engine: Engine, names: list[AgentName], events: int) -> None:
    plain = b'{"a":1}' * (EVENT_BYTES // 14)
    number = count()

    def event() -> Event:
        content = os.urandom(EVENT_BYTES - len(plain)) + plain
        return Event("tool_returned", changes=(set_value(f"/results/{next(number) % SLOTS}", content),))

    await asyncio.gather(*(engine.log.append_event(name, Event("begun", changes=(set_value("/results", {}),))) for name in names))
    for name in names:
        left = events - 1
        while left > 0:
            await engine.log.append_events(name, [event() for _ in range(min(left, PER_APPEND))])
            left -= PER_APPEND


def _events_per_s(report: Report) -> float:
    return report.events / report.duration_s


def _gb_per_min(report: Report, events: int) -> float:
    """Of the content that was written. The seconds are those of the whole run, with what is waited for by every process."""
    if report.failed:
        raise AssertionError(f"{report.failed} agents stayed: {report.records[-1].problem}")
    return events * EVENT_BYTES / GB / (report.duration_s / 60)
