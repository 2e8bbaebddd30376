"""What compression saves: single conversations, a tenant's store as a whole, and codec by codec."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.report import machine, note, shape
from benchmarks.settings import Settings
from benchmarks.states import conversations, folded, keys_of
from perdure.snapshots.compression import benchmark_compression_algorithms
from perdure.snapshots.dictionaries import samples_of, train_dictionary
from perdure.snapshots.pack import pack
from perdure.snapshots.zstd import NO_DICTIONARY, ChunkDictionary

__all__ = ["KEYS", "Savings", "measure", "measure_savings"]

KEYS = (
    *("ratios.saved", "ratios.saved_without_dictionary", "ratios.saved_store"),
    *("figures.zstd_mb_per_s", "figures.lz4_mb_per_s", "figures.snappy_mb_per_s", "figures.gzip_mb_per_s"),
)
SNAPSHOTS_KEPT = 3
"""Of each agent in the tenant's store: after a third, two thirds and all of its messages."""


class Savings:
    """Bytes before and after."""

    def __init__(self) -> None:
        self.plain_bytes = 0
        self.stored_bytes = 0

    def add(self, plain_bytes: int, stored_bytes: int) -> None:
        """Count."""
        self.plain_bytes += plain_bytes
        self.stored_bytes += stored_bytes

    @property
    def saved(self) -> float:
        """Share of the bytes that is saved."""
        return 1 - self.stored_bytes / self.plain_bytes


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of compression."""
    note("compression: savings")
    found, details = await asyncio.to_thread(measure_savings, settings.scale)
    note("compression: codecs")
    samples = list(samples_of(state for states in conversations().values() for state in states))
    samples = samples[:: max(1, int(len(samples) * 4096 / (1e6 if settings.quick else 8e6)))]
    for each in await asyncio.to_thread(benchmark_compression_algorithms, [b"".join(samples)], rounds=3):
        details[each.codec] = {"saved": round(each.saved, 4), "decompress_mb_per_s": round(each.decompress_mb_per_s)}
        if each.codec != "none":
            found[f"figures.{each.codec}_mb_per_s"] = each.compress_mb_per_s
    return shape(found, KEYS, details, machine())


def measure_savings(scale: float = 1.0) -> tuple[dict[str, float], dict[str, Any]]:
    """Trained on one half of each kind's conversations, measured on the other half, manifests and seals included; plain: canonical msgpack."""
    trained, untrained, store = Savings(), Savings(), Savings()
    details: dict[str, Any] = {}
    for number, (kind, states) in enumerate(conversations().items()):
        share = states[: max(8, int(len(states) * min(1.0, scale)))]
        held_out = share[len(share) // 2 :]
        dictionary = _train(16 + number, states[: len(states) // 2], kind)
        here, plain = Savings(), Savings()
        for place, state in enumerate(held_out):
            for savings, used in ((here, dictionary), (plain, NO_DICTIONARY)):
                savings.add(*_single(state, used))
            _keep(store, f"{kind} {place}", state, dictionary)
        details[kind] = {"conversations": len(held_out), "saved": round(here.saved, 4), "without_dictionary": round(plain.saved, 4)}
        details[kind]["dictionary_bytes"] = len(dictionary.content)
        for total, part in ((trained, here), (untrained, plain)):
            total.add(part.plain_bytes, part.stored_bytes)
    found = {"ratios.saved": trained.saved, "ratios.saved_without_dictionary": untrained.saved, "ratios.saved_store": store.saved}
    return found, details | {"store_plain_bytes": store.plain_bytes, "store_bytes": store.stored_bytes}


def _train(id: int, states: list[dict[str, Any]], kind: str) -> ChunkDictionary:
    return ChunkDictionary(id, train_dictionary(list(samples_of(states))), kind)


def _single(state: dict[str, Any], dictionary: ChunkDictionary) -> tuple[int, int]:
    packed = pack(folded(state), keys=keys_of(), created_us=1, dictionary=dictionary)
    stored_bytes = sum(len(chunk.sealed) for chunk in packed.chunks)
    return packed.manifest.plain_bytes, stored_bytes + len(packed.sealed_manifest())


def _keep(store: Savings, agent: str, state: dict[str, Any], dictionary: ChunkDictionary) -> None:
    """The newest three snapshots of an agent, each sharing with the one before."""
    keys, previous = keys_of(agent), None
    messages = state["messages"]
    for kept in range(1, SNAPSHOTS_KEPT + 1):
        document = state | {"messages": messages[: len(messages) * kept // SNAPSHOTS_KEPT]}
        packed = pack(folded(document, kept), keys=keys, created_us=1, dictionary=dictionary, previous=previous)
        new_bytes = sum(len(chunk.sealed) for chunk in packed.chunks)
        previous = packed.manifest
        store.add(previous.plain_bytes, new_bytes + len(packed.sealed_manifest()))
