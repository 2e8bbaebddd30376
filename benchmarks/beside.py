"""Appends of 1, 32 and 256 callers beside other products, each in its own process, on the same server, with the same messages."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.catalogue import SideFacts, on_postgres
from benchmarks.peers.histogram import Histogram
from benchmarks.sides import Beside, Pairs, Side, rounds

__all__ = ["KEYS", "measure_beside"]

CALLERS = (1, 32, 256)
KEYS = tuple(f"ratios.{each.name}{end}" for each in on_postgres() for end in ("", "_alone"))
PAIRS = 3


class _Appends:
    """perdure's process, which runs in turns with one peer after the other."""

    def __init__(self, beside: Beside, ours: Side) -> None:
        self._beside = beside
        self._ours = ours
        self.latency: dict[tuple[str, int], Histogram] = {}
        self.table: dict[str, dict[str, dict[str, float]]] = {}

    async def alone(self) -> None:
        """A warm-up that counts for nothing, and one run of each load, so that there are percentiles without peers, too."""
        await self._ours.ask("streams", callers=max(CALLERS))
        await self._run(self._ours, max(CALLERS), "synthetic")
        self.latency.clear()
        for callers in CALLERS:
            await self._run(self._ours, callers, "synthetic")

    async def beside(self, peer: Side) -> None:
        """All loads in pairs."""
        await peer.ask("streams", callers=max(CALLERS))
        await self._run(peer, max(CALLERS), "synthetic")
        del self.latency[peer.facts.name, max(CALLERS)]
        for callers in CALLERS:
            self._note(peer.facts, f"{callers}", await self._pairs(peer, callers, "synthetic"))
        self._note(peer.facts, f"{max(CALLERS)} real", await self._pairs(peer, max(CALLERS), "real"))

    async def _pairs(self, peer: Side, callers: int, payload: str) -> Pairs:
        async def ours() -> float:
            return await self._run(self._ours, callers, payload)

        async def theirs() -> float:
            return await self._run(peer, callers, payload)

        return await rounds(PAIRS, ours, theirs)

    async def _run(self, side: Side, callers: int, payload: str) -> float:
        settings = self._beside.settings
        found = await side.append(callers, settings.seconds(*((0.3, 8) if callers < max(CALLERS) else (0.7, 10))), payload)
        if payload == "synthetic":
            self.latency.setdefault((side.facts.name, callers), Histogram()).merge(found.latency)
        return found.per_s

    def _note(self, facts: SideFacts, load: str, pairs: Pairs) -> None:
        self.table.setdefault(facts.name, {})[load] = pairs.shown()
        if load == f"{max(CALLERS)}":
            self._beside.found[f"ratios.{facts.name}"] = pairs.ratio
        if load == "1":
            self._beside.found[f"ratios.{facts.name}_alone"] = pairs.ratio


async def measure_beside(beside: Beside) -> dict[str, Any]:
    """Fill `beside.found`; the table of all pairs and the percentiles by side and callers."""
    async with beside.ours() as side:
        beside.tell(side)
        appends = _Appends(beside, side)
        await appends.alone()
        await beside.peers(on_postgres(), appends.beside)
    percentiles: dict[str, dict[str, Any]] = {}
    for (name, callers), histogram in appends.latency.items():
        percentiles.setdefault(name, {})[str(callers)] = histogram.percentiles_ms()
    return {"beside": appends.table, "latency_ms": percentiles}
