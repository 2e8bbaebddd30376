"""Log, keys and snapshots of an embedded engine after power cuts: what was acknowledged is there, and no snapshot is registered that is not whole.

Where the machine does not let us cut a disk's power (`power`), the process alone is killed: that still shows the order of the writes, though not
that each was synced, which `test_power_loss` then reads from the record of system calls.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import perdure
from tests.faults.power import Disk, a_disk, can_cut_power
from tests.faults.power_process import AGENT

CUTS = 3
EVENTS_A_CUT = 20
TIMEOUT_S = 120.0


@contextmanager
def a_place(tmp_path: Path) -> Iterator[tuple[Path, Disk | None]]:
    """A folder, on a disk of its own where that can be had."""
    if can_cut_power():
        with a_disk() as disk:
            yield disk.folder, disk
    else:
        yield tmp_path, None


def work_until_cut(folder: Path, disk: Disk | None) -> tuple[int, set[int]]:
    """Let a process work, and cut it off in the middle: (newest acknowledged version, versions of acknowledged snapshots)."""
    command = [sys.executable, "-m", "tests.faults.power_process", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        lines: list[str] = []
        try:
            while sum(line.startswith("event") for line in lines) < EVENTS_A_CUT:
                line = process.stdout.readline()
                assert line, "the process ended by itself"
                lines.append(line)
            if disk is not None:
                disk.cut()
        finally:
            process.kill()
        # A line counts when it is whole: what it tells was acknowledged before.
        lines += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    if disk is not None:
        disk.unmount()
        disk.mount()
    told = [line.split() for line in lines]
    return max(int(version) for what, version in told if what == "event"), {int(version) for what, version in told if what == "snapshot"}


async def check(folder: Path, newest: int, snapshots: set[int]) -> None:
    """Everything that was acknowledged is there, and whatever is there is whole."""
    urls = {"keys": f"file://{folder}/keys/root.key", "store": f"file://{folder}/snapshots"}
    async with perdure.open(f"sqlite:///{folder}/log", **urls, create=False) as engine:
        async with asyncio.timeout(TIMEOUT_S):
            assert (await engine.verify()).ok
            state = await engine.agent(AGENT.agent).state()
            assert state.version >= newest
            assert len(state.document["said"]) == state.version
            registered = await engine.snapshots.list_snapshots(AGENT)
            assert snapshots <= {snapshot.version for snapshot in registered}
            for snapshot in registered:
                found = await engine.snapshots.verify_snapshot(AGENT.tenant, snapshot.id, replay=True)
                assert found.ok, found


async def test_an_embedded_engine_survives_power_cuts(tmp_path: Path) -> None:
    with a_place(tmp_path) as (folder, disk):
        for _ in range(CUTS):
            newest, snapshots = await asyncio.to_thread(work_until_cut, folder, disk)
            await check(folder, newest, snapshots)
