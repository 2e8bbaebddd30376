"""Processes of the upkeep that are killed at their steps: what they had not done is done by the next, and nothing that counts is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from perdure.engine.digest import digest
from perdure.engine.log.records import AgentName
from perdure.engine.replay import fold_log
from perdure.errors import Compacted
from perdure.limits import COMPACTION_PAGE_EVENTS
from perdure.snapshots.cadence import Cadence
from perdure.snapshots.retention import RetentionPolicy
from tests.fix_snapshot_engine import TENANT, Shelved

NAME = AgentName(TENANT, "a")
PROCESS_S = 60.0
AGENTS = 5

pytestmark = pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)


async def process(shelved: Shelved, what: str, kill_point: str = "") -> int:
    """Its exit code."""
    settings = shelved.settings
    urls = [str(setting.value) for setting in (settings.log, settings.keys, settings.store)]
    command = (sys.executable, "-m", "tests.faults.upkeep_process", *urls, what)
    running = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PERDURE_KILL_POINT": kill_point})
    try:
        return await asyncio.wait_for(running.wait(), PROCESS_S)
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def lapse(shelved: Shelved) -> None:
    """The leases of the dead run out."""
    store = shelved.engine.log.store
    for prefix in ("snapshotter", "snapshots/"):
        for lease in await store.list_leases(prefix):
            await store.release_lease(lease)


async def versions(shelved: Shelved, agent: str) -> list[int]:
    return [each.version for each in await shelved.snapshots.list_snapshots(AgentName(TENANT, agent))]


async def all_are_whole(shelved: Shelved) -> None:
    async for each in shelved.snapshots.all_snapshots(TENANT):
        assert (await shelved.snapshots.verify_snapshot(TENANT, each.id, replay=True)).ok


@pytest.mark.parametrize(
    "step", ["snapshotter.due:3", "snapshot.manifest_put", "snapshot.registered:2", "snapshotter.made:3", "snapshotter.kept"]
)
async def test_a_killed_snapshotter_forgets_no_agent(shelved: Shelved, step: str) -> None:
    for number in range(AGENTS):
        await shelved.talk(f"agent-{number}", 10 + number)
    assert await process(shelved, "snapshotter", step) == -signal.SIGKILL
    await all_are_whole(shelved)
    await lapse(shelved)
    await shelved.engine.upkeep.snapshotter(Cadence(budget_events=10)).run(asyncio.Event(), until_drained=True)
    for number in range(AGENTS):
        assert await versions(shelved, f"agent-{number}") == [10 + number]
    await all_are_whole(shelved)


async def test_two_at_once_of_which_one_is_killed(shelved: Shelved) -> None:
    for number in range(AGENTS):
        await shelved.talk(f"agent-{number}", 10 + number)
    stop = asyncio.Event()
    ours = shelved.engine.upkeep.snapshotter(Cadence(budget_events=10))
    running = asyncio.create_task(ours.run(stop))
    killed = await process(shelved, "snapshotter", "snapshotter.due")
    assert killed in (-signal.SIGKILL, 0), "it may have found nothing left to do"
    await asyncio.wait_for(ours.drain(), PROCESS_S)
    stop.set()
    await running
    for number in range(AGENTS):
        assert await versions(shelved, f"agent-{number}") == [10 + number]


@pytest.mark.parametrize("step", ["compact.checkpointed", "compact.verified", "compact.floor", "compact.removed"])
async def test_a_killed_compaction_loses_nothing_that_stays(shelved: Shelved, step: str) -> None:
    """Before the floor nothing is gone; after it everything from the floor on is there, and the next compaction takes the rest."""
    events = COMPACTION_PAGE_EVENTS + 100 if step == "compact.removed" else 100
    await shelved.talk("a", events)
    log = shelved.engine.log
    agent = await log.vault.record(*NAME)
    checked = (events - 30, events - 29, events - 1, events)
    right = {version: digest((await fold_log(log.store, log.vault, agent, to_version=version)).document) for version in checked}
    assert await process(shelved, "compact", step) == -signal.SIGKILL
    (floor,) = await log.store.floors([agent])
    done = step in ("compact.floor", "compact.removed")
    assert floor.version == (events - 29 if done else 1)
    for _ in range(2):
        for version in checked:
            state = await shelved.engine.agent("a").state(at_version=version)
            assert digest(state.document) == right[version]
        assert (await shelved.engine.verify()).ok
        await lapse(shelved)
        assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=30)).first_version == events - 29
    with pytest.raises(Compacted):
        await shelved.engine.agent("a").state(at_version=5)
    assert await log.store.remove_events(agent, 10) == 0


@pytest.mark.parametrize("step", ["sweep.marked", "sweep.deleted"])
async def test_a_killed_sweep_is_swept_on(shelved: Shelved, step: str) -> None:
    for turn in range(5):
        await shelved.talk("a", 20, start=20 * turn, padding="x" * 5_000)
        await shelved.snapshot("a", full=True)
    await shelved.engine.upkeep.cleanup_old_states(NAME, RetentionPolicy(days=0))
    then = time.time() - 2 * 86_400
    for file in Path(shelved.folder).rglob("*"):
        os.utime(file, (then, then))
    assert await process(shelved, "sweep", step) == -signal.SIGKILL
    await all_are_whole(shelved)
    await lapse(shelved)
    await shelved.talk("a", 5, start=100)
    await shelved.snapshot("a")
    assert (await shelved.engine.upkeep.sweep()).gone > 0 or step == "sweep.deleted"
    assert (await shelved.engine.upkeep.sweep()).gone == 0
    await all_are_whole(shelved)
    assert await versions(shelved, "a") == [105, 100, 80, 60]
