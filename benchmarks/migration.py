"""Live migration: for how long an agent that is talked to all the time is away while it moves, as an outsider sees it.

Two host processes, a process that probes, Postgres. One agent at a time is probed a thousand times a second, open loop, and moved to and fro; beside
it other agents have their own load. Downtime is the longest time between two accepted commands of the agent around its migration; the same is
measured, as often and over the same time, without a migration, because the machine has gaps of its own. Latencies count from intended times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from benchmarks.measuring import median, percentile
from benchmarks.nodes import end_processes, start_node
from benchmarks.report import machine, note, shape
from benchmarks.servers import Place, engine_on_postgres
from benchmarks.settings import Settings
from perdure.engine.log.records import AgentName
from perdure.migration.records import Migration
from perdure.recovery.caller import Caller
from perdure.testing.ownership_history import OwnershipReport, check_ownership
from perdure.testing.prober import COUNT, Outcome, Probing
from perdure.testing.prober_process import ProberProcess

__all__ = ["KEYS", "measure"]

KEYS: Final = (
    "figures.downtime_p50_ms",
    "figures.downtime_p99_ms",
    "figures.downtime_max_ms",
    "figures.gap_without_p50_ms",
    "figures.gap_without_p99_ms",
    "figures.gap_without_max_ms",
    "figures.migrations",
    "figures.lost",
    "figures.doubled",
    "figures.drain_agents_per_s",
    "ratios.bystander_p99",
)
TENANT: Final = "benchmark"
RATE: Final = 1_000.0
RATE_SHORTENED: Final = 200.0
"""Where the measurement is shortened it shall end on a machine that is busy, too."""
SLOWER: Final = (300.0, 100.0)
"""Commands a second; too few to see a short gap, so these agents' figures are latencies and stand among the details."""
BYSTANDERS: Final = 10
BYSTANDER_RATE: Final = 10.0
AROUND_S: Final = 0.05
"""What belongs to a migration before its beginning and after its end."""
MOVES: Final = 500
QUICK_MOVES: Final = 100
QUICK_S: Final = 30.0
"""For so long the quick form moves agents, and as often as fits, but `QUICK_MOVES_MIN` times at least."""
QUICK_MOVES_MIN: Final = 10
SLOWER_PART: Final = 25
"""For so many moves, one of each of the slower agents."""
MOVES_AN_AGENT: Final = 5
"""Then another one is probed: a log that grows by a thousand events a second would be moved without a snapshot."""
ABORTED_MAX: Final = 20
"""Migrations that may be aborted, and are done again, before the measurement is given up."""
LEASE_S: Final = 60.0
"""No node is lost because the machine is busy."""
NODES: Final = ("one", "two")


class Window(NamedTuple):
    """A time that is looked at. migration: what happened in it; None: nothing."""

    start_s: float
    end_s: float
    migration: Migration | None


class Seen(NamedTuple):
    """What was seen of one agent, and of those beside it, in all windows."""

    record: Probing
    beside: list[Probing]
    windows: list[Window]


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of migrations between two nodes on one log."""
    moves = max(2, int((QUICK_MOVES if settings.quick else MOVES) * settings.scale))
    rate = RATE if settings.scale >= 1 else RATE_SHORTENED
    until_s = time.monotonic() + QUICK_S if settings.quick else float("inf")
    async with engine_on_postgres(settings.root) as place, _world(place) as world:
        note(f"migration: {moves} of agents with {rate:g} commands/s")
        seen: list[Seen] = []
        for start in range(0, moves, MOVES_AN_AGENT):
            if start >= QUICK_MOVES_MIN and time.monotonic() > until_s:
                break
            seen.append(await world.move_agent(f"moved-{start}", rate, min(MOVES_AN_AGENT, moves - start)))
        slower = {rate: await world.move_agent(f"slower-{rate:g}", rate, max(1, moves // SLOWER_PART)) for rate in SLOWER}
        note("migration: a node is drained")
        drained_per_s = await world.drain(max(4, int((200 if settings.quick else 500) * settings.scale)))
        report = await world.judge([*seen, *slower.values()])
        about = machine(place.postgres_url)
    found, details = _figures(seen, report, drained_per_s)
    return shape(found, KEYS, details | _of_slower(slower) | {"aborted": world.aborted}, about)


class _World:
    def __init__(self, place: Place, addresses: dict[str, str], prober: ProberProcess) -> None:
        self._engine = place.engine
        self._folder = place.folder
        self._addresses = addresses
        self._prober = prober
        self.aborted: list[str] = []
        self._bystanders = [AgentName(TENANT, f"bystander-{number}") for number in range(BYSTANDERS)]

    async def move_agent(self, agent: str, rate: float, moves: int) -> Seen:
        """Probe one agent and move it to and fro, with as much time in between as a move takes."""
        name = AgentName(TENANT, agent)
        rates = {name: rate} | dict.fromkeys(self._bystanders, BYSTANDER_RATE)
        await self._prober.probe(list(self._addresses.values()), rates)
        windows: list[Window] = []
        await asyncio.sleep(AROUND_S)
        while sum(window.migration is not None for window in windows) < moves:
            if len(self.aborted) > ABORTED_MAX:
                raise RuntimeError(f"migrations are aborted again and again: {self.aborted[-1]}")
            began_s = time.monotonic()
            migration = await self._move(name)
            ended_s = time.monotonic()
            await asyncio.sleep(AROUND_S)
            if migration.phase == "committed":
                windows.append(Window(began_s - AROUND_S, ended_s + AROUND_S, migration))
            else:
                self.aborted.append(migration.error)
            await asyncio.sleep(AROUND_S)
            quiet_s = time.monotonic()
            await asyncio.sleep(ended_s - began_s + 2 * AROUND_S)
            windows.append(Window(quiet_s, time.monotonic(), None))
            await asyncio.sleep(AROUND_S)
        records = await self._prober.records(self._folder / "probed")
        return Seen(records[name], [records[bystander] for bystander in self._bystanders], windows)

    async def _move(self, name: AgentName) -> Migration:
        (record,) = await self._engine.log.store.agents([name])
        assert record is not None
        target = next(node for node in NODES if node != record.owner)
        plan = await self._engine.migrations.plan_migration(name, target)
        return await self._engine.migrations.execute_migration(plan)

    async def drain(self, agents: int) -> float:
        """Agents that leave a node, per second."""
        names = [AgentName(TENANT, f"drained-{number}") for number in range(agents)]
        async with Caller([self._addresses[NODES[0]]]) as caller:
            for start in range(0, agents, 100):
                await asyncio.gather(*(caller.command(name, None) for name in names[start : start + 100]))
        owned = await self._engine.log.store.count_owned(NODES[0])
        began_s = time.perf_counter()
        await self._engine.migrations.drain_node(NODES[0])
        took_s = time.perf_counter() - began_s
        left = await self._engine.log.store.count_owned(NODES[0])
        if left:
            raise RuntimeError(f"{left} agents are left on a node that was drained")
        return owned / took_s

    async def judge(self, seen: list[Seen]) -> OwnershipReport:
        """Everything that was accepted, held against the log."""
        report = await check_ownership(self._engine.log, [each.record for each in seen], nodes=NODES)
        for problem in report.problems[:10]:
            note(f"migration: {problem}")
        return report


@asynccontextmanager
async def _world(place: Place) -> AsyncIterator[_World]:
    processes: list[asyncio.subprocess.Process] = []
    prober: ProberProcess | None = None
    try:
        addresses = {}
        for name in NODES:
            process, addresses[name] = await start_node(place.flags, name, COUNT, lease_s=LEASE_S)
            processes.append(process)
        prober = await ProberProcess.start()
        yield _World(place, addresses, prober)
    finally:
        if prober is not None:
            await prober.end()
        await end_processes(processes)


def _figures(seen: list[Seen], report: OwnershipReport, drained_per_s: float) -> tuple[dict[str, float], dict[str, Any]]:
    gaps: dict[bool, list[float]] = {True: [], False: []}
    beside: dict[bool, list[float]] = {True: [], False: []}
    late: list[float] = []
    for each in seen:
        for window in each.windows:
            moved = window.migration is not None
            gaps[moved].append(each.record.longest_gap_s(window.start_s, window.end_s) * 1000)
            late += each.record.lateness_s(window.start_s, window.end_s)
            for bystander in each.beside:
                beside[moved] += bystander.latencies_s(window.start_s, window.end_s)
    found = {
        "figures.downtime_p50_ms": median(gaps[True]),
        "figures.downtime_p99_ms": percentile(gaps[True], 0.99),
        "figures.downtime_max_ms": max(gaps[True]),
        "figures.gap_without_p50_ms": median(gaps[False]),
        "figures.gap_without_p99_ms": percentile(gaps[False], 0.99),
        "figures.gap_without_max_ms": max(gaps[False]),
        "figures.migrations": float(len(gaps[True])),
        "figures.lost": float(report.lost),
        "figures.doubled": float(report.doubled),
        "figures.drain_agents_per_s": drained_per_s,
        "ratios.bystander_p99": percentile(beside[True], 0.99) / percentile(beside[False], 0.99),
    }
    return found, _details(seen, report, late, beside)


def _details(seen: list[Seen], report: OwnershipReport, late: list[float], beside: dict[bool, list[float]]) -> dict[str, Any]:
    migrations = [window.migration for each in seen for window in each.windows if window.migration is not None]
    paths = [migration.path for migration in migrations]
    return {
        "commands": sum(len(each.record) for each in seen),
        "accepted": report.acknowledged,
        "unknown": sum(each.record.of(Outcome.UNKNOWN) for each in seen),
        "history_holds": report.holds,
        "paths": {path: paths.count(path) for path in sorted(set(paths))},
        "target_view_p50_ms": round(median([migration.downtime_target_ms for migration in migrations]), 2),
        "target_view_p99_ms": round(percentile([migration.downtime_target_ms for migration in migrations], 0.99), 2),
        "source_view_p50_ms": round(median([migration.downtime_source_ms for migration in migrations]), 2),
        "migration_p50_ms": round(median([migration.duration_ms for migration in migrations]), 2),
        "prober_late_p99_ms": round(percentile(late, 0.99) * 1000, 2),
        "bystander_p99_ms": {
            "during": round(percentile(beside[True], 0.99) * 1000, 2),
            "without": round(percentile(beside[False], 0.99) * 1000, 2),
        },
    }


def _of_slower(slower: dict[float, Seen]) -> dict[str, Any]:
    """The longest latency around each migration of agents with fewer commands."""
    worst = {
        rate: [
            max(each.record.latencies_s(window.start_s, window.end_s), default=0.0) * 1000 for window in each.windows if window.migration
        ]
        for rate, each in slower.items()
    }
    return {
        f"worst_latency_at_{rate:g}_per_s_ms": {"p50": round(median(found), 2), "max": round(max(found), 2)}
        for rate, found in worst.items()
    }
