"""A fork is two steps; a process that is killed between them leaves an agent with the right history, and the same call goes on there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import perdure
from perdure import Event, append, config
from perdure.engine.log.records import AgentName
from perdure.errors import AlreadyExists

A = AgentName("t", "a")

KILLED = """
import asyncio, sys
import perdure
from perdure.engine.log.records import AgentName
from perdure.testing import kill_points

async def main():
    async with perdure.open() as engine:
        await engine.recovery.fork(AgentName("t", "a"), "b", version=2, reason="first")

kill_points.install_from_environment()
asyncio.run(main())
"""


def ended(environment: dict[str, str]) -> int:
    """How a process that forks the agent ends."""
    return subprocess.run([sys.executable, "-c", KILLED], env=environment, timeout=90, check=False).returncode


@pytest.mark.parametrize("step", ["fork.row", "fork.event"])
async def test_a_fork_that_is_killed_half_way_is_gone_on_with(tmp_path: Path, step: str) -> None:
    urls = {"log": f"sqlite:///{tmp_path}/state", "keys": f"file://{tmp_path}/root.key", "cache": "memory://"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    environment |= {f"PERDURE_{name.upper()}": url for name, url in urls.items()} | {"PERDURE_KILL_POINT": step}
    async with perdure.open(settings=config.load({**urls, "bus": "memory://"})) as engine:
        said = [Event("said", changes=(append("/said", word),)) for word in ("one", "two", "three")]
        await engine.agent("a", tenant="t").append(said)
        assert await asyncio.to_thread(ended, environment) == -signal.SIGKILL
        b = engine.agent("b", tenant="t")
        assert (await b.state()).document == {"said": ["one", "two"]}
        if step == "fork.row":
            assert [(fork.version, fork.reason) for fork in await engine.recovery.forks(A)] == [(2, "")]
            with pytest.raises(AlreadyExists):
                await engine.recovery.fork(A, "b", version=1)
            assert (await engine.recovery.fork(A, "b", version=2)).appended == 3
        with pytest.raises(AlreadyExists):
            await engine.recovery.fork(A, "b", version=2)
        assert [event.type async for event in b.events()] == ["said", "said", "forked"]
        assert (await engine.verify()).ok
