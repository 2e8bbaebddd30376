"""Backups beside pg_dump and pg_restore of the same database."""

from __future__ import annotations

import asyncio
import subprocess
import time
from typing import Any

import perdure
from benchmarks.appending import Agents
from benchmarks.measuring import median
from benchmarks.report import machine, note, shape
from benchmarks.servers import Place, engine_on_postgres, fresh_database, server_program
from benchmarks.settings import Settings
from perdure import config
from perdure.client.backups import restore_backup
from perdure.client.engine import Engine

__all__ = ["KEYS", "measure"]

KEYS = (
    *("ratios.backup_vs_pg_dump", "ratios.restore_vs_pg_restore", "ratios.bytes_vs_pg_dump"),
    *("figures.backup_mb_per_s", "figures.restore_mb_per_s", "figures.new_log_s", "figures.incremental_s", "figures.rpo_s"),
)
MB = 1_000_000
AGENTS = 500
PAIRS_QUICK = 3
"""Restores in turns with pg_restore; of the long form one takes long enough by itself."""


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of backups."""
    events = max(1_000, int((40_000 if settings.quick else 1_000_000) * settings.scale))
    async with engine_on_postgres(settings.root) as place:
        note(f"backup: {events} events of 1 KB")
        await _fill(place.engine, events)
        found = await _compared(place, events, PAIRS_QUICK if settings.quick else 1)
        every_s, under_load_s = (1.0, 4.0) if settings.quick else (30.0, 100.0)
        found |= await _more(place, every_s, under_load_s)
        about = machine(place.postgres_url)
    return shape(found, KEYS, {"events": events}, about)


async def _fill(engine: Engine, events: int) -> None:
    agents = Agents(engine)
    await agents.make(AGENTS)
    left = events - AGENTS
    while left > 0:
        count = min(left, AGENTS)
        await asyncio.gather(*(agents.step(number) for number in range(count)))
        left -= count


async def _compared(place: Place, events: int, pairs: int) -> dict[str, float]:
    """A backup beside pg_dump, and restores of both, each into a new database: with all indexes, and durable when it ends."""
    dump = place.folder / "dump"
    size_mb = events * 1024 / MB
    began = time.perf_counter()
    manifest = await place.engine.backups.create(_store(place))
    backup_s = time.perf_counter() - began
    dump_s = await asyncio.to_thread(_timed, server_program("pg_dump"), "-Fc", "-f", str(dump), place.url)
    ours, theirs = [], []
    for _ in range(pairs):
        with fresh_database(place.postgres_url) as url:
            began = time.perf_counter()
            await restore_backup(_store(place), _settings(place, url))
            ours.append(time.perf_counter() - began)
        with fresh_database(place.postgres_url) as url:
            theirs.append(await asyncio.to_thread(_timed, server_program("pg_restore"), "-d", url, str(dump)))
    return {
        "ratios.backup_vs_pg_dump": dump_s / backup_s,
        "ratios.restore_vs_pg_restore": median([their_s / our_s for our_s, their_s in zip(ours, theirs, strict=True)]),
        "ratios.bytes_vs_pg_dump": manifest.stored_bytes / dump.stat().st_size,
        "figures.backup_mb_per_s": size_mb / backup_s,
        "figures.restore_mb_per_s": size_mb / median(ours),
    }


async def _more(place: Place, every_s: float, under_load_s: float) -> dict[str, float]:
    """What a restore takes without any event, what a backup takes when little is new, and how much a loss would take under load."""
    with fresh_database(place.postgres_url) as url:
        began = time.perf_counter()
        async with perdure.open(settings=_settings(place, url)):
            new_log_s = time.perf_counter() - began
    agents = Agents(place.engine, "more")
    await agents.make(50)
    began = time.perf_counter()
    await place.engine.backups.create(_store(place))
    incremental_s = time.perf_counter() - began
    rpo_s = await _worst_rpo(place.engine, agents, _store(place), every_s, under_load_s)
    return {"figures.new_log_s": new_log_s, "figures.incremental_s": incremental_s, "figures.rpo_s": rpo_s}


def _store(place: Place) -> str:
    return f"file://{place.folder}/backups"


def _settings(place: Place, log: str) -> config.Settings:
    return config.load({"log": log, "keys": f"file://{place.folder}/root.key"})


async def _worst_rpo(engine: Engine, agents: Agents, to: str, every_s: float, under_load_s: float) -> float:
    """The farthest back that a loss of the log would have reached, asked all the time while events are written and backups are taken."""
    stop = asyncio.Event()
    taking = asyncio.create_task(engine.backups.keep_taking(to, every_s, stop, _raised))
    worst, until = 0.0, time.perf_counter() + under_load_s
    while time.perf_counter() < until:
        await asyncio.gather(*(agents.step(number) for number in range(50)))
        worst = max(worst, (await engine.backups.freshness(to)).rpo_s)
    stop.set()
    await taking
    return worst


def _raised(done: object) -> None:
    if isinstance(done, Exception):
        raise done


def _timed(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began
