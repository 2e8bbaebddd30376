"""Callers of many agents that lost their node at once: a few questions, one command each, and all are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.errors import DeadlineExceeded, LimitExceeded, NotServed
from perdure.limits import WHERE_AGENTS_MAX
from perdure.recovery.assignments import Assignment, assign
from perdure.recovery.caller import Caller
from perdure.recovery.commands import Command, CommandResult
from perdure.recovery.connections import Connections
from perdure.recovery.handlers import talk
from perdure.recovery.host import AgentHost
from perdure.recovery.http import bind, serving

TIMEOUT_S = 90.0
LEASE_S = 60.0
"""No node of these tests shall lose its lease because the machine is busy."""
AGENTS = 60


class Counted:
    """A node that serves over HTTP, and what it was asked."""

    def __init__(self, host: AgentHost) -> None:
        self.host = host
        self.commands: Counter[AgentName] = Counter()
        self.questions = 0
        self.answered: list[str | None] = []
        self._command, self._find = host.command, host.find
        host.command, host.find = self.command, self.find  # type: ignore[method-assign]

    async def command(self, name: AgentName, command: Command) -> CommandResult:
        self.commands[name] += 1
        return await self._command(name, command)

    async def find(self, *asked: Any) -> list[str | None]:
        self.questions += 1
        found = await self._find(*asked)
        self.answered += found
        return found


@asynccontextmanager
async def node(engine: Engine, name: str) -> AsyncIterator[Counted]:
    listening = bind()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    host = engine.recovery.host(name, talk, address=address, lease_s=LEASE_S)
    async with host, serving(host, listening):
        yield Counted(host)


@asynccontextmanager
async def world(folder: Path, *nodes: str) -> AsyncIterator[tuple[Engine, list[Counted]]]:
    """Nodes, each on an engine of its own, and agents that belong to a node that is gone."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(perdure.open(f"sqlite:///{folder}/state", cache="memory://")) for _ in range(len(nodes) + 1)
        ]
        await asyncio.gather(*(engines[0].log.take_ownership(name, "gone") for name in names()))
        yield engines[0], [await stack.enter_async_context(node(engine, name)) for engine, name in zip(engines[1:], nodes, strict=True)]


def names() -> list[AgentName]:
    return [AgentName("acme", f"agent {number}") for number in range(AGENTS)]


async def give(engine: Engine, node: str, wanted: list[AgentName]) -> None:
    """As the supervisor does."""
    records = await engine.log.store.agents(wanted)
    await assign(engine.log.store, node, [Assignment(each.tenant, each.agent, each.epoch, "r") for each in records if each is not None])


async def closed_port() -> str:
    with bind() as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_callers_of_a_lost_nodes_agents_ask_together_and_send_each_command_to_who_took_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack, asyncio.timeout(TIMEOUT_S):
        engine, (first, second) = await stack.enter_async_context(world(tmp_path, "a", "b"))
        # It never heard of the second node's address.
        caller = await stack.enter_async_context(Caller([await closed_port(), first.host.address], timeout_s=TIMEOUT_S))
        calls = [asyncio.create_task(caller.command(name, {"say": "after"})) for name in names()]
        while len(first.host._whereabouts._wanted) < AGENTS:  # refused where they asked at first, they wait together
            await asyncio.sleep(0.01)
        assert not any(call.done() for call in calls)
        before = sum(first.commands.values())
        await give(engine, "a", names()[::2])
        await give(engine, "b", names()[1::2])
        results = await asyncio.gather(*calls)
        assert {result.version for result in results} == {3}
        # What came to be served here or there was commanded once more, and only where it is.
        assert sum(first.commands.values()) - before == AGENTS // 2
        assert second.commands == Counter(names()[1::2])
        assert first.host.serving == second.host.serving == AGENTS // 2
        # Who is known by now is called at once.
        asked = first.questions
        await asyncio.gather(*(caller.command(name, {"say": "again"}) for name in names()))
        assert first.questions == asked


async def test_one_question_tells_of_many_agents_wherever_they_are(tmp_path: Path) -> None:
    async with world(tmp_path, "a", "b") as (engine, (first, second)), asyncio.timeout(TIMEOUT_S):
        one, two, lost, nobody = *names()[:3], AgentName("acme", "nobody")
        await give(engine, "a", [one])
        await give(engine, "b", [two])
        while not (first.host.serving and second.host.serving):
            await asyncio.sleep(0.02)
        addresses = [first.host.address, second.host.address]
        asked = [one, two, lost, nobody, one]
        # Its own it knows; of the others it tells when it has looked.
        found = await first.host.find(asked, (), 0.0)
        while found != [*addresses, None, "", addresses[0]]:
            found = await first.host.find([two, lost, nobody], (), TIMEOUT_S)
            found = [addresses[0], *found, addresses[0]]
        # Who does not reach a node is not sent there again.
        assert await first.host.find([two, lost], [addresses[1]], 1.0) == [None, None]
        with pytest.raises(LimitExceeded):
            await first.host.find([one] * (WHERE_AGENTS_MAX + 1))
        connections = Connections(TIMEOUT_S)
        for content in (b"{}", b'{"agents": [["a"]]}', b"no"):
            assert (await connections.post(addresses[0], "/v1/where", content)).status == 400
        await connections.close()
        # A node that stops lets nobody wait.
        waiting = asyncio.create_task(first.host.find([lost], (), TIMEOUT_S))
        while not first.host._whereabouts._wanted:
            await asyncio.sleep(0)
        first.host.end_waits()
        for _ in range(20):
            await asyncio.sleep(0)
        assert waiting.done()
        assert await waiting == await first.host.find([lost], (), TIMEOUT_S) == [None]
        assert first.host._lease is not None
        first.host._lease.lost.set()
        with pytest.raises(NotServed):
            await first.host.find([one])


async def test_a_caller_that_finds_nobody_gives_up_in_time(tmp_path: Path) -> None:
    async with world(tmp_path, "a") as (_, (first,)), asyncio.timeout(TIMEOUT_S):
        for addresses in ([first.host.address], [await closed_port()]):
            async with Caller(addresses, timeout_s=0.5) as caller:
                with pytest.raises(DeadlineExceeded):
                    await caller.command(names()[0], {"say": "hello"})
