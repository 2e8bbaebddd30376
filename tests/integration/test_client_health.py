"""Health: now from the state, the past from the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import perdure
from perdure.client.engine import Engine
from perdure.engine.types import ErrorOccurred, InstanceCreated, StatusChanged, TaskAssigned
from perdure.errors import AgentNotFound, InvalidInput
from tests.fix_command import Perdure


async def test_an_agent_tells_how_it_is_by_its_events(embedded: Engine) -> None:
    agent = embedded.agent("a")
    await agent.append([InstanceCreated().to_event(), TaskAssigned(task_id="t1").to_event()])
    await agent.append([StatusChanged(status="busy", reason="a task came").to_event(), perdure.Event("other", data={"status": "no"})])
    await agent.append(ErrorOccurred(code="timeout", message="the tool did not answer").to_event())
    for consistency in ("strong", "eventual"):
        now = await embedded.health.now(agent.name, consistency=consistency)  # type: ignore[arg-type]
        assert (now.status, now.task, now.version) == ("busy", "t1", 5)
        assert now.last_error == {"code": "timeout", "message": "the tool did not answer"}
        assert now.silent_s is not None
        assert 0 <= now.silent_s < 600
    assert [(entry.version, entry.status, entry.detail) for entry in await embedded.health.history(agent.name)] == [
        (5, None, "timeout: the tool did not answer"),
        (3, "busy", "a task came"),
        (1, "created", ""),
    ]
    assert [entry.version for entry in await embedded.health.history(agent.name, limit=1)] == [5]
    assert await embedded.health.history(agent.name, since=datetime.now(UTC) + timedelta(days=1)) == []


async def test_an_agent_that_says_nothing_of_itself_has_no_status(embedded: Engine) -> None:
    agent = embedded.agent("a")
    await agent.update({"status": 5, "execution_state": "odd"})
    now = await embedded.health.now(agent.name)
    assert (now.status, now.task, now.last_error, now.version) == (None, None, None, 1)
    assert await embedded.health.history(agent.name) == []
    with pytest.raises(AgentNotFound):
        await embedded.health.now(embedded.agent("nobody").name)
    with pytest.raises(InvalidInput):
        await embedded.health.history(agent.name, limit=0)


def test_health_from_the_shell(perdure_command: Perdure) -> None:
    perdure_command("append", "a", "--type", "status_changed", "--data", '{"status":"busy"}', "--set", '/status="busy"')
    told = perdure_command("health", "a", "--json").json
    assert (told["status"], told["version"], [entry["status"] for entry in told["history"]]) == ("busy", 1, ["busy"])
    assert perdure_command("health", "a").out.startswith("a: busy, version 1, silent for ")
    perdure_command("health", "nobody", code=3)
