"""The fast path: the same final state, critical events at once, nothing that a reader of this process would miss."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

import perdure
from perdure import limits
from perdure.client.batch import MERGED, Batch, FastMode
from perdure.client.engine import Engine, Opening
from perdure.client.fidelity import Held
from perdure.engine.changes import Change
from perdure.engine.digest import digest
from perdure.engine.fold import apply
from perdure.engine.log.log import AgentAppend
from perdure.engine.log.records import AgentName
from perdure.errors import Conflict, Fenced, InvalidEvent, InvalidInput, SchemaViolation, Unavailable
from tests.fix_client import OpenEngine

LONG_S = 3_000.0


@pytest.fixture
async def fast(embedded: Engine) -> Engine:
    """An engine whose workers are on the fast path, with time enough to look at what waits."""
    embedded.fidelity.fast("worker", critical=["done"], events_max=50, age_max_s=LONG_S)
    return embedded


def step(number: int) -> perdure.Event:
    return perdure.Event("step", changes=(perdure.set_value("/at", number), perdure.append("/trail", number)), actor="w")


def done() -> perdure.Event:
    return perdure.Event("done", changes=(perdure.set_value("/status", "done"),))


async def stored(engine: Engine, agent: str = "a") -> list[str]:
    """Types of the agent's events in the log, without writing what waits."""
    record = await engine.log.vault.record("default", agent)
    page = await engine.log.store.read(record.partition, 0, 1_000)
    return [event.type for event in page if event.agent == agent]


async def test_events_wait_and_become_one_with_the_same_state(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    held = [await agent.append(step(number)) for number in range(10)]
    assert isinstance(held[-1], Held)
    assert (held[-1].versions, held[-1].waiting) == ((), 10)
    assert await stored(fast) == []
    state = await agent.state()
    assert (state.version, state.document) == (1, {"at": 9, "trail": list(range(10))})
    (event,) = [event async for event in agent.events()]
    assert (event.type, event.actor, event.data["events"], event.data["types"]) == (MERGED, "w", 10, {"step": 10})


async def test_a_critical_event_is_there_at_once_and_after_what_came_before_it(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    await agent.append([step(1), step(2)])
    result = await agent.append(done())
    assert (result.versions, result.version, result.already) == ((2,), 2, False)
    assert await stored(fast) == [MERGED, "done"]
    assert (await agent.append(done(), expected=2)).versions == (3,)
    await agent.append(step(3))
    with pytest.raises(Conflict):
        await agent.append(done(), expected=1)
    assert fast.fidelity.waiting(agent.name) == 1
    assert (await agent.append(done(), expected=3)).versions == (5,)


async def test_a_critical_event_again_changes_nothing_although_others_wait(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    critical = done()
    await agent.append(critical)
    await agent.append(step(1))
    again = await agent.append(critical)
    assert (again.already, again.versions) == (True, (1,))
    assert (await agent.state()).document == {"status": "done", "at": 1, "trail": [1]}


async def test_number_and_age_bound_what_waits(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    for number in range(120):
        await agent.append(step(number))
    assert (await stored(fast), fast.fidelity.waiting(agent.name)) == ([MERGED, MERGED], 20)
    fast.fidelity.fast("old", critical=[], age_max_s=0.05)
    old = fast.agent("b", type="old")
    await old.append(step(1))
    signal = fast.log.store.signal()
    async with asyncio.timeout(60):
        while fast.fidelity.waiting(old.name):
            await signal.wait(0.1)
    assert await stored(fast, "b") == [MERGED]


async def test_closing_writes_what_waits(open_engine: OpenEngine) -> None:
    async with open_engine() as engine:
        engine.fidelity.fast("worker", critical=[], age_max_s=LONG_S)
        await asyncio.gather(*(engine.agent(f"a{number}", type="worker").append(step(number)) for number in range(20)))
    async with open_engine() as engine:
        for number in range(20):
            assert (await engine.agent(f"a{number}").state()).document == {"at": number, "trail": [number]}


async def test_every_reader_of_what_is_newest_sees_what_waits(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    name = agent.name
    for number, read in enumerate(
        (
            agent.version,
            lambda: agent.state(at_version=2),
            lambda: fast.log.get_events(name),
            lambda: fast.log.replay_events(name),
            agent.history,
            lambda: agent.blame("/at"),
            lambda: agent.update({"x": 1}),
            lambda: fast.log.append_many([AgentAppend(name, [done()]), AgentAppend(AgentName("default", "z"), [done()])]),
            fast.fidelity.flush,
        ),
        start=1,
    ):
        await agent.append(step(number))
        assert fast.fidelity.waiting(name) == 1
        await read()  # type: ignore[operator]
        assert fast.fidelity.waiting(name) == 0
    assert (await agent.state()).document["trail"] == list(range(1, 10))


async def test_other_writers_do_not_make_the_final_state_another(open_engine: OpenEngine) -> None:
    async with open_engine() as one, open_engine() as two:
        one.fidelity.fast("worker", critical=[], events_max=7, age_max_s=LONG_S)
        mine, theirs = one.agent("a", type="worker"), two.agent("a")
        await mine.append(step(-1))
        await mine.state()

        async def write(agent: Any, start: int) -> None:
            for number in range(start, start + 40):
                await agent.append(perdure.Event("step", changes=(perdure.append("/trail", number),)))

        await asyncio.gather(write(mine, 0), write(theirs, 100))
        trail = (await mine.state()).document["trail"]
        assert [number for number in trail if 0 <= number < 100] == list(range(40))
        assert [number for number in trail if number >= 100] == list(range(100, 140))
        assert (await two.verify()).ok


async def test_a_retry_while_the_first_waits_is_left_out(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    event = step(1)
    await agent.append(event)
    await agent.append([event, step(2)])
    assert isinstance(await agent.append(event, expected=0), Held)
    assert (await agent.state()).document["trail"] == [1, 2]


async def test_an_unknown_outcome_is_recognized_and_nothing_is_applied_twice(fast: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = fast.agent("a", type="worker")
    await agent.append([step(1), step(2)])
    write = fast.fidelity._write

    async def cut(appends: Any) -> Any:
        await write(appends)
        raise Unavailable("the connection was cut after the commit")

    monkeypatch.setattr(fast.fidelity, "_write", cut)
    with pytest.raises(Unavailable):
        await agent.state()
    assert fast.fidelity.waiting(agent.name) == 2
    monkeypatch.setattr(fast.fidelity, "_write", write)
    await agent.append(step(3))
    await agent.append(done())
    assert (await agent.state()).document == {"at": 3, "trail": [1, 2, 3], "status": "done"}


async def test_a_retry_of_what_waits_for_a_log_that_was_away_is_applied_once(fast: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = fast.agent("a", type="worker")
    await agent.append(step(0))
    write = fast.fidelity._write

    async def away(appends: Any) -> Any:
        raise Unavailable("the log is away")

    monkeypatch.setattr(fast.fidelity, "_write", away)
    with pytest.raises(Unavailable):
        await agent.state()
    refused = step(1)
    with pytest.raises(Unavailable):
        await agent.append(refused)
    monkeypatch.setattr(fast.fidelity, "_write", write)
    await agent.append(refused)
    await agent.append(refused)
    assert (await agent.state()).document["trail"] == [0, 1]
    events = [step(number) for number in range(2, 60)]
    for event in events:
        assert isinstance(await agent.append(event), Held)
    assert (await agent.state()).document["trail"] == list(range(60))


async def test_what_can_never_be_written_is_told_and_does_not_hold_up_the_next(fast: Engine) -> None:
    def open_again() -> Opening:
        return perdure.open(settings=fast.settings)

    agent = fast.agent("a", type="worker")
    epoch = await fast.log.take_ownership(agent.name, "me")
    await agent.append(step(1), epoch=epoch)
    async with open_again() as another:
        await another.log.take_ownership(agent.name, "another")
    with pytest.raises(Fenced):
        await agent.state()
    await agent.append(step(2))
    assert (await agent.state()).document == {"at": 2, "trail": [2]}


async def test_a_hand_over_writes_what_waits_first(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    epoch = await fast.log.take_ownership(agent.name, "me")
    await agent.append(step(1), epoch=epoch)
    await fast.log.fence(agent.name)
    assert (await agent.state()).document == {"at": 1, "trail": [1]}
    epoch = await fast.log.take_ownership(agent.name, "me")
    await agent.append(step(2), epoch=epoch)
    await fast.log.take_ownership(agent.name, "another")
    assert (await agent.state()).document == {"at": 2, "trail": [1, 2]}


async def test_what_cannot_be_written_at_the_end_is_told_after_everything_is_closed(open_engine: OpenEngine) -> None:
    async with open_engine() as other:
        engine = await open_engine()
        engine.fidelity.fast("worker", critical=[], age_max_s=LONG_S)
        lost, kept = engine.agent("lost", type="worker"), engine.agent("kept", type="worker")
        epoch = await engine.log.take_ownership(lost.name, "me")
        await lost.append(step(1), epoch=epoch)
        await kept.append(step(2))
        await other.log.take_ownership(lost.name, "another")
        with pytest.raises(Fenced):
            await engine.close()
        with pytest.raises(Unavailable):
            await kept.append(step(3), expected=0)
        assert (await other.agent("kept").state()).document == {"at": 2, "trail": [2]}


async def test_bad_input_is_refused_at_once(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    with pytest.raises(InvalidEvent):
        await agent.append(perdure.Event("step", changes=(perdure.set_value("/x", float("nan")),)))
    assert await fast.directory.list("default") == []
    with pytest.raises(InvalidEvent):
        await agent.append([])
    fast.schemas.register("worker", {"properties": {"at": {"maximum": 5}}})
    await agent.append([step(1), step(5)])
    with pytest.raises(SchemaViolation):
        await agent.append(step(6))
    assert (await agent.state()).document == {"at": 5, "trail": [1, 5]}
    for wrong in ({"events_max": 0}, {"age_max_s": 0}, {"age_max_s": "x"}, {"critical": "done"}, {"critical": [1]}):
        with pytest.raises(InvalidInput):
            fast.fidelity.fast("worker", **{"critical": [], **wrong})


async def test_full_again_writes_every_event(fast: Engine) -> None:
    agent = fast.agent("a", type="worker")
    await agent.append(step(1))
    await fast.fidelity.full("worker")
    await agent.append([step(2), step(3)])
    assert await stored(fast) == [MERGED, "step", "step"]
    await fast.agent("b").append(step(1))
    assert await stored(fast, "b") == ["step"]


async def test_bytes_of_all_agents_bound_what_waits(fast: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FAST_BYTES_TOTAL_MAX", 1_000)
    for number in range(50):
        await fast.agent(f"a{number}", type="worker").append(perdure.Event("step", data="x" * 100, changes=(perdure.set_value("/a", 1),)))
    assert sum(fast.fidelity.waiting(AgentName("default", f"a{number}")) for number in range(50)) < 12


@pytest.mark.parametrize("seed", range(6))
async def test_fast_and_full_agents_with_the_same_life_end_in_the_same_state(fast: Engine, seed: int) -> None:
    random = Random(seed)
    quick, full = fast.agent("quick", type="worker"), fast.agent("full")
    for number in range(80):
        changes = random.sample(
            [
                perdure.append("/trail", number),
                perdure.set_value("/at", number),
                perdure.merge("/memory", {random.choice("abc"): random.choice([None, number, {"n": [number]}])}),
                perdure.delete("/trail/0"),
                perdure.insert("/trail/0", -number),
            ],
            random.randint(1, 3),
        )
        kind = random.choice(["step", "step", "step", "step", "done"])
        for agent in (quick, full):
            await agent.append(perdure.Event(kind, changes=tuple(changes)))
        if random.random() < 0.1:
            assert (await quick.state()).document == (await full.state()).document
        elif random.random() < 0.1:
            await quick.update({"at": None})
            await full.update({"at": None})
    assert (await quick.state()).digest == (await full.state()).digest
    assert await quick.version() < await full.version()


@pytest.mark.parametrize("seed", range(30))
def test_a_merged_event_leads_where_its_events_lead(seed: int) -> None:
    random = Random(seed)
    paths = ["/a", "/a/b", "/a/0", "/l", "/l/0", "/l/2", "/l/-", "/a/b/c", ""]
    values: list[Any] = [1, None, "x", [1, 2], {"b": [1], "0": 2}, {}]

    def change() -> Change:
        operation, path = random.choice(["set", "delete", "append", "insert", "merge"]), perdure.delete(random.choice(paths)).path
        if operation == "delete":
            return Change("delete", path)
        return Change(operation, path, random.choice(values))  # type: ignore[arg-type]

    document, _ = apply({}, [change() for _ in range(5)])
    batch = Batch(FastMode(frozenset()), None)
    events = [perdure.Event("x", changes=tuple(change() for _ in range(3))) for _ in range(20)]
    batch.add(events, 0)
    merged = batch.merged(document)
    expected, _ = apply(document, [change for event in events for change in event.changes])
    reached, _ = apply(document, merged.changes if merged else ())
    assert digest(reached) == digest(expected)
