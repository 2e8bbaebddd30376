"""What the same conversations take on disk, indexes and all, written message by message: by the raw JSON, and beside other products.

The first half of the conversations comes before, so that tables have their first pages and what learns from data has learned; the growth that the
second half brings is what counts.
"""

from __future__ import annotations

from typing import Any

from benchmarks import payloads
from benchmarks.peers.catalogue import embedded, on_postgres
from benchmarks.report import machine, note, shape
from benchmarks.servers import postgres_url
from benchmarks.settings import Settings
from benchmarks.sides import Beside, Side, sides

__all__ = ["KEYS", "measure"]

KEYS = (
    "ratios.raw",
    "ratios.raw_embedded",
    *(f"ratios.{each.name}" for each in (*on_postgres(), *embedded())),
    "figures.bytes_per_message",
)
CONVERSATIONS_MIN = 60
"""However short a measurement shall be. Of fewer, the figure is that of pages and not of messages: a log has sixteen partitions of four relations
each, which grow by 8 KB, and a table has a map of its free space (24 KB) from its fifth page on. The same log took 1.09 of the raw JSON for 12
conversations and 0.55 for 40."""


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of bytes. A ratio to a peer says how many times more it takes; `raw` is what perdure takes by the raw JSON."""
    server = await postgres_url(settings.root)
    taken: dict[str, float] = {}
    async with sides(settings, server) as beside:
        # A run of less than a tenth shows that it works, and no figure.
        least = CONVERSATIONS_MIN if settings.scale >= 0.1 else 8
        half = settings.count(80, len(beside.conversations), least=least) // 2
        second = beside.conversations[half : 2 * half]
        raw = sum(payloads.raw_bytes(conversation) for conversation in second)
        note(f"bytes: {half} conversations after {half} others")
        for variant, ending in (("postgres", ""), ("sqlite", "_embedded")):
            async with beside.ours(variant) as ours:
                beside.tell(ours)
                taken[f"perdure{ending}"] = await _growth(beside, ours, half)

        async def store(peer: Side) -> None:
            taken[peer.facts.name] = await _growth(beside, peer, half)

        await beside.peers((*on_postgres(), *embedded()), store)
    for name, growth in taken.items():
        if not name.startswith("perdure"):
            ours_bytes = taken["perdure_embedded" if name.endswith("_sqlite") else "perdure"]
            beside.found[f"ratios.{name}"] = growth / ours_bytes
    beside.found["ratios.raw"] = taken["perdure"] / raw
    beside.found["ratios.raw_embedded"] = taken["perdure_embedded"] / raw
    beside.found["figures.bytes_per_message"] = taken["perdure"] / sum(len(conversation) for conversation in second)
    by_raw = {"raw JSON": 1.0} | {name: round(growth / raw, 3) for name, growth in taken.items()}
    details = {"conversations": half, "messages": sum(map(len, second)), "raw_bytes": raw, "by_raw": by_raw}
    return shape(beside.found, KEYS, details, machine(server), beside)


async def _growth(beside: Beside, side: Side, half: int) -> float:
    # A saver's checkpoints grow with the square of a conversation's length: it is given time.
    await side.ask("store", meant_s=half * 5, first=0, last=half, prefix="first")
    await side.ask("settle")
    before = await beside.stored_bytes(side)
    await side.ask("store", meant_s=half * 5, first=half, last=2 * half, prefix="second")
    return await beside.stored_bytes(side) - before
