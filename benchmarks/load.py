"""The newest state of conversations of 50, 500 and 5 000 messages, read again and again: how it grows with the length, and beside other products."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.catalogue import embedded, on_postgres
from benchmarks.report import machine, note, shape
from benchmarks.servers import postgres_url
from benchmarks.settings import Settings
from benchmarks.sides import Beside, Side, rounds, sides

__all__ = ["KEYS", "measure"]

LENGTHS = (50, 500, 5_000)
KEYS = (
    *("ratios.growth", "ratios.growth_embedded", *(f"ratios.{each.name}" for each in (*on_postgres(), *embedded()))),
    *(f"figures.{name}{length}_ms" for name in ("load", "own", "cold") for length in LENGTHS),
)
PAIRS = 3


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of loads. A ratio to a peer, at the longest, says how many times longer it takes; `growth` is the longest by the shortest.

    Every side hands out all messages. Ours are read-only and shared where they are at hand; `own` is with a plain copy of them, `cold` from the
    log alone.
    """
    server = await postgres_url(settings.root)
    table: dict[str, dict[str, Any]] = {}
    async with sides(settings, server) as beside:
        for variant, ending, peers in (("postgres", "", on_postgres()), ("sqlite", "_embedded", embedded())):
            note(f"load: {variant}")
            async with beside.ours(variant) as ours:
                beside.tell(ours)
                found = await _alone(beside, ours)
                beside.found[f"ratios.growth{ending}"] = found[f"load{LENGTHS[-1]}_ms"] / found[f"load{LENGTHS[0]}_ms"]
                if variant == "postgres":
                    beside.found |= {f"figures.{name}": value for name, value in found.items()}
                table[f"perdure{ending}"] = found
                await beside.peers(peers, lambda peer: _compare(beside, ours, peer, table))
    return shape(beside.found, KEYS, {"lengths": list(LENGTHS), "beside": table}, machine(server), beside)


async def _alone(beside: Beside, ours: Side) -> dict[str, float]:
    found = {}
    for length in LENGTHS:
        await ours.ask("fill", stream=f"long-{length}", count=length)
        for name in ("load", "own", "cold"):
            options = {} if name == "load" else {name: True}
            measured = await ours.load(f"long-{length}", length, beside.settings.seconds(0.4, 5), **options)
            found[f"{name}{length}_ms"] = measured.latency.percentile(0.5) * 1000
    return found


async def _compare(beside: Beside, ours: Side, peer: Side, table: dict[str, dict[str, Any]]) -> None:
    name, duration_s = peer.facts.name, beside.settings.seconds(0.15, 3)
    table[name] = {}
    for length in LENGTHS:
        await peer.ask("fill", stream=f"long-{length}", count=length)

        async def rate(side: Side, length: int = length) -> float:
            return (await side.load(f"long-{length}", length, duration_s)).per_s

        pairs = await rounds(PAIRS, lambda: rate(ours), lambda: rate(peer))
        # Of a load they say how long it takes.
        table[name][f"{length}"] = {**pairs.shown(), "ours": round(1000 / pairs.ours, 3), "theirs": round(1000 / pairs.theirs, 3)}
        if length == LENGTHS[-1]:
            beside.found[f"ratios.{name}"] = pairs.ratio
