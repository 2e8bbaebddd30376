"""Agent hosts: commands take effect once, under one owner; a lost node's agents are served elsewhere."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import Event, set_value
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.errors import AlreadyExists, CommandFailed, NotServed, Overloaded
from perdure.migration import source
from perdure.projections.reader import StateReader
from perdure.recovery.assignments import assign, assigned
from perdure.recovery.commands import Command, CommandResult
from perdure.recovery.handover import moved_to
from perdure.recovery.host import AgentHost
from perdure.recovery.journal import Journal
from perdure.recovery.nodes import Node, announce, announce_end, list_nodes, node_lease
from perdure.recovery.supervisor import Supervisor

LEASE_S = 2.5
NAME = AgentName("acme", "counter")


def count(state: dict[str, Any], body: Any) -> Sequence[Event]:
    """Adds to a total; as many events as it is told."""
    if body == "fail":
        raise ValueError("no such thing")
    if body == "scribble":
        state["total"] = -1
        return []
    total = state.get("total", 0)
    return [Event("added", changes=(set_value("/total", total + 1 + number),)) for number in range(body)]


@asynccontextmanager
async def engine_in(folder: Path) -> AsyncIterator[Engine]:
    async with perdure.open(f"sqlite:///{folder}/state", cache="memory://") as engine:
        yield engine


def host_of(engine: Engine, name: str, **options: Any) -> AgentHost:
    return engine.recovery.host(name, count, lease_s=LEASE_S, **options)


def reader_of(engine: Engine) -> StateReader:
    assert engine.log.reader is not None
    return engine.log.reader


async def total(engine: Engine, name: AgentName = NAME) -> int:
    return int((await engine.agent(name.agent, tenant=name.tenant).state()).document.get("total", 0))


async def test_commands_become_events_and_the_same_command_takes_effect_once(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, host_of(engine, "a") as host:
        command = Command(2)
        done = await host.command(NAME, command)
        assert (done.events, done.already) == (2, False)
        again = await asyncio.gather(*(host.command(NAME, command) for _ in range(3)))
        assert [result.already for result in again] == [True] * 3
        assert {result.version for result in again} == {done.version}
        assert await total(engine) == 2


async def test_commands_at_once_are_all_applied_in_an_order(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, host_of(engine, "a") as host:
        commands = [Command(1) for _ in range(300)]
        results = await asyncio.gather(*(host.command(NAME, command) for command in [*commands, *commands[:50]]))
        assert sorted({result.version for result in results[:300]}) == list(range(2, 302))
        assert await total(engine) == 300


async def test_a_handler_that_fails_refuses_its_own_command_and_cannot_touch_the_state(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, host_of(engine, "a") as host:
        results = await asyncio.gather(*(host.command(NAME, Command(body)) for body in (1, "fail", "scribble", 1)), return_exceptions=True)
        assert isinstance(results[1], CommandFailed)
        assert "no such thing" in results[1].message
        assert isinstance(results[2], CommandFailed)
        assert "read-only" in results[2].message
        assert [isinstance(result, CommandResult) for result in results] == [True, False, False, True]
        assert await total(engine) == 2


async def test_an_append_by_somebody_else_is_seen_before_the_next_command(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, host_of(engine, "a") as host:
        await host.command(NAME, Command(1))
        await engine.agent(NAME.agent, tenant=NAME.tenant).append(Event("set", changes=(set_value("/total", 100),)))
        await host.command(NAME, Command(1))
        assert await total(engine) == 101


async def test_another_node_says_where_the_agent_is_and_takes_it_when_it_is_given_back(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, engine_in(tmp_path) as other, host_of(other, "b") as second:
        async with host_of(engine, "a", address="http://127.0.0.1:1") as first:
            command = Command(1)
            await first.command(NAME, command)
            with pytest.raises(NotServed) as caught:
                await second.command(NAME, Command(1))
            assert caught.value.details["address"] == "http://127.0.0.1:1"
        assert (await second.command(NAME, command)).already
        await second.command(NAME, Command(1))
        assert await total(other) == 2


async def test_a_node_name_is_taken_once_and_a_full_node_takes_no_more(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, host_of(engine, "a", agents_max=2) as host:
        with pytest.raises(AlreadyExists):
            await host_of(engine, "a").start()
        for number in range(2):
            await host.command(AgentName("acme", f"agent {number}"), Command(1))
        with pytest.raises(Overloaded):
            await host.command(AgentName("acme", "one more"), Command(1))


async def test_agents_of_a_lost_node_are_served_by_the_others_and_the_journal_tells(tmp_path: Path) -> None:
    names = [AgentName("acme", f"agent {number}") for number in range(20)]
    async with engine_in(tmp_path) as engine, engine_in(tmp_path) as other:
        lost = host_of(other, "lost")
        await lost.start()
        await asyncio.gather(*(lost.command(name, Command(1)) for name in names))
        async with host_of(engine, "a") as first, host_of(engine, "b") as second:
            stop = asyncio.Event()
            supervisor = Supervisor(engine.log, reader_of(engine), look_s=0.05, lease_s=LEASE_S)
            running = asyncio.create_task(supervisor.run(stop))
            freeze(lost)
            async with asyncio.timeout(60):
                while first.serving + second.serving < len(names):
                    await asyncio.sleep(0.02)
            assert {first.serving, second.serving} == {10}
            # A zombie: it does not know yet that it is lost. What it is told now must not take effect under its old epoch.
            with pytest.raises(NotServed):
                await lost.command(names[0], Command(1))
            for name in names:
                host = first if name in first.names() else second
                await host.command(name, Command(1))
                assert await total(engine, name) == 2
            journal = Journal(engine.log, reader_of(engine))
            async with asyncio.timeout(60):
                while "recovery_completed" not in [entry.type for entry in await journal.entries()]:
                    await asyncio.sleep(0.02)
            assert [entry.type for entry in await journal.entries()][-1] == "recovery_started"
            stop.set()
            await running
        assert [(state.node.name, state.word) for state in await list_nodes(engine.log.store)] == [
            ("a", "ended"),
            ("b", "ended"),
            ("lost", "lost"),
        ]
        assert {entry.time[-1] for entry in await journal.entries()} == {"Z"}
        await lost.stop()


async def test_a_node_that_ends_late_tells_nothing_of_the_one_that_came_after_it(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        async with host_of(engine, "a") as first:
            older = first.session
        async with host_of(engine, "a") as second:
            await announce_end(engine.log.store, "a", older)
            assert [(state.node.session, state.word) for state in await list_nodes(engine.log.store)] == [(second.session, "alive")]
        assert [state.word for state in await list_nodes(engine.log.store)] == ["ended"]


async def test_agents_that_were_written_to_most_lately_are_given_away_first(tmp_path: Path) -> None:
    names = [AgentName("acme", f"agent {number}") for number in range(20)]
    async with engine_in(tmp_path) as engine, engine_in(tmp_path) as other:
        lost = host_of(other, "lost")
        await lost.start()
        await asyncio.gather(*(lost.command(name, Command(1)) for name in names))
        for times, name in ((9, names[17]), (6, names[4]), (3, names[11])):
            await lost.command(name, Command(times))
        freeze(lost)
        store = engine.log.store
        lease = await node_lease(store, "idle", 60.0)
        assert lease is not None
        async with lease, asyncio.timeout(60):
            await announce(store, Node("idle", "", 100, lease.epoch, 0, ""))
            supervisor = Supervisor(engine.log, reader_of(engine))
            while not (given := await assigned(store, "idle")):
                await supervisor.look()
                await asyncio.sleep(0.05)
        assert [each.agent for each in given][:3] == [names[17].agent, names[4].agent, names[11].agent]
        assert sorted(each.agent for each in given) == sorted(name.agent for name in names)
        # Given once, in an order that stays.
        await assign(store, "idle", given[::-1])
        assert await assigned(store, "idle") == given
        await lost.stop()


def freeze(host: AgentHost) -> None:
    """Its lease is not renewed any more, and it has not noticed: as a process that is stopped."""
    assert host._lease is not None
    host._lease._task.cancel()
    host._lease._until += 3600


async def test_a_node_without_its_lease_acts_no_more_even_where_nobody_took_its_agents(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, host_of(engine, "a") as host:
        done = await host.command(NAME, Command(1))
        assert host._lease is not None
        host._lease.lost.set()
        for name in (NAME, AgentName("acme", "another")):
            with pytest.raises(NotServed):
                await host.command(name, Command(1))
        assert await engine.log.version(NAME) == done.version


async def test_everybody_who_is_refused_gets_an_error_of_his_own(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, host_of(engine, "a") as host:
        await host.command(NAME, Command(1))
        served = host._served[NAME]

        async def refused() -> NotServed:
            with pytest.raises(NotServed) as caught:
                await served.submit(Command(1))
            return caught.value

        waited = [asyncio.create_task(refused()) for _ in range(20)]
        await asyncio.sleep(0)
        await served.hold(moved_to(NAME, "b", "http://127.0.0.1:1"))
        errors = [*(await asyncio.gather(*waited)), *[await refused() for _ in range(20)]]
        assert len(set(map(id, errors))) == 40
        assert {error.details["address"] for error in errors} == {"http://127.0.0.1:1"}
        # A shared one would remember every place where it was raised.
        assert len({len(list(traceback.walk_tb(error.__traceback__))) for error in errors[20:]}) == 1


async def test_a_node_that_lost_its_lease_waits_for_nothing_that_is_under_way(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def never(_state: dict[str, Any], _body: Any) -> Sequence[Event]:
        begun.set()
        await asyncio.Event().wait()
        return []

    async with engine_in(tmp_path) as engine:
        host = engine.recovery.host("a", never, lease_s=LEASE_S)
        await host.start()
        under_way, waits = [asyncio.create_task(host.command(NAME, Command(1))) for _ in range(2)]
        await begun.wait()
        assert host._lease is not None
        host._lease.lost.set()
        await host.stop()
        for asked in (under_way, waits):
            with pytest.raises(NotServed):
                await asked


async def test_a_source_that_says_nothing_is_not_waited_for_without_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "STAND_TIMEOUT_S", 3_600.0)
    async with engine_in(tmp_path) as engine, await asyncio.start_server(_silent, "127.0.0.1", 0) as server:
        store = engine.log.store
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        lease = await store.acquire_lease("node/old", "its first session", 2.0)
        assert lease is not None
        await announce(store, Node("old", address, 1, lease.epoch, 0, "1"))
        links = source.Links(store)
        assert await links.to(NAME, address, "new", "").stand() is None  # nobody renews the lease
        await links.close()


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
