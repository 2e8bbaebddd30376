"""Two engines between which agents move, and what is asked of both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

import perdure
from perdure import config
from perdure.client.engine import Engine
from perdure.engine.changes import set_value
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.log.log import read_pages
from perdure.engine.log.records import AgentName, EventFilter, SealedEvent
from perdure.errors import PerdureError

ALICE = AgentName("default", "alice")
BOB = AgentName("default", "bob")


class Pair:
    """Two engines; nothing is shared but this process."""

    def __init__(self, source: Engine, target: Engine) -> None:
        self.source = source
        self.target = target


def settings_of(kind: str, folder: Path, request: pytest.FixtureRequest) -> config.Settings:
    log = f"sqlite:///{folder}/log" if kind == "sqlite" else str(request.getfixturevalue("fresh_database"))
    return config.load({"log": log, "keys": f"file://{folder}/root.key", "store": f"file://{folder}/snapshots", "training": "off"}, {})


@pytest.fixture
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """Named e.g. `sqlite-postgres`; the second has another number of partitions."""
    kinds = getattr(request, "param", "sqlite-sqlite").split("-")
    async with AsyncExitStack() as stack:
        opened = []
        for number, kind in enumerate(kinds):
            folder = tmp_path / f"engine{number}"
            folder.mkdir()
            settings = settings_of(kind, folder, request)
            opened.append(await stack.enter_async_context(perdure.open(settings=settings, partitions=4 + 3 * number)))
        yield Pair(*opened)


async def put(engine: Engine, name: AgentName, count: int, *, size: int = 20) -> None:
    for number in range(count):
        await engine.log.append_event(name, Event("noted", changes=(set_value(f"/note{number}", "n" * size),), actor="tester"))


async def sealed(engine: Engine, name: AgentName) -> list[SealedEvent]:
    record = await engine.log.vault.record(*name)
    return [event async for page in read_pages(engine.log.store, record, EventFilter()) for event in page]


def without_place(events: list[SealedEvent]) -> list[SealedEvent]:
    """All of the events but where they stand in their log."""
    return [msgspec.structs.replace(event, tenant_key=0, agent_key=0, partition=0, offset=0) for event in events]


async def digest_of(engine: Engine, name: AgentName) -> bytes:
    return digest((await engine.states.get_current_state(name)).document)


async def refused(engine: Engine, name: AgentName, kind: type[PerdureError]) -> None:
    """Every way to the agent."""
    asks: list[Callable[[], Awaitable[Any]]] = [
        lambda: engine.states.get_current_state(name),
        lambda: engine.states.get_current_state(name, consistency="eventual"),
        lambda: engine.states.project_state(name, 1),
        lambda: engine.log.get_events(name),
        lambda: engine.log.version(name),
        lambda: engine.log.append_event(name, Event("late")),
        lambda: engine.states.update_state(name, {"late": True}),
        lambda: engine.log.take_ownership(name, "node"),
        lambda: engine.log.fence(name),
    ]
    for ask in asks:
        with pytest.raises(kind):
            await ask()


async def assert_sound(*engines: Engine) -> None:
    for engine in engines:
        report = await engine.verify()
        assert report.log.problems == []
        assert report.ok


async def all_of(engine: Engine, tenant: str) -> AsyncIterator[Any]:
    after = ""
    while page := await engine.directory.list(tenant, after=after, limit=500):
        after = page[-1].agent
        for each in page:
            yield each
