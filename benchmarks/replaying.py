"""Every event of many conversations out of the store and into states again, from Postgres and from SQLite, beside `eventsourcing`."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.catalogue import SIDES
from benchmarks.report import note
from benchmarks.sides import Beside, Side, rounds

__all__ = ["KEYS", "measure_beside"]

KEYS = ("ratios.eventsourcing", "ratios.eventsourcing_sqlite", "figures.sqlite_per_s")
STREAM_EVENTS = 500
PAIRS = 3


async def measure_beside(beside: Beside) -> dict[str, Any]:
    """Fill `beside.found`; the table of the pairs."""
    streams = beside.settings.count(20, 200)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for variant, name in (("postgres", "eventsourcing"), ("sqlite", "eventsourcing_sqlite")):
        note(f"replay: {streams} conversations of {STREAM_EVENTS} events, {variant}")
        async with beside.ours(variant) as ours:
            beside.tell(ours)
            await _fill(ours, streams)
            if variant == "sqlite":
                beside.found["figures.sqlite_per_s"] = max([await _rate(ours) for _ in range(PAIRS)])

            async def compare(peer: Side) -> None:
                await _fill(peer, streams)
                pairs = await rounds(PAIRS, lambda: _rate(ours), lambda: _rate(peer))
                table[peer.facts.name] = {"replay": pairs.shown()}
                beside.found[f"ratios.{peer.facts.name}"] = pairs.ratio

            await beside.peers([SIDES[name]], compare)
    return {"beside": table, "stream_events": STREAM_EVENTS, "streams": streams}


async def _fill(side: Side, streams: int) -> None:
    for number in range(streams):
        await side.ask("fill", stream=f"stream-{number}", count=STREAM_EVENTS)


async def _rate(side: Side) -> float:
    done = await side.ask("replay")
    return float(done["events"] / done["seconds"])
