"""A process that is killed while it writes a snapshot leaves nothing that counts, and nothing that is in the way."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from perdure.engine.digest import digest
from perdure.engine.log.records import AgentName
from perdure.engine.replay import fold_log
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader
from tests.fix_snapshot_engine import TENANT, Shelved

NAME = AgentName(TENANT, "a")
PROCESS_S = 60.0
PADDING = "x" * 600
BEFORE = (
    *("snapshot.folded", "snapshot.chunk_put", "snapshot.chunk_put:2", "snapshot.chunk_verified"),
    *("snapshot.manifest_put", "snapshot.manifest_verified"),
)
"""Steps before the commit point."""
AFTER = "snapshot.registered"


async def snapshot_process(shelved: Shelved, kill_point: str) -> int:
    """Its exit code."""
    settings = shelved.settings
    urls = [str(setting.value) for setting in (settings.log, settings.keys, settings.store)]
    command = (sys.executable, "-m", "tests.faults.snapshot_process", *urls, "a")
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PERDURE_KILL_POINT": kill_point})
    try:
        return await asyncio.wait_for(process.wait(), PROCESS_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def holds(shelved: Shelved) -> None:
    """Every row is of a whole snapshot, and a read by way of them is the fold of the log."""
    for each in await shelved.snapshots.list_snapshots(NAME):
        assert (await shelved.snapshots.verify_snapshot(TENANT, each.id, replay=True)).ok
    log = shelved.engine.log
    reader = StateReader(log.store, MemoryCache(), log.vault, base=shelved.snapshots.base)
    folded = await fold_log(log.store, log.vault, await log.vault.record(*NAME))
    assert digest((await reader.state(*NAME)).document) == digest(folded.document)
    assert shelved.snapshots.shelf.loader.status.steps_down == 0


@pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
@pytest.mark.parametrize("step", BEFORE)
async def test_killed_before_the_row_there_is_no_snapshot_and_the_next_attempt_makes_it(shelved: Shelved, step: str) -> None:
    await shelved.talk("a", 200, padding=PADDING)
    first = await shelved.snapshot("a")
    await shelved.talk("a", 400, start=200, padding=PADDING)
    assert await snapshot_process(shelved, step) == -signal.SIGKILL
    assert [each.id for each in await shelved.snapshots.list_snapshots(NAME)] == [first.id]
    await holds(shelved)
    second = await shelved.snapshot("a")
    assert (second.version, second.kind, second.replaces) == (600, "incremental", None)
    await holds(shelved)


@pytest.mark.parametrize("step", [BEFORE[-1], AFTER])
async def test_the_row_is_what_counts(shelved: Shelved, step: str) -> None:
    await shelved.talk("a", 50)
    assert await snapshot_process(shelved, step) == -signal.SIGKILL
    assert [each.version for each in await shelved.snapshots.list_snapshots(NAME)] == ([50] if step == AFTER else [])
    await holds(shelved)
    assert (await shelved.snapshots.create_snapshot(NAME)).already == (step == AFTER)
    await holds(shelved)


@pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
async def test_torn_objects_of_a_killed_writer_are_replaced(shelved: Shelved) -> None:
    """A store that shows half a content, as ours never does, would be found by the reading back."""
    await shelved.talk("a", 400, padding=PADDING)
    assert await snapshot_process(shelved, "snapshot.chunk_put:2") == -signal.SIGKILL
    torn = [path for path in shelved.folder.rglob("chunks/*/*/*") if path.is_file()]
    assert torn
    for number, file in enumerate(torn):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[: len(content) // 2] if number % 2 else b"")
    await shelved.snapshot("a")
    await holds(shelved)
