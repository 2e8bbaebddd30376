"""The operations by their names on the managers: what they return, and what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import perdure
from perdure.client.agent import Agent
from perdure.client.engine import Engine
from perdure.engine.digest import digest
from perdure.engine.log.log import AgentAppend
from perdure.engine.log.records import AgentName, EventFilter
from perdure.errors import AgentNotFound, Compacted, Conflict, EventNotFound, InvalidInput, InvalidPatch, VersionNotFound
from tests.fix_client import OpenEngine

EVENTS = 25
Call = Callable[[Engine, Agent], Any]


@pytest.fixture
async def agent(embedded: Engine) -> Agent:
    """Events 1 … 25 of two types, two runs and two traces."""
    events = [
        perdure.Event(
            "said" if number % 2 else "thought",
            changes=(perdure.append("/n", number), perdure.set_value("/last", number)),
            data={"text": number},
            correlation_id=f"run-{number % 3}",
            trace_id=f"trace-{number % 5}",
        )
        for number in range(1, EVENTS + 1)
    ]
    agent = embedded.agent("a")
    for start in range(0, EVENTS, 5):
        await agent.append(events[start : start + 5])
    return agent


# --- the log ---
async def test_history_is_read_page_by_page_in_both_directions(embedded: Engine, agent: Agent) -> None:
    for descending in (False, True):
        versions: list[int] = []
        bound: dict[str, Any] = {}
        while True:
            page = await embedded.log.get_event_history(agent.name, limit=7, descending=descending, **bound)
            versions += [event.version for event in page.events]
            if page.next_version is None:
                break
            bound = {"to_version" if descending else "from_version": page.next_version}
        assert versions == sorted(range(1, EVENTS + 1), reverse=descending)


async def test_history_is_filtered_by_type_run_trace_and_time(embedded: Engine, agent: Agent) -> None:
    events = [event async for event in agent.events()]

    async def versions(**filters: Any) -> list[int]:
        return [event.version for event in (await embedded.log.get_event_history(agent.name, **filters)).events]

    assert await versions(types=["thought"]) == list(range(2, EVENTS + 1, 2))
    assert await versions(types=["thought", "said"], correlation_id="run-1") == list(range(1, EVENTS + 1, 3))
    assert await versions(trace_id="trace-0", correlation_id="run-0") == [15]
    assert await versions(types=["unknown"]) == []
    since, until = events[4].time, events[14].time
    assert await versions(since=since, until=until) == [event.version for event in events if since <= event.time <= until]


async def test_events_by_version_and_by_id(embedded: Engine, agent: Agent) -> None:
    name = agent.name
    assert [event.version for event in await embedded.log.get_events_by_version(name, 3, 5)] == [3, 4, 5]
    (third,) = await embedded.log.get_events_by_version(name, 3)
    assert await embedded.log.get_event(name, third.id) == third
    assert await embedded.log.get_events_by_version(name, 99) == []
    with pytest.raises(EventNotFound):
        await embedded.log.get_event(name, perdure.Event("x").id)


async def test_a_stream_begins_anywhere_and_goes_on_live(embedded: Engine, agent: Agent) -> None:
    seen: list[int] = []

    async def follow() -> None:
        async for event in embedded.log.stream_events(agent.name, EventFilter(from_version=24), follow=True):
            seen.append(event.version)
            if event.version == EVENTS + 2:
                return

    task = asyncio.create_task(follow())
    await agent.append(perdure.Event("x"))
    await agent.append(perdure.Event("x"))
    await asyncio.wait_for(task, 60)
    assert seen == [24, 25, 26, 27]


async def test_a_replay_tells_what_came_of_it(embedded: Engine, agent: Agent) -> None:
    await agent.append([perdure.Event("odd", changes=(perdure.append("/last", 1),)), perdure.Event("odd", replayable=False)])
    seen: list[int] = []

    async def handler(event: perdure.RecordedEvent) -> None:
        seen.append(event.version)
        if event.version % 10 == 0:
            raise ValueError("not this one")

    result = await embedded.log.replay_events(agent.name, from_version=9, handler=handler)
    assert seen == list(range(9, EVENTS + 2))
    assert (result.events, result.skipped, result.version, result.ok) == (len(seen), 1, EVENTS + 2, False)
    assert result.errors == [f"version {version}, {kind}: ValueError: not this one" for version, kind in ((10, "thought"), (20, "thought"))]
    assert (result.warning_count, result.warnings) == (1, ["version 26: append at '/last' made a list of a scalar"])
    state = await agent.state()
    assert (result.document, result.checksum) == (state.document, state.digest.hex())
    assert result.duration_s > 0
    past = await embedded.log.replay_events(agent.name, to_version=4, types=["said"])
    assert (past.version, past.events, past.document) == (4, 2, (await agent.state(at_version=4)).document)


async def test_a_handler_that_changes_an_event_does_not_change_the_state(embedded: Engine) -> None:
    agent = embedded.agent("b")
    await agent.update({"a": {"b": [1]}})

    def handler(event: perdure.RecordedEvent) -> None:
        event.changes[0].value.clear()

    result = await embedded.log.replay_events(agent.name, handler=handler)
    assert (await agent.state()).document == {"a": {"b": [1]}}
    assert result.document == {"a": {"b": [1]}}


# --- states ---
async def test_an_update_says_everything_about_itself(embedded: Engine, agent: Agent) -> None:
    done = await embedded.states.update_state(agent.name, {"last": None, "x": 1}, actor="me", correlation_id="run-9", data={"why": "so"})
    (event,) = done.events
    assert (done.previous_version, done.version, done.document) == (EVENTS, EVENTS + 1, {"n": list(range(1, EVENTS + 1)), "x": 1})
    assert (event.type, event.actor, event.correlation_id, event.data, event.changes) == (
        "state_updated",
        "me",
        "run-9",
        {"why": "so"},
        done.changes,
    )
    state = await agent.state()
    assert (done.checksum, done.time, done.document) == (state.digest.hex(), state.time, state.document)
    assert done.checksum == digest(done.document).hex()


async def test_an_update_with_an_expectation_is_decided_on_that_version_or_not_at_all(embedded: Engine, agent: Agent) -> None:
    done = await agent.update([{"op": "replace", "path": "/last", "value": 0}], expected=EVENTS)
    with pytest.raises(Conflict) as caught:
        await agent.update({"last": 1}, expected=EVENTS)
    assert caught.value.version == done.version
    with pytest.raises(InvalidPatch):
        await agent.update([{"op": "test", "path": "/last", "value": "other"}])
    new = embedded.agent("new")
    assert (await new.update({"a": 1}, expected=0)).version == 1
    assert (await agent.version()) == EVENTS + 1


async def test_updates_at_once_are_all_decided_on_the_state_that_they_change(open_engine: OpenEngine) -> None:
    async with open_engine() as one, open_engine() as two:
        await one.agent("a").update({"n": 0, "seen": []})

        async def count(engine: Engine) -> None:
            agent = engine.agent("a")
            for _ in range(100):
                state = await agent.state()
                n = state.document["n"]
                try:
                    await agent.update([{"op": "test", "path": "/n", "value": n}, {"op": "replace", "path": "/n", "value": n + 1}])
                except (InvalidPatch, Conflict):
                    continue
                return
            raise AssertionError("never came through")

        await asyncio.gather(*(count(engine) for _ in range(6) for engine in (one, two)))
        assert (await two.agent("a").state()).document["n"] == 12
        await asyncio.gather(*(one.agent("a").update([{"op": "add", "path": "/seen/-", "value": each}]) for each in range(40)))
        assert sorted((await two.agent("a").state()).document["seen"]) == list(range(40))


async def test_version_history_names_what_each_version_touched(embedded: Engine, agent: Agent) -> None:
    newest = await embedded.states.get_version_history(agent.name, limit=2)
    assert [(entry.version, entry.type, entry.paths) for entry in newest] == [
        (25, "said", ("/n", "/last")),
        (24, "thought", ("/n", "/last")),
    ]
    assert [entry.version for entry in await embedded.states.get_version_history(agent.name, to_version=3, descending=False)] == [1, 2, 3]
    assert [entry.version for entry in await agent.history(limit=1)] == [EVENTS]


async def test_old_values_are_read_from_the_log(embedded: Engine, agent: Agent) -> None:
    first, second = await embedded.states.get_changes(agent.name, 3)
    assert (first.op, first.path, first.old_value, first.new_value) == ("append", "/n", [1, 2], [1, 2, 3])
    assert (second.op, second.path, second.old_value, second.new_value) == ("set", "/last", 2, 3)
    with pytest.raises(VersionNotFound):
        await embedded.states.get_changes(agent.name, EVENTS + 1)


async def test_blame_follows_an_element_of_a_list(embedded: Engine, agent: Agent) -> None:
    await agent.update([{"op": "remove", "path": "/n/0"}, {"op": "add", "path": "/n/0", "value": "new"}])
    blamed = [await agent.blame(path) for path in ("/n/0", "/n/4", "/last", "/n", "/nothing")]
    assert [None if event is None else event.version for event in blamed] == [EVENTS + 1, 5, EVENTS, EVENTS + 1, None]


# --- agents whose first events were removed ---
async def test_of_an_agent_without_its_first_events_what_is_left_is_told_and_the_rest_is_named(embedded: Engine, agent: Agent) -> None:
    name = agent.name
    for step in range(3):
        await embedded.snapshots.create_snapshot(name)
        await agent.update({"step": step})
    await embedded.upkeep.compact_events(name, keep_last=8)
    floor = (await embedded.log.floor(name)).version
    assert floor > 10
    state = await agent.state()
    replayed = await embedded.log.replay_events(name, from_version=floor)
    assert (replayed.events, replayed.checksum) == (state.version - floor + 1, state.digest.hex())
    with pytest.raises(Compacted):
        await embedded.log.replay_events(name, from_version=floor - 1)
    made = await agent.blame(f"/n/{floor - 1}")
    assert made is not None
    assert made.version == floor
    touched = await agent.blame("/step")
    assert touched is not None
    assert touched.version == state.version
    await agent.update({"fresh": [1]})
    for path in ("/n/0", f"/n/{floor - 2}"):
        with pytest.raises(Compacted):
            await agent.blame(path)
    assert await agent.blame("/nothing") is None
    assert await agent.blame("/n/99") is None
    versions: list[int] = []
    bound: dict[str, Any] = {}
    while (page := await embedded.log.get_event_history(name, limit=3, descending=True, **bound)).events:
        versions += [event.version for event in page.events]
        bound = {"to_version": page.next_version or floor - 1}
    assert versions == list(range(state.version + 1, floor - 1, -1))
    assert [entry.version for entry in await agent.history(limit=100)] == versions
    with pytest.raises(Compacted):
        await embedded.log.get_event_history(name)


# --- upcasters ---
async def test_upcasters_stand_behind_every_read_of_events_and_before_no_state(embedded: Engine, agent: Agent) -> None:
    def rename(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "changes": (), "data": {"content": payload["data"]["text"]}}

    before = await agent.state()
    embedded.upcasters.register("said", 1, rename)
    name, log = agent.name, embedded.log
    (stored,) = await log.get_events(name, limit=1, as_stored=True)
    for event in (
        (await log.get_events(name, limit=1))[0],
        await log.get_event(name, stored.id),
        (await log.get_events_by_version(name, 1))[0],
        (await log.get_event_history(name)).events[0],
        await anext(agent.events(to_version=1)),
    ):
        assert (event.schema_version, event.data, event.changes) == (2, {"content": 1}, ())
        assert (event.version, event.chain) == (stored.version, stored.chain)
    assert (stored.schema_version, stored.data) == (1, {"text": 1})
    assert (await agent.state(at_version=EVENTS)).digest == before.digest
    assert (await log.replay_events(name)).checksum == before.digest.hex()
    assert len(await embedded.states.get_changes(name, 1)) == 2
    assert (await agent.blame("/n/0")) == stored
    embedded.upcasters.register("said", 2, lambda payload: payload["missing"])
    assert (await log.replay_events(name)).error_count == EVENTS // 2 + 1
    assert (await agent.state(at_version=EVENTS)).digest == before.digest


async def test_handlers_of_projections_get_events_of_today(embedded: Engine, agent: Agent) -> None:
    seen: list[Any] = []

    async def handler(events: Any) -> None:
        seen.extend((event.version, event.data) for event in events)

    embedded.upcasters.register("said", 1, lambda payload: {**payload, "data": payload["data"]["text"]})
    embedded.projections.register("texts", handler, types=["said"])
    assert await embedded.projections.drain("texts") == len(seen) == EVENTS // 2 + 1
    assert sorted(seen) == [(number, number) for number in range(1, EVENTS + 1, 2)]


# --- bad input ---
NAIVE = datetime(2030, 1, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine, agent: agent.state(at_version=-1),
        lambda engine, agent: agent.state(at_version="1"),
        lambda engine, agent: agent.state(at_version=True),
        lambda engine, agent: agent.state(at_version=1, at_time=datetime.now(UTC)),
        lambda engine, agent: agent.state(at_time=NAIVE),
        lambda engine, agent: agent.state(at_time="yesterday"),
        lambda engine, agent: agent.state(at_least="x"),
        lambda engine, agent: agent.state(consistency="maybe"),
        lambda engine, agent: agent.append([]),
        lambda engine, agent: agent.append("said"),
        lambda engine, agent: agent.append(["said"]),
        lambda engine, agent: agent.append(None),
        lambda engine, agent: agent.append(perdure.Event("perdure.owned")),
        lambda engine, agent: agent.append(perdure.Event("x"), expected="any"),
        lambda engine, agent: agent.append(perdure.Event("x"), expected=-1),
        lambda engine, agent: agent.append(perdure.Event("x"), expected=True),
        lambda engine, agent: agent.append(perdure.Event("x"), expected=None),
        lambda engine, agent: agent.update(None),
        lambda engine, agent: agent.update("x"),
        lambda engine, agent: agent.update({"a": object()}),
        lambda engine, agent: agent.update({"a": 1}, colour="red"),
        lambda engine, agent: agent.update({"a": 1}, expected="x"),
        lambda engine, agent: agent.update([{"op": "paint", "path": "/a"}]),
        lambda engine, agent: agent.diff(1, "2"),
        lambda engine, agent: agent.blame("n"),
        lambda engine, agent: agent.blame(5),
        lambda engine, agent: agent.blame("/a~2"),
        lambda engine, agent: agent.history(limit=0),
        lambda engine, agent: agent.history(limit=10**6),
        lambda engine, agent: agent.describe(type=5),
        lambda engine, agent: agent.describe(type="x" * 1_000),
        lambda engine, agent: agent.describe(type="x", labels={"a": 1}),
        lambda engine, agent: agent.describe(type="x", labels=["a"]),
        lambda engine, agent: agent.describe(type="x", labels={str(number): "" for number in range(1_000)}),
        lambda engine, agent: engine.log.get_event(agent.name, "x"),
        lambda engine, agent: engine.log.get_events_by_version(agent.name, 0),
        lambda engine, agent: engine.log.get_event_history(agent.name, types="said"),
        lambda engine, agent: engine.log.get_event_history(agent.name, correlation_id=5),
        lambda engine, agent: engine.log.get_event_history(agent.name, since=NAIVE),
        lambda engine, agent: engine.log.get_event_history(agent.name, limit=-1),
        lambda engine, agent: engine.states.update_state(AgentName("", "a"), {}),
        lambda engine, agent: engine.directory.list("default", limit=0),
        lambda engine, agent: engine.directory.list("default", labels={"a": 5}),
        lambda engine, agent: anext(agent.events(from_version=0)),
        lambda engine, agent: anext(agent.events(since=NAIVE)),
    ],
)
async def test_bad_input_is_a_typed_error_and_changes_nothing(embedded: Engine, agent: Agent, call: Call) -> None:
    with pytest.raises(InvalidInput) as caught:
        await call(embedded, agent)
    assert caught.value.message
    assert await agent.version() == EVENTS


@pytest.mark.parametrize(
    "call",
    [
        lambda engine, name: engine.log.append_event(name, perdure.Event("x")),
        lambda engine, name: engine.log.append_events(name, [perdure.Event("x")]),
        lambda engine, name: engine.log.append_many([AgentAppend(name, [perdure.Event("x")])]),
        lambda engine, name: engine.log.get_events(name),
        lambda engine, name: engine.log.get_event_history(name),
        lambda engine, name: engine.log.version(name),
        lambda engine, name: engine.states.get_current_state(name),
        lambda engine, name: engine.states.get_current_state(name, consistency="eventual"),
        lambda engine, name: engine.states.update_state(name, {}),
        lambda engine, name: engine.states.project_state(name, 1),
        lambda engine, name: engine.directory.describe(name, type="x", labels={}),
        lambda engine, name: engine.health.now(name),
    ],
)
async def test_managers_refuse_what_names_no_agent(embedded: Engine, call: Any) -> None:
    for name in (("default", "a"), "a", None, AgentName("", "a")):
        with pytest.raises(InvalidInput):
            await call(embedded, name)


@pytest.mark.parametrize("names", [("", "a"), ("t", ""), ("t", "a\n"), ("t" * 200, "a"), (5, "a"), ("t", None), ("t", ["a"])])
async def test_what_is_no_name_is_refused_before_anything_is_asked(embedded: Engine, names: Any) -> None:
    with pytest.raises(InvalidInput):
        embedded.agent(names[1], tenant=names[0])


async def test_what_is_not_there_is_said_to_be_not_there(embedded: Engine) -> None:
    nobody = embedded.agent("nobody")
    for call in (nobody.state, nobody.version, nobody.history, lambda: nobody.blame("/a"), lambda: embedded.log.replay_events(nobody.name)):
        with pytest.raises(AgentNotFound):
            await call()  # type: ignore[operator]
    assert await embedded.tenants() == []


async def test_the_directory_pages_by_status_and_label(embedded: Engine) -> None:
    for number in range(6):
        agent = embedded.agent(f"a{number}", type="even" if number % 2 == 0 else "odd")
        await agent.append(perdure.Event("x"))
        await agent.describe(type="even" if number % 2 == 0 else "odd", labels={"team": str(number % 3)})
    await embedded.log.fence(AgentName("default", "a0"))
    listed = await embedded.directory.list("default", type="even", labels={"team": "0"})
    assert [(entry.agent, entry.status) for entry in listed] == [("a0", "fenced")]
    assert [entry.agent for entry in await embedded.directory.list("default", status="active", limit=2, after="a1")] == ["a2", "a3"]
    assert all(entry.created <= datetime.now(UTC) + timedelta(seconds=5) for entry in listed)
