"""Appends to the log in Postgres, beside what Postgres does by itself in the same run."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import psycopg

import perdure
from benchmarks import beside
from benchmarks.appending import Agents, UnsealedVault, contents, unique
from benchmarks.measuring import closed_load, median, open_load, percentile
from benchmarks.report import machine, note, shape
from benchmarks.servers import Baseline, copy_rate, fresh_database, pgbench, postgres_url
from benchmarks.settings import Settings
from benchmarks.sides import sides
from benchmarks.worker import Worker
from perdure.client.engine import Engine
from perdure.engine.importing import BrokenRecord, Conversation, read_conversations

__all__ = ["KEYS", "measure"]

KEYS = (
    *("ratios.pgbench32", "ratios.pgbench32_unsealed", "ratios.copy", "ratios.single_latency", "ratios.processes4"),
    "ratios.processes2_of_few",
    *("ratios.bytes_per_raw", "ratios.under_snapshot", "figures.appends_per_s", "figures.p99_ms_half_rate", "figures.creates_per_s"),
    *beside.KEYS,
)
CALLERS = 256
AGENTS = 2048
PROCESSES = 4
FEW = 4
"""Callers of a process that serves few agents at a time, as a node does: no large batches hide what it costs to meet another process."""
TRAINING_VARIABLE = "PERDURE_TRAINING"
DATA_DEFAULT = Path(__file__).parent.parent.parent / "shared" / "data"
TAU_BENCH = Path("trajectories") / "tau-bench" / "gpt-4o-airline.json"


class _Run:
    """One run: its servers' URL, its keys, and what it has found."""

    def __init__(self, settings: Settings, postgres_url: str, folder: Path) -> None:
        self.settings = settings
        self.postgres_url = postgres_url
        self.keys = f"file://{folder}/root.key"
        self.found: dict[str, float] = {}
        self.details: dict[str, Any] = {}

    @asynccontextmanager
    async def engine(self, url: str, *, sealed: bool = True) -> AsyncIterator[Engine]:
        """An engine on a database."""
        async with perdure.open(url, bus="memory://", cache="memory://", keys=self.keys) as engine:
            if not sealed:
                engine.log.vault = UnsealedVault(engine.log.vault)
            yield engine

    async def callers(self, engine: Engine, duration_s: float) -> tuple[float, Agents]:
        """Appends per second of 256 callers, after a warm-up; the agents appended to."""
        agents = Agents(engine, unique("agent"))
        await agents.make(AGENTS)
        await closed_load(CALLERS, min(1.0, duration_s), agents.step)
        return (await closed_load(CALLERS, duration_s, agents.step))[0], agents


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of appends."""
    server = await postgres_url(settings.root)
    about = machine(server)
    await asyncio.to_thread(_fill_wal, server, int(settings.seconds(300, 1500)))
    with tempfile.TemporaryDirectory(prefix="perdure-benchmark-") as folder, _no_training():
        run = _Run(settings, server, Path(folder))
        for part in (_rates, _unsealed, _creates, _processes, _snapshot, _bytes):
            note(f"append: {part.__name__.strip('_')}")
            await part(run)
        note("append: beside peers")
        async with sides(settings, server) as compared:
            run.details |= await beside.measure_beside(compared)
    run.details["uvloop"] = type(asyncio.get_running_loop()).__module__ == "uvloop"
    return shape(run.found | compared.found, KEYS, run.details, about, compared)


@contextmanager
def _no_training() -> Iterator[None]:
    """A tenant's dictionaries are trained a few times in its life; a rate over seconds should not hold one of them by chance."""
    before = os.environ.get(TRAINING_VARIABLE)
    os.environ[TRAINING_VARIABLE] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRAINING_VARIABLE]
        else:
            os.environ[TRAINING_VARIABLE] = before


def _fill_wal(postgres_url: str, megabytes: int) -> None:
    """Let the server have so many files of its write-ahead log to recycle, as one that has run for a while.

    A new server makes and zeroes one for every 16 MB that are written, and every commit waits for that: tens of milliseconds, which are neither
    the log's nor those of a server in use.
    """
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for _ in range(megabytes):
            connection.execute("SELECT pg_logical_emit_message(false, 'benchmark', repeat('x', 1000000))")
        connection.execute("CHECKPOINT")


async def _rates(run: _Run) -> None:
    """Appends of 256 callers and of one beside pgbench's and COPY's; latency at half the rate."""
    seconds = run.settings.seconds
    with fresh_database(run.postgres_url) as other, fresh_database(run.postgres_url) as url:
        baseline = Baseline(other, contents(1)[0])
        # Ratios are of neighbours in time: what else the machine does then weighs on both.
        many = await asyncio.to_thread(pgbench, baseline, 32, seconds(3, 20))
        async with run.engine(url) as engine:
            rate, agents = await run.callers(engine, seconds(3, 20))
            again = await asyncio.to_thread(pgbench, baseline, 32, seconds(3, 20))
            # Each load has one agent per request that waits; more are made so that half the rate never runs out.
            half = await open_load(rate / 2, seconds(3, 20), agents.step)
            _, single = await closed_load(1, seconds(2, 10), agents.step)
        alone = await asyncio.to_thread(pgbench, baseline, 1, seconds(2, 10))
        copied = await asyncio.to_thread(copy_rate, baseline, int(40_000 * min(1.0, run.settings.scale)))
    pgbench_rate = (many.rate + again.rate) / 2
    run.found["figures.appends_per_s"] = rate
    run.found["ratios.pgbench32"] = rate / pgbench_rate
    run.found["ratios.copy"] = rate / copied
    run.found["ratios.single_latency"] = median(single) / alone.latency_s
    run.found["figures.p99_ms_half_rate"] = percentile(half, 0.99) * 1000
    run.details |= {"pgbench32_per_s": round(pgbench_rate), "copy_per_s": round(copied)}
    run.details |= {"single_p50_ms": round(median(single) * 1000, 3), "pgbench1_ms": round(alone.latency_s * 1000, 3)}
    run.details["p50_ms_half_rate"] = round(median(half) * 1000, 2)


async def _unsealed(run: _Run) -> None:
    """The same without compression and encryption."""
    with fresh_database(run.postgres_url) as other, fresh_database(run.postgres_url) as url:
        many = await asyncio.to_thread(pgbench, Baseline(other, contents(1)[0]), 32, run.settings.seconds(3, 20))
        async with run.engine(url, sealed=False) as engine:
            rate, _ = await run.callers(engine, run.settings.seconds(3, 20))
    run.found["ratios.pgbench32_unsealed"] = rate / many.rate
    run.details["unsealed_per_s"] = round(rate)


async def _creates(run: _Run) -> None:
    """New agents, each with its first event."""
    with fresh_database(run.postgres_url) as url:
        async with run.engine(url) as engine:
            agents = Agents(engine)
            numbers: Iterator[int] = count()
            rate, _ = await closed_load(CALLERS, run.settings.seconds(2, 15), lambda _: agents.create(next(numbers)))
    run.found["figures.creates_per_s"] = rate


async def _processes(run: _Run) -> None:
    """Several writer processes on one log, and one alone on another: four of many callers each, and two of few."""
    for name, processes, callers in (("processes4", PROCESSES, CALLERS), ("processes2_of_few", 2, FEW)):
        alone_per_s, together_per_s = [await _writers(run, count, callers) for count in (1, processes)]
        run.found[f"ratios.{name}"] = together_per_s / alone_per_s
        run.details |= {f"{name}_per_s": round(together_per_s), f"{name}_alone_per_s": round(alone_per_s)}


async def _writers(run: _Run, processes: int, callers: int) -> float:
    """Events a second of so many processes on one log."""
    with fresh_database(run.postgres_url) as url:
        async with run.engine(url):
            pass  # made once, before several open it
        given = {"log": url, "keys": run.keys, "agents": AGENTS // 2, "callers": callers, "duration_s": run.settings.seconds(3, 20)}
        workers = [await Worker.start("append", prefix=f"process{number}", **given) for number in range(processes)]
        for worker in workers:
            worker.go()
        rate = sum([float(await worker.line()) for worker in workers])
        for worker in workers:
            await worker.end()
        return rate


async def _snapshot(run: _Run) -> None:
    """Appends while another connection holds a snapshot: what updates rows slows down then, what only inserts does not."""
    held_s = run.settings.seconds(4, 60)
    with fresh_database(run.postgres_url) as url:
        async with run.engine(url) as engine:
            before, agents = await run.callers(engine, run.settings.seconds(2, 20))
            async with await psycopg.AsyncConnection.connect(url) as connection:
                await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                await connection.execute("SELECT count(*) FROM agents")
                during, _ = await closed_load(CALLERS, held_s, agents.step)
                await connection.rollback()
            after, _ = await closed_load(CALLERS, run.settings.seconds(2, 20), agents.step)
    run.found["ratios.under_snapshot"] = during / ((before + after) / 2)
    run.details["snapshot_held_s"] = held_s


async def _bytes(run: _Run) -> None:
    """What real conversations take in Postgres, by the raw JSON of their messages.

    The tenant's dictionary is trained on the file; then the same conversations come again as other agents, and the growth counts.
    Beside it the stricter figure: trained on one half of the conversations, measured on the other.
    """
    found = list(_conversations())
    raw_bytes = _raw_bytes()
    again = await _growth(run, found, [_renamed(conversation) for conversation in found])
    unseen = await _growth(run, found[::2], found[1::2])
    run.found["ratios.bytes_per_raw"] = again / sum(raw_bytes)
    run.details["bytes_per_raw_untrained_half"] = round(unseen / sum(raw_bytes[1::2]), 3)
    run.details |= {"conversations": len(found), "events": sum(len(each.events) for each in found)}
    run.details |= {"stored_bytes": again, "raw_bytes": sum(raw_bytes)}


async def _growth(run: _Run, first: list[Conversation], second: list[Conversation]) -> int:
    with fresh_database(run.postgres_url) as url:
        async with run.engine(url) as engine:
            await engine.import_conversations(first, tenant="acme")
            await engine.train("acme")
            before = _stored_bytes(url)
            report = await engine.import_conversations(second, tenant="acme")
            if report.events_known or report.conversations != len(second):
                raise RuntimeError(f"not every conversation was new: {report}")
            return _stored_bytes(url) - before


def _stored_bytes(url: str) -> int:
    """Tables, TOAST and indexes of events and agents."""
    sql = """SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c
             WHERE c.relkind = 'r' AND c.relnamespace = 'perdure'::regnamespace AND (c.relname LIKE 'events%' OR c.relname LIKE 'agent%')"""
    with psycopg.connect(url) as connection:
        row = connection.execute(sql).fetchone()
    assert row is not None
    return int(row[0])


def _file() -> Path:
    return Path(os.environ.get("PERDURE_TEST_DATA", DATA_DEFAULT)) / TAU_BENCH


def _conversations() -> Iterator[Conversation]:
    for record in read_conversations(str(_file())):
        if isinstance(record, BrokenRecord):
            raise record.as_error()
        yield record


def _raw_bytes() -> list[int]:
    """Per conversation, its messages as compact JSON."""
    return [len(msgspec.json.encode(record["traj"])) for record in msgspec.json.decode(_file().read_bytes())]


def _renamed(conversation: Conversation) -> Conversation:
    return msgspec.structs.replace(conversation, agent=f"{conversation.agent}-again")
