"""The facade without asyncio: the same operations, from many threads, and nothing that hangs."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import perdure.sync
from perdure import config
from perdure.client.engine import Engine
from perdure.engine.importing.samples import generate
from perdure.errors import ConfigurationError, Conflict, InvalidInput, Unavailable
from perdure.sync import Blocking, _blocks, _kind

HANDLES = 5_000
THREADS = 8
JOIN_S = 30


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    with perdure.sync.open(settings=config.load({"log": f"sqlite:///{tmp_path}/log"}, {})) as opened:
        yield opened


def noted(number: int) -> perdure.Event:
    return perdure.Event("noted", changes=(perdure.append("/n", number),))


def test_it_is_opened_with_a_place_for_snapshots_too(tmp_path: Path) -> None:
    with perdure.sync.open(f"sqlite:///{tmp_path}/log", store=f"file://{tmp_path}/elsewhere") as opened:
        agent = opened.agent("a")
        agent.append(noted(1))
        assert opened.snapshots.create_snapshot(agent.name).snapshot.version == 1
        assert f"{tmp_path}/log" in repr(opened)
    assert any((tmp_path / "elsewhere").iterdir())


def test_an_agent_lives_without_asyncio(engine: Any) -> None:
    agent = engine.agent("a", tenant="acme")
    assert agent.append(noted(1)).version == 1
    assert agent.update({"status": "busy"}).version == 2
    state = agent.state()
    assert (state.version, state.document, len(state.digest)) == (2, {"n": [1], "status": "busy"}, 32)
    assert agent.state(at_version=1).document == {"n": [1]}
    assert agent.state(at_time=datetime.now(UTC)).version == 2
    assert [event.version for event in agent.events()] == [1, 2]
    assert agent.blame("/status").version == 2
    with pytest.raises(Conflict):
        agent.append(noted(2), expected=0)
    assert engine.states.get_version_history(agent.name)[0].version == 2
    assert engine.log.get_event_history(agent.name, types=["noted"]).events[0].version == 1
    assert [listed.agent for listed in engine.directory.list("acme")] == ["a"]
    assert engine.verify().ok


def test_everything_that_an_engine_offers_is_reachable_and_none_of_it_is_left_awaitable(engine: Any) -> None:
    def walk(inner: Any, outer: Any, path: str, seen: set[type]) -> None:
        for name in (name for name in dir(inner) if not name.startswith("_")):
            mine, theirs = getattr(inner, name), getattr(outer, name)
            if inspect.isroutine(mine):
                says = str(getattr(mine, "__annotations__", {}).get("return", ""))
                waits = inspect.iscoroutinefunction(mine) or inspect.isasyncgenfunction(mine) or says.startswith(("Coro", "Await", "Async"))
                assert (_kind(getattr(mine, "__func__", mine)) != "plain") == waits, f"{path}.{name}"
                assert theirs.__doc__ == mine.__doc__ or name == "close"
            elif _blocks(type(mine)):
                assert isinstance(theirs, Blocking), f"{path}.{name}"
                if type(mine) not in seen:
                    walk(mine, theirs, f"{path}.{name}", {*seen, type(mine)})

    walk(engine._inner, engine, "engine", {Engine})
    assert {"agent", "states", "log", "directory", "projections", "schemas", "fidelity", "upcasters", "close"} <= set(dir(engine))


def test_a_stream_goes_on_while_others_write(engine: Any) -> None:
    agent = engine.agent("a")
    agent.append([noted(number) for number in range(1_000)])
    seen: list[int] = []

    def follow() -> None:
        for event in agent.events(follow=True, to_version=1_003):
            seen.append(event.version)

    reader = threading.Thread(target=follow)
    reader.start()
    for number in range(3):
        agent.append(noted(number))
    reader.join(JOIN_S)
    assert not reader.is_alive()
    assert seen == list(range(1, 1_004))


def test_a_stream_that_is_left_early_leaves_nothing_behind(engine: Any) -> None:
    agent = engine.agent("a")
    agent.append([noted(number) for number in range(10)])
    for event in agent.events(follow=True):
        if event.version == 3:
            break
    source = agent.events()
    assert next(source).version == 1
    source.close()


def test_many_threads_share_an_engine(engine: Any) -> None:
    def work(number: int) -> int:
        agent = engine.agent(f"a{number % 3}")
        return agent.update([{"op": "add", "path": "/n" if number < 3 else "/m", "value": number}]).version

    with ThreadPoolExecutor(THREADS) as threads:
        assert len(list(threads.map(work, range(24)))) == 24
    assert sum(engine.agent(f"a{number}").version() for number in range(3)) == 24


def test_thousands_of_handles_are_cheap(engine: Any) -> None:
    started = time.process_time()
    handles = [engine.agent(f"a{number}", tenant="acme") for number in range(HANDLES)]
    assert (time.process_time() - started) / HANDLES < 0.001  # a bound that only a mistake of kind could pass
    assert len({handle.name for handle in handles}) == HANDLES
    handles[-1].append(noted(1))
    assert len(engine.directory.list("acme")) == 1


def test_functions_of_the_caller_may_use_the_engine(engine: Any) -> None:
    agent = engine.agent("a")
    agent.append([noted(1), noted(2)])
    copies: list[int] = []

    def handler(events: Any) -> None:
        copies.extend(engine.agent("copy").append(perdure.Event("copied")).version for event in events)

    engine.projections.register("copies", handler, types=["noted"])
    engine.projections.pause("copies")
    engine.projections.resume("copies")
    assert (engine.projections.drain("copies"), copies) == (2, [1, 2])
    replayed = engine.log.replay_events(agent.name, handler=lambda event: engine.agent("b").append(noted(event.version)))
    assert (replayed.events, replayed.errors, engine.agent("b").version()) == (2, [], 2)
    engine.upcasters.register("noted", 1, lambda payload: {**payload, "data": "up"})
    assert [event.data for event in agent.events()] == ["up", "up"]


def test_an_import_and_a_run_that_is_told_to_stop(engine: Any) -> None:
    seen: list[int] = []
    report = engine.import_conversations(generate(seed=1, agents=3, turns=2), progress=lambda _, events: seen.append(events))
    assert (report.conversations, seen[-1]) == (3, report.events_new)
    stop = threading.Event()
    runner = threading.Thread(target=engine.run, kwargs={"stop": stop})
    runner.start()
    stop.set()
    runner.join(JOIN_S)
    assert not runner.is_alive()


def test_a_call_that_could_never_return_is_refused(tmp_path: Path) -> None:
    engine = perdure.sync.open(settings=config.load({"log": f"sqlite:///{tmp_path}/log"}, {}))
    agent = engine.agent("a")
    problems: list[Exception] = []

    def inside(_conversations: int, _events: int) -> None:
        try:
            agent.state()
        except InvalidInput as problem:
            problems.append(problem)

    engine.import_conversations(generate(seed=1, agents=1, turns=1), progress=inside)
    assert len(problems) == 1
    engine.close()
    engine.close()
    with pytest.raises(Unavailable):
        agent.state()
    with pytest.raises(Unavailable):
        list(agent.events())


def test_closing_ends_what_other_threads_wait_for(tmp_path: Path) -> None:
    engine = perdure.sync.open(settings=config.load({"log": f"sqlite:///{tmp_path}/log"}, {}))
    engine.agent("a").append(noted(1))
    reading = threading.Event()
    ended: list[BaseException] = []

    def follow() -> None:
        try:
            for _ in engine.agent("a").events(follow=True):
                reading.set()
        except BaseException as problem:
            ended.append(problem)

    reader = threading.Thread(target=follow)
    reader.start()
    assert reading.wait(JOIN_S)
    engine.close()
    reader.join(JOIN_S)
    assert not reader.is_alive()
    assert [type(problem) for problem in ended] == [Unavailable]


def test_an_engine_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ConfigurationError):
        perdure.sync.open(settings=config.load({"log": f"sqlite:///{tmp_path}/none"}, {}), create=False)
    assert threading.active_count() == before


def test_a_call_can_be_interrupted(tmp_path: Path) -> None:
    code = f"""
import perdure.sync, perdure
with perdure.sync.open("sqlite:///{tmp_path}/log") as engine:
    engine.agent("a").append(perdure.Event("noted"))
    try:
        for event in engine.agent("a").events(follow=True):
            print(event.version, flush=True)
    except KeyboardInterrupt:
        print("interrupted", engine.agent("a").version(), flush=True)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGINT)
        try:
            out, _ = process.communicate(timeout=JOIN_S)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "interrupted 1\n")
