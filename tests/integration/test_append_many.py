"""New agents of one append are looked up and made together, not one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import NO_STREAM, Event
from perdure.engine.births import CREATE_BATCH_MAX
from perdure.engine.log.contract import AgentName
from perdure.engine.log.log import AgentAppend


async def test_new_agents_of_one_append_take_a_round_trip_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = 2
    names = [AgentName("t", f"agent {number}") for number in range(CREATE_BATCH_MAX * batches)]
    async with perdure.open(f"sqlite://{tmp_path}/log", keys=f"file://{tmp_path}/key", bus="memory://", cache="memory://") as engine:
        store = engine.log.store
        asked: list[tuple[str, int]] = []
        for method in ("agents", "create_agents"):
            monkeypatch.setattr(store, method, _counted(method, getattr(store, method), asked))
        done = await engine.log.append_many([AgentAppend(name, [Event("made")], NO_STREAM) for name in names])
        assert [(each.name, each.version) for each in done] == [(name, 1) for name in names]
        assert asked == [("agents", CREATE_BATCH_MAX), ("create_agents", CREATE_BATCH_MAX)] * batches
        asked.clear()
        await engine.log.append_many([AgentAppend(name, [Event("more")], 1) for name in names])
        assert asked == []


def _counted(method: str, call: Callable[[Sequence[Any]], Awaitable[Any]], asked: list[tuple[str, int]]) -> Callable[..., Awaitable[Any]]:
    async def counted(given: Sequence[Any]) -> Any:
        asked.append((method, len(given)))
        return await call(given)

    return counted
