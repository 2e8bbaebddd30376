"""restic (Debian's package) on the same states, where it is installed: one file of canonical bytes per state."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.states import folded, keys_of
from perdure.engine.digest import canonical
from perdure.snapshots.chunks import ChunkReference
from perdure.snapshots.manifest import Manifest, open_manifest
from perdure.snapshots.pack import pack, unpack
from perdure.snapshots.store.local import LocalStore

__all__ = ["measure_restic"]

MB = 1_000_000


async def measure_restic(states: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Rates in MB of canonical bytes per second of wall time, and bytes at rest. restic's include opening its repository."""
    source = folder / "source"
    source.mkdir(parents=True)
    plain_bytes = sum((source / f"{number}.msgpack").write_bytes(canonical(state)) for number, state in enumerate(states))
    found: dict[str, Any] = {"plain_bytes": plain_bytes, "ours": await _ours(states, folder / "ours", plain_bytes)}
    program = shutil.which("restic")
    found["restic"] = await _theirs(program, source, folder, plain_bytes) if program else "not installed"
    return found


async def _ours(states: list[dict[str, Any]], folder: Path, plain_bytes: int) -> dict[str, Any]:
    store = LocalStore(folder)
    try:
        before = time.perf_counter()
        for number, state in enumerate(states):
            await _backup(store, number, state)
        backup_s = time.perf_counter() - before
        before = time.perf_counter()
        for number in range(len(states)):
            await _restore(store, number)
        restore_s = time.perf_counter() - before
    finally:
        await store.close()
    return _rates(plain_bytes, backup_s, restore_s, folder)


async def _backup(store: LocalStore, number: int, state: dict[str, Any]) -> None:
    keys = keys_of(f"agent {number}")
    packed = pack(folded(state), keys=keys, created_us=1)
    for chunk in await asyncio.to_thread(list, packed.chunks):
        await store.put(chunk.object, chunk.sealed)
        assert await store.get(chunk.object, bytes_max=len(chunk.sealed)) == chunk.sealed
    await store.put(f"manifests/{number}", packed.sealed_manifest())


async def _restore(store: LocalStore, number: int) -> None:
    keys = keys_of(f"agent {number}")
    sealed = await store.get(f"manifests/{number}", bytes_max=MB)
    manifest: Manifest = open_manifest(sealed, keys=keys, tenant=keys.tenant, agent=keys.agent, version=1)

    async def get(chunk: ChunkReference) -> bytes:
        return await store.get(keys.chunk_object(chunk.name), bytes_max=chunk.stored_bytes)

    chunks = await asyncio.gather(*map(get, manifest.chunks))
    await asyncio.to_thread(unpack, manifest, chunks, keys=keys)


async def _theirs(program: str, source: Path, folder: Path, plain_bytes: int) -> dict[str, Any]:
    repository = folder / "repository"

    async def restic(*arguments: str) -> float:
        before = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *(program, "--repo", str(repository), "--no-cache", "--quiet", *arguments),
            env=os.environ | {"RESTIC_PASSWORD": "benchmark"},
            stdout=asyncio.subprocess.DEVNULL,
        )
        if await process.wait():
            raise RuntimeError(f"restic {arguments[0]} ended with {process.returncode}")
        return time.perf_counter() - before

    await restic("init")
    backup_s = await restic("backup", str(source))
    restore_s = await restic("restore", "latest", "--target", str(folder / "restored"))
    return _rates(plain_bytes, backup_s, restore_s, repository)


def _rates(plain_bytes: int, backup_s: float, restore_s: float, folder: Path) -> dict[str, Any]:
    at_rest = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    rates = {"backup_mb_per_s": round(plain_bytes / backup_s / MB, 1), "restore_mb_per_s": round(plain_bytes / restore_s / MB, 1)}
    return rates | {"bytes_at_rest": at_rest, "saved": round(1 - at_rest / plain_bytes, 4)}
