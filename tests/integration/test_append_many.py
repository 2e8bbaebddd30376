"""New agents of one append are looked up and made together, not one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import NO_STREAM, Event
from perdure.client.engine import Opening
from perdure.engine.births import CREATE_BATCH_MAX
from perdure.engine.log.log import AgentAppend
from perdure.engine.log.records import AgentName


async def test_new_agents_of_one_append_take_a_round_trip_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = 2
    names = [AgentName("t", f"agent {number}") for number in range(CREATE_BATCH_MAX * batches)]
    async with perdure.open(f"sqlite:///{tmp_path}/log", keys=f"file://{tmp_path}/key", bus="memory://", cache="memory://") as engine:
        store = engine.log.store
        asked: list[tuple[str, int]] = []
        for method in ("agents", "create_agents"):
            monkeypatch.setattr(store, method, _counted(method, getattr(store, method), asked))
        done = await engine.log.append_many([AgentAppend(name, [Event("made")], NO_STREAM) for name in names])
        assert [(each.name, each.version) for each in done] == [(name, 1) for name in names]
        # After the first of them most are new, and are made at once.
        assert asked == [("agents", CREATE_BATCH_MAX), ("create_agents", CREATE_BATCH_MAX), ("create_agents", CREATE_BATCH_MAX)]
        asked.clear()
        await engine.log.append_many([AgentAppend(name, [Event("more")], 1) for name in names])
        assert asked == []


async def test_agents_that_are_made_without_a_look_are_those_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [AgentName("t", f"agent {number}") for number in range(40)]

    def opened() -> Opening:
        return perdure.open(f"sqlite:///{tmp_path}/log", keys=f"file://{tmp_path}/key", bus="memory://", cache="memory://")

    async with opened() as first, opened() as second:
        await first.log.append_many([AgentAppend(name, [Event("made")], NO_STREAM) for name in names[:20]])
        await second.log.append_many([AgentAppend(name, [Event("made")], NO_STREAM) for name in names[20:30]])  # most were new of late
        asked: list[tuple[str, int]] = []
        monkeypatch.setattr(second.log.store, "agents", _counted("agents", second.log.store.agents, asked))
        done = await second.log.append_many([AgentAppend(name, [Event("more")]) for name in [*names[:20], *names[30:]]])
        assert asked == []
        assert [each.version for each in done] == [2] * 20 + [1] * 10
        for name in names[:20]:
            # Under the key that the agent was made with: the first writer reads what the second one wrote.
            assert [event.type for event in await first.log.get_events(name)] == ["made", "more"]
        await second.log.append_many([AgentAppend(AgentName("t", "another"), [Event("made")], NO_STREAM)])
        assert asked == [("agents", 1)]  # few were new


def _counted(method: str, call: Callable[[Sequence[Any]], Awaitable[Any]], asked: list[tuple[str, int]]) -> Callable[..., Awaitable[Any]]:
    async def counted(given: Sequence[Any]) -> Any:
        asked.append((method, len(given)))
        return await call(given)

    return counted
