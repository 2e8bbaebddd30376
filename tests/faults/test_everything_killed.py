"""Every part killed while the others go on: what was acknowledged stands once, and log, topic and cache say the same."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence

import pytest

from perdure.testing.history import check_log_history
from perdure.testing.log_rows import ROOT_KEY
from tests.faults.writers import Writer, told, writer
from tests.fix_installation import Installation
from tests.fix_services import PrivateServices

AT_WRITER = ("append.before:9", "append.after:5", "writer.written:7")
AT_RELAY = ("relay.published:2", "relay.read:3", "relay.kept:2")
AT_PROJECTOR = ("projector.applied:2",)
"""Where one after the other of each kind is killed. A killed projector's successor waits for the end of its session, so there is one."""


@pytest.fixture
def world(installation: Installation, private_services: Callable[..., PrivateServices], monkeypatch: pytest.MonkeyPatch) -> Installation:
    """Writers of the fault tests have one root key and one tenant: so the cache is one of the test's own."""
    monkeypatch.setenv("PERDURE_ROOT_KEY", ROOT_KEY)
    cache = private_services("redis").services.redis
    assert cache is not None
    installation.variables.update(PERDURE_KEYS="env:", PERDURE_ROOT_KEY=ROOT_KEY, PERDURE_CACHE=cache.url)
    return installation


async def writers_killed(world: Installation) -> list[Writer]:
    """Writers, each killed at its step; for what they were told."""
    victims = []
    for number, kill_point in enumerate(AT_WRITER):
        agents = ["agent 0", f"own {number}"]
        async with writer(world.variables["PERDURE_LOG"], f"victim {number}", kill_point=kill_point, agents=agents) as victim:
            assert await victim.ended() == -signal.SIGKILL
        victims.append(victim)
    return victims


async def killed(world: Installation, part: str, kill_points: Sequence[str]) -> None:
    """Relays or projectors, each killed at its step."""
    for kill_point in kill_points:
        async with world.process(part, kill_point=kill_point) as victim:
            await world.killed(victim)


async def test_log_topic_and_cache_agree_after_every_part_was_killed(world: Installation) -> None:
    async with world.engine() as engine:
        async with writer(world.variables["PERDURE_LOG"], "steady", workers=1) as steady, world.process("relay"):
            await steady.until("acknowledged", 20)
            async with asyncio.TaskGroup() as group:
                writers = group.create_task(writers_killed(world))
                group.create_task(killed(world, "relay", AT_RELAY))
                group.create_task(killed(world, "projector", AT_PROJECTOR))
            await steady.until("acknowledged", 20, since=len(steady.lines))
            await steady.finish()
        acknowledged = told([steady, *writers.result()])
        history = await check_log_history(engine.log.store, acknowledged)
        assert history.holds, history.problems
        report = await world.settled(engine)
    assert report.log.events == history.events >= len(acknowledged) > 0
