"""How many questions a read asks, and of whom: what is promised of it costs no more of them than it must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.engine.changes import append
from perdure.engine.log.records import AgentName, AgentRecord, Document, Head
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.moves import NOTICES, OUT, Moves, Notice, document_name
from perdure.errors import Unavailable
from perdure.limits import MOVES_FRESH_S
from perdure.projections.contract import Token
from perdure.projections.memory import MemoryCache
from tests.fix_projections import World

TIMEOUT_S = 60.0


class AskedStore(SqliteStore):
    """A log that counts questions, and answers a look at the notices of moves, as they were when it came, when it is let."""

    asked: list[str]
    problem: Exception | None = None

    def watch(self) -> None:
        self.asked = []
        self.let = asyncio.Event()
        self.let.set()
        self.headed = asyncio.Event()
        self.looked = asyncio.Event()

    async def heads(self, agents: Sequence[AgentRecord]) -> list[Head]:
        self.asked.append("heads")
        self.headed.set()
        return await super().heads(agents)

    async def get_document(self, scope: str, name: str) -> Document | None:
        found = await super().get_document(scope, name)
        if (scope, name) == NOTICES:
            self.asked.append("notices")
            self.looked.set()
            await asyncio.wait_for(self.let.wait(), TIMEOUT_S)
            if self.problem is not None:
                raise self.problem
        return found

    async def read_agent(self, *given: Any, **named: Any) -> Any:
        self.asked.append("events")
        return await super().read_agent(*given, **named)


class AskedCache(MemoryCache):
    """A cache that counts questions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def token(self, tenant: str, agent: str) -> Token | None:
        self.asked.append("token")
        return await super().token(tenant, agent)

    async def get(self, agents: Sequence[tuple[str, str]]) -> Any:
        self.asked.append("get")
        return await super().get(agents)


class Clock:
    """A clock that stands until it is set forward."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Asked(World):
    """A small installation whose log and cache count, and whose notices of moves are as old as the test wants."""

    store: AskedStore
    cache: AskedCache

    def watch(self) -> None:
        """Count from now on, with notices that were looked at too long ago."""
        self.store.watch()
        self.cache.asked.clear()
        self.clock.now_s += MOVES_FRESH_S

    @property
    def clock(self) -> Clock:
        clock = self.vault.moves._clock
        assert isinstance(clock, Clock)
        return clock


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Asked]:
    store = await AskedStore.open(tmp_path / "log", partitions=2)
    store.watch()
    world = Asked(store, AskedCache())
    world.vault.moves = Moves(store, clock=Clock())
    await world.bus.ensure(2)
    await world.talk("a", 3)
    await world.talk("b", 3)
    yield world
    await world.close()


async def test_a_read_of_what_is_at_hand_asks_the_log_once_and_nobody_else(asked: Asked) -> None:
    reader = asked.reader()
    await reader.state("t", "a")
    asked.watch()
    for _ in range(5):
        assert (await reader.state("t", "a")).version == 3
    assert sorted(asked.store.asked) == ["heads"] * 5 + ["notices"]
    await asked.add("a", append("/messages", "more"))
    asked.store.asked.clear()
    assert (await reader.state("t", "a")).version == 4
    assert asked.store.asked == ["heads", "events"]
    assert asked.cache.asked == [], "a state at hand is folded on, whatever the cache has"


async def test_notices_are_looked_at_once_for_all_who_come_and_while_the_log_is_asked(asked: Asked) -> None:
    reader = asked.reader()
    await reader.state("t", "a")
    asked.watch()
    asked.store.let.clear()
    reads = [asyncio.create_task(reader.state("t", agent)) for agent in ("a", "b") * 20]
    await asyncio.wait_for(asked.store.headed.wait(), TIMEOUT_S)  # not after the notices, which nobody answers yet
    assert not any(read.done() for read in reads)
    asked.store.let.set()
    assert [state.version for state in await asyncio.gather(*reads)] == [3] * 40
    assert asked.store.asked.count("notices") == 1


async def test_who_looks_is_cancelled_or_fails_and_nobody_is_served_without_a_look(asked: Asked) -> None:
    reader, store = asked.reader(), asked.store
    await reader.state("t", "a")
    asked.watch()
    store.let.clear()
    reads = [asyncio.create_task(reader.state("t", "a")) for _ in range(5)]
    await asyncio.wait_for(store.looked.wait(), TIMEOUT_S)
    reads[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await reads[0]
    store.let.set()
    assert [state.version for state in await asyncio.gather(*reads[1:])] == [3] * 4
    assert store.asked.count("notices") == 2, "another one looked"
    asked.watch()
    store.problem = Unavailable("the log is away")
    failed = await asyncio.gather(*(reader.state("t", "a") for _ in range(5)), return_exceptions=True)
    assert [type(each) for each in failed] == [Unavailable] * 5
    assert store.asked.count("notices") == 1
    store.problem = None
    assert (await reader.state("t", "a")).version == 3
    assert store.asked.count("notices") == 2


async def test_a_look_that_began_too_long_before_somebody_came_is_not_enough(asked: Asked) -> None:
    """The notice is written while an earlier look is on its way, which does not see it; who comes later must."""
    moves, store, name = asked.vault.moves, asked.store, AgentName("t", "a")
    asked.watch()
    store.let.clear()
    early = asyncio.create_task(moves.refresh())
    await asyncio.wait_for(store.looked.wait(), TIMEOUT_S)
    await store.put_document(OUT, document_name(name), msgspec.msgpack.encode(Notice("there")), expected=None)
    await moves.tell()
    asked.clock.now_s += MOVES_FRESH_S
    late = asyncio.create_task(moves.refresh())
    await asyncio.sleep(0)
    store.let.set()
    await early
    assert moves.address(name) is None
    await late
    assert moves.address(name) == "there"
    assert store.asked.count("notices") == 2
