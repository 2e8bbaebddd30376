"""Every state of the past is the fold of the events up to it, whichever way it is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

import perdure
from perdure import config
from perdure.client.agent import Agent
from perdure.client.engine import Engine
from perdure.engine.digest import digest
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.fold import apply
from perdure.engine.importing.samples import generate
from perdure.errors import VersionNotFound

AGENTS = 6
TURNS = 4
BATCH_EVENTS_MAX = 5
PROBES_PER_AGENT = 12
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture(params=["sqlite", "postgres"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    url = f"sqlite:///{tmp_path}/log" if request.param == "sqlite" else request.getfixturevalue("fresh_database")
    settings = config.load({"log": url, "keys": f"file://{tmp_path}/root.key"}, {})
    async with perdure.open(settings=settings) as opened:
        yield opened


def edits(random: Random, number: int) -> Event:
    """An event that sets, merges and deletes: messages alone only ever grow."""
    choices = [
        perdure.set_value("/status", random.choice(["busy", "idle", None])),
        perdure.merge("/memory", {random.choice("abc"): random.choice([None, number, {"seen": [number]}])}),
        perdure.delete(f"/memory/{random.choice('abc')}"),
        perdure.set_value("/messages/0/seen", number),
        perdure.delete("/status"),
    ]
    return Event("edited", changes=tuple(random.sample(choices, random.randint(1, 3))))


async def live(engine: Engine, seed: int) -> list[Agent]:
    """Sample agents that all live at once: their events, with edits between them, arrive in turns, in appends of random size."""
    random = Random(seed)
    waiting: dict[str, list[Event]] = {}
    for conversation in generate(seed=seed, agents=AGENTS, turns=TURNS):
        events = list(conversation.events)
        for number in range(len(events) // 3):
            events.insert(random.randint(1, len(events)), edits(random, number))
        waiting[conversation.agent] = events
    agents = [engine.agent(name) for name in waiting]
    while waiting:
        name = random.choice(sorted(waiting))
        count = random.randint(1, BATCH_EVENTS_MAX)
        await engine.agent(name).append(waiting[name][:count])
        waiting[name] = waiting[name][count:]
        if not waiting[name]:
            del waiting[name]
    return agents


def prefixes(events: list[RecordedEvent]) -> list[dict[str, Any]]:
    """The document after 0, 1, 2 … events, each one's own."""
    documents: list[dict[str, Any]] = [{}]
    for event in events:
        before = msgspec.msgpack.decode(msgspec.msgpack.encode(documents[-1]))
        documents.append(apply(before, event.changes)[0])
    return documents


def newest(events: list[RecordedEvent], moment: datetime) -> int:
    """The newest version at or before a moment: events of one append may carry the same time."""
    return max((event.version for event in events if event.time <= moment), default=0)


async def check_version(agent: Agent, version: int, events: list[RecordedEvent], documents: list[dict[str, Any]]) -> None:
    state = await agent.state(at_version=version)
    assert (state.version, state.document) == (version, documents[version])
    assert state.digest == digest(documents[version])
    assert state.time == (events[version - 1].time if version else None)


async def check_moment(agent: Agent, moment: datetime, events: list[RecordedEvent], documents: list[dict[str, Any]]) -> None:
    state = await agent.state(at_time=moment)
    version = newest(events, moment)
    assert (state.version, state.document) == (version, documents[version])


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_state_of_the_past_is_the_fold_of_the_events_up_to_it(engine: Engine, seed: int) -> None:
    random = Random(seed)
    for agent in await live(engine, seed):
        events = [event async for event in agent.events()]
        documents = prefixes(events)
        assert [event.version for event in events] == list(range(1, len(events) + 1))
        for version in {0, 1, len(events), *(random.randint(0, len(events)) for _ in range(PROBES_PER_AGENT))}:
            await check_version(agent, version, events, documents)
            time = events[max(version, 1) - 1].time
            for moment in (time - MICROSECOND, time, time + MICROSECOND):
                await check_moment(agent, moment, events, documents)
        now = await agent.state()
        assert (now.version, now.document) == (len(events), documents[-1])


async def test_the_past_does_not_change_when_the_agent_goes_on(engine: Engine) -> None:
    agent = (await live(engine, 4))[0]
    before = await agent.state()
    await agent.update({"messages": None, "memory": {"a": "later"}})
    assert before.time is not None
    for past in (await agent.state(at_version=before.version), await agent.state(at_time=before.time)):
        assert (past.version, past.document, past.digest) == (before.version, before.document, before.digest)
    assert "messages" not in (await agent.state()).document


async def test_before_the_first_event_there_is_nothing_and_the_future_is_now(engine: Engine) -> None:
    agent = (await live(engine, 5))[0]
    now = await agent.state()
    dawn = await agent.state(at_time=datetime(2000, 1, 1, tzinfo=UTC))
    assert (dawn.version, dawn.document, dawn.time) == (0, {}, None)
    later = await agent.state(at_time=datetime(2100, 1, 1, tzinfo=UTC))
    assert (later.version, later.document) == (now.version, now.document)
    with pytest.raises(VersionNotFound):
        await agent.state(at_version=now.version + 1)
