"""A rotation that is killed has lost nothing, and is finished by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import perdure
from perdure.client.engine import Engine
from perdure.security.tenant_key import TenantKey
from perdure.testing.kill_points import VARIABLE

AGENTS = 10
TIMEOUT_S = 120.0


def killed_at(step: str, log: str, keys: str, what: str) -> None:
    """Rotate in a process that dies at the step."""
    command = [sys.executable, "-m", "tests.faults.key_process", log, keys, what]
    done = subprocess.run(command, env={**os.environ, VARIABLE: step}, cwd=Path(__file__).parents[2], timeout=TIMEOUT_S, check=False)
    assert done.returncode == -signal.SIGKILL, f"{step} was not reached"


async def fill(engine: Engine) -> None:
    for tenant in ("acme", "other"):
        for number in range(AGENTS if tenant == "acme" else 1):
            await engine.agent(f"agent-{number}", tenant=tenant).append([perdure.Event("said", changes=[perdure.set_value("/n", number)])])


async def check(engine: Engine) -> None:
    """Everything is readable, and what is new is writable."""
    for number in range(AGENTS):
        agent = engine.agent(f"agent-{number}", tenant="acme")
        assert (await agent.state()).document["n"] == number
        await agent.append([perdure.Event("said", data={"after": "the kill"})])
    assert (await engine.verify()).ok
    assert {facts.state for facts in await engine.keys.list()} == {"ok"}


@pytest.mark.parametrize(("step", "under_new"), [("keys.version_made", 0), ("keys.page_wrapped:2", 8)])
async def test_a_rotation_of_a_tenants_key_that_is_killed_is_finished_by_the_next(tmp_path: Path, step: str, under_new: int) -> None:
    log, keys = f"sqlite:///{tmp_path}/log", f"file://{tmp_path}/root.key"
    async with perdure.open(log, keys=keys) as engine:
        await fill(engine)
    killed_at(step, log, keys, "tenant")
    async with perdure.open(log, keys=keys) as engine:
        wrapped = [TenantKey.wrapped_by(record.data_key) for record in await engine.log.store.list_agents("acme")]
        assert wrapped.count(2) == under_new
        await check(engine)
        finished = await engine.keys.rewrap("acme")
        assert (finished.version, finished.rewrapped, finished.left) == (2, AGENTS - under_new, {})
        assert {TenantKey.wrapped_by(record.data_key) for record in await engine.log.store.list_agents("acme")} == {2}
        await check(engine)


@pytest.mark.parametrize("step", ["keys.root_made", "keys.tenant_wrapped"])
async def test_a_rotation_of_the_root_key_that_is_killed_is_finished_by_the_next(tmp_path: Path, step: str) -> None:
    log, keys = f"sqlite:///{tmp_path}/log", f"file://{tmp_path}/root.key"
    async with perdure.open(log, keys=keys) as engine:
        await fill(engine)
    killed_at(step, log, keys, "root")
    async with perdure.open(log, keys=keys) as engine:
        used = {facts.tenant: set(facts.root_keys.values()) for facts in await engine.keys.list()}
        current = {engine.keys.root_key_id}
        assert (used["acme"] == current, used["other"] == current) == (step == "keys.tenant_wrapped", False)
        await check(engine)
        done = await engine.keys.rotate_root_key()
        assert done.tenants == ("acme", "other")
        assert {id for facts in await engine.keys.list() for id in facts.root_keys.values()} == {done.key_id}
        await check(engine)
