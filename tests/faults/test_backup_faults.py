"""Backups and restores killed at every step: no backup without all of its objects, no half log that opens, and the next attempt succeeds."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

import perdure
from perdure import Event, append, config
from perdure.engine.log.records import AgentName

NAMES = [AgentName("t", f"agent {number}") for number in range(8)]
TIMEOUT_S = 60.0
INTEGRITY = 5


async def command(*words: str, kill_point: str = "") -> int:
    """A command in a process of its own; its exit code."""
    environment = {**os.environ, "PERDURE_KILL_POINT": kill_point}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.host_process", *words, stdout=asyncio.subprocess.DEVNULL, env=environment
    )
    async with asyncio.timeout(TIMEOUT_S):
        return await process.wait()


async def write(settings: config.Settings, count: int) -> None:
    async with perdure.open(settings=settings, partitions=2) as engine:
        for number in range(count):
            event = [Event("said", changes=(append("/said", number),)) for _ in NAMES]
            await asyncio.gather(*(engine.agent(n.agent, tenant=n.tenant).append(e) for n, e in zip(NAMES, event, strict=True)))


@pytest.mark.parametrize("step", ["backup.segment", "backup.segments", "backup.parts"])
async def test_a_backup_that_was_killed_is_none_and_the_next_is_whole(tmp_path: Path, step: str) -> None:
    flags = {"log": f"sqlite:///{tmp_path}/state", "keys": f"file://{tmp_path}/root.key"}
    settings, to = config.load(flags), f"file://{tmp_path}/backups"
    words = ("backup", "create", "--to", to, "--log", flags["log"], "--keys", flags["keys"])
    await write(settings, 4)
    assert await command(*words) == 0
    await write(settings, 4)
    assert await command(*words, kill_point=step) == -signal.SIGKILL, "the kill point was not reached"
    async with perdure.open(settings=settings) as engine:
        assert len(await engine.backups.list(to)) == 1
        assert (await engine.backups.verify(to)).ok
        # The lease of the killed one runs out; then the next takes everything that is new.
        async with asyncio.timeout(TIMEOUT_S):
            while await command(*words) != 0:
                await engine.log.store.signal().wait(0.1)
        drilled = await engine.backups.drill(to)
        assert (drilled.ok, drilled.events) == (True, 8 * len(NAMES))


@pytest.mark.parametrize("step", ["restore.agents", "restore.page:2", "restore.events", "restore.generation"])
async def test_a_restore_that_was_killed_does_not_open_and_goes_on(tmp_path: Path, step: str) -> None:
    flags = {"log": f"sqlite:///{tmp_path}/state", "keys": f"file://{tmp_path}/root.key"}
    settings, to, into = config.load(flags), f"file://{tmp_path}/backups", f"sqlite:///{tmp_path}/new"
    await write(settings, 6)
    async with perdure.open(settings=settings) as engine:
        await engine.backups.create(to)
        expected = {name: (await engine.agent(name.agent, tenant="t").state()).digest for name in NAMES}
    words = ("backup", "restore", "--to", to, "--into", into, "--keys", flags["keys"])
    assert await command(*words, kill_point=step) == -signal.SIGKILL, "the kill point was not reached"
    assert await command("agents", "--log", into, "--keys", flags["keys"], "--tenant", "t") == INTEGRITY
    assert await command(*words) == 0
    async with perdure.open(settings=config.load({"log": into, "keys": flags["keys"]})) as engine:
        assert {name: (await engine.agent(name.agent, tenant="t").state()).digest for name in NAMES} == expected
        assert (await engine.verify()).ok
