"""Snapshots: packing beside the bare codec, hash and cipher; increments; the way through an engine; memory; restic on the same bytes."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import perdure
from benchmarks.compression import measure_savings
from benchmarks.measuring import median
from benchmarks.report import machine, note, shape
from benchmarks.restic import measure_restic
from benchmarks.settings import Settings
from benchmarks.states import conversations, copied, folded, keys_of, large_state
from perdure.client.engine import Engine
from perdure.engine.digest import canonical
from perdure.engine.log.records import AgentName
from perdure.engine.replay import fold_log
from perdure.snapshots.pack import Packed, pack, unpack

__all__ = ["KEYS", "measure"]

KEYS = (
    *("ratios.saved", "ratios.saved_store", "ratios.pipeline", "ratios.pipeline_two_threads", "ratios.incremental_bytes"),
    *(
        "ratios.incremental_time",
        "ratios.load_from_snapshot",
        "figures.snapshot_1mb_ms",
        "figures.pack_mb_per_s",
        "figures.unpack_mb_per_s",
    ),
    "figures.peak_extra_mib",
)
MB = 1_000_000
BARE_PIECES = (96 * 1024, 1024 * 1024)
"""What the bare pipeline is fed with at a time; the faster way counts."""
TENANT = "acme"


class _Run:
    """One run, and what it has found."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.found: dict[str, float] = {}
        self.details: dict[str, Any] = {}
        self.conversations = conversations()

    def count(self, quick: float, full: float, least: int = 1) -> int:
        """How much of something, by the scale."""
        return max(least, int((quick if self.settings.quick else full) * self.settings.scale))


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of snapshots."""
    with tempfile.TemporaryDirectory(prefix="perdure-benchmark-") as folder:
        run = _Run(settings, Path(folder))
        for part in (_savings, _pipeline, _increment, _one_megabyte, _load, _memory, _restic):
            note(f"snapshot: {part.__name__.strip('_')}")
            await part(run)
    return shape(run.found, KEYS, run.details, machine())


async def _savings(run: _Run) -> None:
    found, _ = await asyncio.to_thread(measure_savings, run.settings.scale)
    run.found |= {key: found[key] for key in ("ratios.saved", "ratios.saved_store")}


# --- packing ---


def _take(packed: Packed) -> int:
    """Make everything; the bytes to store."""
    return sum(len(chunk.sealed) for chunk in packed.chunks) + len(packed.sealed_manifest())


def _cpu(work: Callable[[], Any]) -> float:
    before = time.thread_time()
    work()
    return time.thread_time() - before


def _wall(work: Callable[[], Any]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def _bare(content: bytes, piece_bytes: int) -> None:
    compressor, cipher = zstandard.ZstdCompressor(level=3), AESGCM(bytes(32))
    for start in range(0, len(content), piece_bytes):
        piece = content[start : start + piece_bytes]
        sha256(piece).digest()
        cipher.encrypt(bytes(12), compressor.compress(piece), None)


async def _pipeline(run: _Run) -> None:
    """Packing a 10 MB state beside the bare pipeline on its canonical bytes, by turns, each the better of two.

    CPU seconds for one thread, wall for two.
    """
    document = large_state(run.count(10 * MB, 10 * MB, MB), run.conversations)
    content, keys = canonical(document), keys_of()
    rounds = run.count(7, 25, 3)

    def ours() -> int:
        return _take(pack(folded(document), keys=keys, created_us=1))

    def with_threads() -> int:
        return _take(pack(folded(document), keys=keys, created_us=1, threads=2))

    bare, packing, both, alone = [], [], [], []
    for _ in range(rounds):
        bare.append(min(_cpu(lambda piece_bytes=piece_bytes: _bare(content, piece_bytes)) for piece_bytes in BARE_PIECES))  # type: ignore[misc]
        packing.append(min(_cpu(ours), _cpu(ours)))
        alone.append(min(_wall(lambda piece_bytes=piece_bytes: _bare(content, piece_bytes)) for piece_bytes in BARE_PIECES))  # type: ignore[misc]
        both.append(min(_wall(with_threads), _wall(with_threads)))
    packed = pack(folded(document), keys=keys, created_us=1)
    chunks = [chunk.sealed for chunk in packed.chunks]
    unpacking = [_cpu(lambda: unpack(packed.manifest, chunks, keys=keys)) for _ in range(rounds)]
    run.found["ratios.pipeline"] = median([one / other for one, other in zip(bare, packing, strict=True)])
    run.found["ratios.pipeline_two_threads"] = median([one / other for one, other in zip(alone, both, strict=True)])
    run.found["figures.pack_mb_per_s"] = len(content) / median(packing) / MB
    run.found["figures.unpack_mb_per_s"] = len(content) / median(unpacking) / MB
    run.details["pipeline"] = {"plain_bytes": len(content), "bare_mb_per_s": round(len(content) / median(bare) / MB), "rounds": rounds}
    run.details["pipeline"] |= {"best": round(min(bare) / min(packing), 3), "chunks": len(chunks)}


async def _increment(run: _Run) -> None:
    """One message added to a 10 MB state: against a full snapshot of it, in bytes and in CPU seconds."""
    document = large_state(run.count(10 * MB, 10 * MB, MB), run.conversations, seed=1)
    keys = keys_of()
    before = pack(folded(document), keys=keys, created_us=1)
    _take(before)
    place = len(document["messages"])
    document["messages"].append(copied(document["messages"][7]))
    touched = {b"e\0\x08messages" + place.to_bytes(4, "big")}

    def full() -> int:
        return _take(pack(folded(document, 2), keys=keys, created_us=1))

    def added() -> int:
        return _take(pack(folded(document, 2), keys=keys, created_us=1, previous=before.manifest, touched=touched))

    def added_untold() -> int:
        return _take(pack(folded(document, 2), keys=keys, created_us=1, previous=before.manifest))

    times = [(_cpu(full), _cpu(added), _cpu(added_untold)) for _ in range(run.count(7, 25, 3))]
    run.found["ratios.incremental_bytes"] = added() / full()
    run.found["ratios.incremental_time"] = median([one / whole for whole, one, _ in times])
    run.details["incremental"] = {"bytes": added(), "full_bytes": full(), "chunks": len(before.manifest.chunks)}
    run.details["incremental"]["time_when_cells_are_not_told"] = round(median([untold / whole for whole, _, untold in times]), 3)


# --- through an engine ---


@asynccontextmanager
async def _engine(run: _Run, name: str) -> AsyncIterator[Engine]:
    folder = run.folder / name
    async with perdure.open(
        f"sqlite:///{folder}/log.db", bus="memory://", cache="memory://", store=f"file://{folder}/store", keys=f"file://{folder}/root.key"
    ) as engine:
        yield engine


async def _one_megabyte(run: _Run) -> None:
    """A full snapshot of 1 MB as people get it: fold the newest event, pack, write with fsync, read back, verify, register."""
    document = large_state(MB, run.conversations, seed=2)
    async with _engine(run, "one") as engine:
        agent = engine.agent("one", tenant=TENANT)
        for start in range(0, len(document["messages"]), 100):
            part = document["messages"][start : start + 100]
            await agent.append([perdure.Event("message_added", changes=[perdure.append("/messages", each)]) for each in part])
        times = []
        for number in range(run.count(7, 25, 3)):
            await agent.append([perdure.Event("status", changes=[perdure.set_value("/status", f"step {number}")])])
            before = time.perf_counter()
            made = await engine.snapshots.create_snapshot(AgentName(TENANT, "one"), full=True)
            times.append(time.perf_counter() - before)
        run.found["figures.snapshot_1mb_ms"] = median(times) * 1000
        run.details["one_megabyte"] = {"plain_bytes": made.snapshot.plain_bytes, "best_ms": round(min(times) * 1000, 1)}


async def _load(run: _Run) -> None:
    """An agent with many events, loaded by its snapshot and by its log alone. It works in a context window, as agents do: old messages make
    room for a summary, so its state stays while its history grows. Beside it one that never forgets a message."""
    for name, step, count in (
        ("load", _step, run.count(10_000, 100_000, 500)),
        ("load_append_only", _message, run.count(5_000, 50_000, 500)),
    ):
        run.details[name] = await _load_one(run, name, step, count)
    run.found["ratios.load_from_snapshot"] = run.details["load"]["ratio"]


async def _load_one(run: _Run, name: str, step: Callable[[int, list[Any]], perdure.Event], count: int) -> dict[str, Any]:
    async with _engine(run, name) as engine:
        agent = engine.agent("long", tenant=TENANT)
        messages = large_state(2 * MB, run.conversations, seed=3)["messages"]
        for start in range(0, count, 1_000):
            await agent.append([step(number, messages) for number in range(start, min(count, start + 1_000))])
        await engine.snapshots.create_snapshot(AgentName(TENANT, "long"))
        record = await engine.log.vault.record(TENANT, "long")
        by_log, by_snapshot = [], []
        for _ in range(3):
            before = time.perf_counter()
            whole = await fold_log(engine.log.store, engine.log.vault, record)
            by_log.append(time.perf_counter() - before)
            before = time.perf_counter()
            loaded = await engine.snapshots.shelf.loader.load(record)
            assert loaded is not None
            state = await fold_log(engine.log.store, engine.log.vault, record, start=loaded.folded)
            by_snapshot.append(time.perf_counter() - before)
            assert state == whole
    times = {"by_log_s": round(median(by_log), 3), "by_snapshot_s": round(median(by_snapshot), 4)}
    return {"events": count, "ratio": median(by_log) / median(by_snapshot), "state_bytes": len(canonical(whole.document)), **times}


WINDOW = 400
"""Events after which old messages make room for a summary."""


def _step(number: int, messages: list[Any]) -> perdure.Event:
    """A message, or what an agent does between messages."""
    if number % WINDOW == WINDOW // 2:
        return perdure.Event(
            "context_compacted", changes=[perdure.set_value("/messages", [{"role": "system", "content": f"summary {number}"}])]
        )
    if number % 2:
        return perdure.Event("status_changed", changes=[perdure.merge("", {"status": "busy", "usage": {"steps": number}})])
    return _message(number, messages)


def _message(number: int, messages: list[Any]) -> perdure.Event:
    return perdure.Event("message_added", changes=[perdure.append("/messages", messages[number % len(messages)])])


# --- memory, and beside restic ---


async def _memory(run: _Run) -> None:
    """Memory on top of the state while a large one is packed, in a process of its own."""
    size_mb = run.count(100, 1_000, 10)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.peak", str(size_mb)),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"benchmarks.peak ended with {process.returncode}")
    report = json.loads(output)
    run.found["figures.peak_extra_mib"] = report["peak_extra_mib"]
    run.details["memory"] = report


async def _restic(run: _Run) -> None:
    """The same states as files: backup and restore by restic, and through our store."""
    states = [large_state(MB, run.conversations, seed=seed) for seed in range(run.count(10, 100, 2))]
    run.details["restic"] = await measure_restic(states, run.folder / "restic")
