"""Two nodes on one log between which an agent moves while it is talked to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import perdure
from perdure import Event, append, set_value
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.migration.records import Migration
from perdure.recovery.caller import Caller
from perdure.recovery.commands import Command
from perdure.recovery.host import AgentHost
from perdure.recovery.http import bind, serving

LEASE_S = 30.0
NAME = AgentName("acme", "talker")


def talk(state: dict[str, Any], body: Any) -> Sequence[Event]:
    """Keeps what it is told, and counts."""
    return [Event("said", changes=(append("/messages", body), set_value("/count", state.get("count", 0) + 1)))]


class World:
    """Two nodes with an engine each, a third engine to decide, and callers."""

    def __init__(self, engine: Engine, nodes: list[AgentHost], caller: Caller) -> None:
        self.engine = engine
        self.nodes = nodes
        self.caller = caller
        self.acknowledged: dict[UUID, int] = {}
        self.said = 0

    @property
    def migrations(self) -> Any:
        return self.engine.migrations

    async def say(self, name: AgentName = NAME) -> None:
        self.said += 1
        command = Command(f"word {self.said}")
        self.acknowledged[command.id] = (await self.caller.command(name, None, command)).version

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Somebody talks all the time, several commands at once."""
        stop = asyncio.Event()

        async def go_on() -> None:
            while not stop.is_set():
                await self.say()

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(go_on())
            try:
                yield
            finally:
                stop.set()

    async def move(self, target: str, **options: Any) -> Migration:
        plan = await self.migrations.plan_migration(NAME, target, **options)
        done: Migration = await self.migrations.execute_migration(plan)
        return done

    async def owner(self, name: AgentName = NAME) -> tuple[str, int]:
        (record,) = await self.engine.log.store.agents([name])
        assert record is not None
        return record.owner, record.epoch

    async def check(self) -> None:
        """Everything acknowledged is in the log once where it was said to be; epochs never go back; the chain holds."""
        found: dict[UUID, list[int]] = {}
        epochs = []
        async for event in self.engine.agent(NAME.agent, tenant=NAME.tenant).events():
            found.setdefault(event.id, []).append(event.version)
            epochs.append(event.epoch)
        assert epochs == sorted(epochs)
        assert all(found[id] == [version] for id, version in self.acknowledged.items())
        state = (await self.engine.agent(NAME.agent, tenant=NAME.tenant).state()).document
        assert state["count"] == len(state["messages"]) == len(self.acknowledged)
        assert len(set(state["messages"])) == len(state["messages"])
        assert (await self.engine.verify()).ok


@asynccontextmanager
async def nodes_on(url: str, folder: Path, *, with_addresses: bool = True) -> AsyncIterator[World]:
    keys = f"file://{folder}/keys/root.key"
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(perdure.open(url, cache="memory://", keys=keys)) for _ in range(3)]
        nodes = []
        for engine, name in zip(engines, ("a", "b"), strict=False):
            listening = bind()
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            host = engine.recovery.host(name, talk, address=address if with_addresses else "", lease_s=LEASE_S)
            await stack.enter_async_context(host)
            await stack.enter_async_context(serving(host, listening))
            nodes.append((host, address))
        caller = await stack.enter_async_context(Caller([nodes[0][1]], timeout_s=60.0))
        if not with_addresses:
            caller = await stack.enter_async_context(Caller([address for _, address in nodes], timeout_s=60.0))
        yield World(engines[2], [host for host, _ in nodes], caller)
