"""Going back: a replay is the fold of the prefix, a rollback and a fork lead there by events, and history stays as it was."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import perdure
from perdure import Event, append, set_value
from perdure.client.engine import Engine
from perdure.engine.fold import apply
from perdure.engine.importing.reader import read_conversations
from perdure.engine.log.records import AgentName
from perdure.errors import AgentNotFound, AlreadyExists, InvalidInput, VersionNotFound

SAMPLES = 12


@pytest.fixture
async def imported(tmp_path: Path, trajectories: Path) -> AsyncIterator[Engine]:
    file = sorted((trajectories / "tau-bench").glob("*.json"))[0]
    async with perdure.open(f"sqlite:///{tmp_path}/state", cache="memory://") as engine:
        await engine.import_conversations(read_conversations(str(file)), tenant="acme")
        yield engine


async def prefix(engine: Engine, name: AgentName, version: int) -> dict[str, object]:
    """By hand: the events, one after the other."""
    document: dict[str, object] = {}
    async for event in engine.agent(name.agent, tenant=name.tenant).events(to_version=version):
        document, _ = apply(document, event.changes)
    return document


async def history(engine: Engine, name: AgentName, to_version: int | None = None) -> list[tuple[int, bytes]]:
    events = engine.agent(name.agent, tenant=name.tenant).events(to_version=to_version)
    return [(event.version, event.chain) async for event in events]


async def test_random_agents_and_moments_of_real_conversations(imported: Engine) -> None:
    chance = random.Random(20)
    names = [AgentName(record.tenant, record.agent) for record in await imported.log.store.list_agents("acme", limit=1_000)]
    for number, name in enumerate(chance.sample(names, SAMPLES)):
        newest = await imported.log.version(name)
        version = chance.randrange(1, newest + 1)
        expected, before = await prefix(imported, name, version), await history(imported, name)
        assert (await imported.recovery.replay_to(name, version=version)).document == expected
        forked = await imported.recovery.fork(name, f"fork {number}", version=version, actor="tester", reason="to see")
        fork = imported.agent(forked.target, tenant="acme")
        assert (await fork.state()).document == expected
        rolled = await imported.recovery.rollback_to_version(name, version, actor="tester", reason="it went wrong")
        assert (await imported.agent(name.agent, tenant="acme").state()).document == expected
        assert rolled.appended == newest + 1
        assert await history(imported, name, newest) == before
        (event,) = await imported.log.get_events_by_version(name, rolled.appended)
        assert (event.actor, event.data["reason"], event.data["to"]["version"]) == ("tester", "it went wrong", version)
    assert (await imported.verify()).ok


async def test_a_moment_resolves_to_the_last_version_of_that_time(tmp_path: Path) -> None:
    async with perdure.open(f"sqlite:///{tmp_path}/state", cache="memory://") as engine:
        agent, name = engine.agent("a", tenant="t"), AgentName("t", "a")
        for number in range(3):
            await agent.append([Event("said", changes=(append("/said", f"{number}.{part}"),)) for part in range(2)])
        times = [event.time async for event in agent.events()]
        for version in (2, 4, 6):
            arrived = await engine.recovery.replay_to(name, time=times[version - 1])
            expected = max(number for number, time in enumerate(times, 1) if time == times[version - 1])
            assert (arrived.version, arrived.time) == (expected, times[version - 1])
        with pytest.raises(VersionNotFound):
            await engine.recovery.replay_to(name, time=times[0] - timedelta(microseconds=1))
        with pytest.raises(InvalidInput):
            await engine.recovery.replay_to(name, time=datetime.now(UTC) + timedelta(hours=1))
        with pytest.raises(InvalidInput):
            await engine.recovery.replay_to(name, time=datetime(2020, 1, 1))


async def test_where_nobody_can_go_nothing_is_changed(tmp_path: Path) -> None:
    async with perdure.open(f"sqlite:///{tmp_path}/state", cache="memory://") as engine:
        name = AgentName("t", "a")
        await engine.agent("a", tenant="t").append(Event("said", changes=(set_value("/x", 1),)))
        await engine.agent("b", tenant="t").append(Event("said", changes=(set_value("/x", 2),)))
        before = await history(engine, name)
        with pytest.raises(VersionNotFound):
            await engine.recovery.rollback_to_version(name, 7)
        with pytest.raises(AlreadyExists):
            await engine.recovery.fork(name, "b")
        with pytest.raises(AgentNotFound):
            await engine.recovery.rollback_to_version(AgentName("t", "nobody"), 1)
        with pytest.raises(InvalidInput):
            await engine.recovery.replay_to(name)
        assert await history(engine, name) == before
        assert (await engine.agent("b", tenant="t").state()).document == {"x": 2}


async def test_the_timeline_shows_every_event_in_its_order_and_at_its_pace(tmp_path: Path) -> None:
    async with perdure.open(f"sqlite:///{tmp_path}/state", cache="memory://") as engine:
        for number in range(12):
            for agent in ("a", "b", "c"):
                await engine.agent(agent, tenant="t").append(Event(f"kind {number % 2}", changes=(set_value("/n", number),)))
        await engine.agent("x", tenant="other").append(Event("kind 0"))
        shown = [event async for event in engine.recovery.timeline("t")]
        assert len(shown) == 36
        assert [event.time for event in shown] == sorted(event.time for event in shown)
        for agent in ("a", "b", "c"):
            assert [event.version for event in shown if event.agent == agent] == list(range(1, 13))
        assert len([event async for event in engine.recovery.timeline()]) == 37
        assert {event.type async for event in engine.recovery.timeline("t", types=["kind 1"])} == {"kind 1"}
        until = shown[17].time
        assert [event.id async for event in engine.recovery.timeline("t", until=until)] == [e.id for e in shown if e.time <= until]
        # A tenth of the speed takes ten times as long as it took: never faster than that.
        took = (shown[-1].time - shown[0].time).total_seconds()
        began = time.monotonic()
        assert len([event async for event in engine.recovery.timeline("t", speed=0.5)]) == 36
        assert time.monotonic() - began >= took * 2 * 0.95
