"""Appends into a file of one's own process, beside a bare row in SQLite and the embedded forms of other products."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.catalogue import embedded
from benchmarks.peers.histogram import Histogram
from benchmarks.report import machine, note, shape
from benchmarks.settings import Settings
from benchmarks.sides import Side, rounds, sides

__all__ = ["KEYS", "measure"]

KEYS = (*(f"ratios.{each.name}" for each in embedded()), "figures.appends_per_s", "figures.appends_p50_ms", "figures.appends32_per_s")
PAIRS = 3
LOADS = ((1, "real"), (1, "synthetic"), (32, "real"))
"""Callers and messages; the ratios are of the first."""


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of embedded appends."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    latency: dict[str, Histogram] = {}
    duration_s = settings.seconds(0.3, 8)
    async with sides(settings, "") as beside, beside.ours("sqlite") as ours:
        note("embedded: appends")
        beside.tell(ours)

        async def run(side: Side, callers: int, payload: str) -> float:
            found = await side.append(callers, duration_s, payload)
            if (callers, payload) == LOADS[0]:
                latency.setdefault(side.facts.name, Histogram()).merge(found.latency)
            return found.per_s

        async def warm(side: Side) -> None:
            """Every side's write-ahead log first grows, which takes a flush twice as long, and is then written over."""
            await side.ask("streams", callers=32)
            await side.append(1, duration_s, "real")

        async def compare(peer: Side) -> None:
            await warm(peer)
            for callers, payload in LOADS:
                pairs = await rounds(PAIRS, lambda: run(ours, callers, payload), lambda: run(peer, callers, payload))  # noqa: B023
                table.setdefault(peer.facts.name, {})[f"{callers} {payload}"] = pairs.shown()
                if (callers, payload) == LOADS[0]:
                    beside.found[f"ratios.{peer.facts.name}"] = pairs.ratio

        await warm(ours)
        beside.found["figures.appends_per_s"] = await run(ours, *LOADS[0])
        beside.found["figures.appends32_per_s"] = await run(ours, *LOADS[2])
        await beside.peers(embedded(), compare)
    beside.found["figures.appends_p50_ms"] = latency[ours.facts.name].percentile(0.5) * 1000
    details = {"beside": table, "latency_ms": {name: found.percentiles_ms() for name, found in latency.items()}}
    return shape(beside.found, KEYS, details, machine(), beside)
