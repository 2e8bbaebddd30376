"""States that are read together are the states that are read alone, and nothing is believed that would not be believed there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

import perdure
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName, AgentRecord, SealedEvent
from perdure.errors import AgentNotFound, ChainBroken, PerdureError
from perdure.projections.cells_codec import seal_whole
from perdure.projections.contract import CachedState, Token
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import ReadState, StateReader
from perdure.recovery.loading import LOAD_TOGETHER_MAX, StateLoader
from tests.fix_client import OpenEngine

TENANTS = ("one", "two")


def events(count: int) -> list[perdure.Event]:
    return [perdure.Event("said", changes=(perdure.append("/said", number), perdure.set_value("/last", number))) for number in range(count)]


async def agents(engine: Engine, count: int, each: int = 3) -> list[AgentName]:
    """Agents of two tenants with events."""
    names = [AgentName(TENANTS[number % 2], f"agent {number}") for number in range(count)]
    await asyncio.gather(*(engine.agent(name.agent, tenant=name.tenant).append(events(each)) for name in names))
    return names


def reader_of(engine: Engine, cache: Any = None) -> StateReader:
    """A reader that has nothing at hand."""
    return StateReader(engine.log.store, MemoryCache() if cache is None else cache, engine.log.vault, base=engine.snapshots.base)


def facts(read: ReadState | PerdureError) -> Any:
    return (read.version, read.epoch, read.time, read.document) if isinstance(read, ReadState) else type(read)


async def alone(engine: Engine, names: Sequence[AgentName]) -> list[Any]:
    """What one reading after the other gives."""
    reader = reader_of(engine)
    found: list[Any] = []
    for name in names:
        try:
            found.append(facts(await reader.state(*name)))
        except PerdureError as problem:
            found.append(type(problem))
    return found


async def together(reader: StateReader, names: Sequence[AgentName]) -> list[Any]:
    return [facts(read) for read in await reader.states(names)]


class Counted:
    """A store whose questions are counted."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.asked: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if asyncio.iscoroutinefunction(found):
            self.asked[name] = self.asked.get(name, 0) + 1
        return found


async def test_states_of_many_agents_come_with_few_questions_and_are_those_that_are_read_alone(open_engine: OpenEngine) -> None:
    async with open_engine() as engine:
        names = await agents(engine, 120)
        await engine.log.vault.obtain(AgentName("one", "empty"))
        wanted = [*names, AgentName("one", "empty"), AgentName("one", "nobody")]
        counted, cache = Counted(engine.log.store), MemoryCache()
        reader = StateReader(counted, cache, engine.log.vault)  # type: ignore[arg-type]
        expected = await alone(engine, wanted)
        assert expected[-1] is AgentNotFound
        assert await together(reader, wanted) == expected
        assert counted.asked["read_many"] == 1
        assert sum(counted.asked.values()) < 10  # but for the two that are out of the ordinary, one of each kind
        # From memory, from the cache, and folded on from it: the same, and a document is its reader's own.
        (read, *_) = await reader.states(names)
        assert isinstance(read, ReadState)
        for again in (reader, StateReader(engine.log.store, cache, engine.log.vault)):
            assert await together(again, wanted) == expected
        await asyncio.gather(*(engine.agent(name.agent, tenant=name.tenant).append(events(2)) for name in names[::2]))
        behind = StateReader(engine.log.store, cache, engine.log.vault)
        assert await together(behind, wanted) == await alone(engine, wanted)
        assert (behind.statistics.caught_up, behind.statistics.cached) == (60, 60)


async def test_what_is_out_of_the_ordinary_is_read_alone(open_engine: OpenEngine) -> None:
    async with open_engine() as engine:
        names = await agents(engine, 6)
        fork = AgentName(names[0].tenant, "fork")
        await engine.recovery.fork(names[0], fork.agent, version=2)
        await engine.agent(fork.agent, tenant=fork.tenant).append(events(1))
        untouched = AgentName(names[0].tenant, "untouched fork")
        await engine.recovery.fork(names[0], untouched.agent, version=1)
        wanted = [*names, fork, untouched]
        assert await together(reader_of(engine), wanted) == await alone(engine, wanted)


class Tampering:
    """A store, or a cache, that gives changed answers to one question."""

    def __init__(self, inner: Any, question: str, change: Any) -> None:
        self._inner = inner
        self._question = question
        self._change = change

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._question:
            return found

        async def asked(*arguments: Any, **options: Any) -> Any:
            return self._change(await found(*arguments, **options))

        return asked


def _payload(event: SealedEvent) -> SealedEvent:
    return msgspec.structs.replace(event, payload=bytes(len(event.payload)))


def _chain(event: SealedEvent) -> SealedEvent:
    return msgspec.structs.replace(event, chain=bytes(32))


@pytest.mark.parametrize("change", [_payload, _chain])
async def test_a_damaged_event_is_its_own_agents_trouble(embedded: Engine, change: Any) -> None:
    names = await agents(embedded, 5)
    damaged: AgentRecord = await embedded.log.vault.record(*names[2])

    def in_pages(pages: list[list[SealedEvent]]) -> list[list[SealedEvent]]:
        return [in_page(page) for page in pages]

    def in_page(page: list[SealedEvent]) -> list[SealedEvent]:
        return [change(event) if event.agent_key == damaged.agent_key and event.version == 2 else event for event in page]

    expected = await alone(embedded, names)
    # Only what is read together is changed: who is left out is read alone, and that tells the truth.
    store = Tampering(embedded.log.store, "read_many", in_pages)
    assert await together(StateReader(store, MemoryCache(), embedded.log.vault), names) == expected
    # The log itself is changed.
    worse = Tampering(store, "read_agent", in_page)
    found = await together(StateReader(worse, MemoryCache(), embedded.log.vault), names)
    assert found == [*expected[:2], ChainBroken, *expected[3:]]


@pytest.mark.parametrize("cut", ["shorter", "nothing", "another's"])
async def test_a_page_that_does_not_lead_to_the_head_is_not_believed(embedded: Engine, cut: str) -> None:
    names = await agents(embedded, 4)

    def change(pages: list[list[SealedEvent]]) -> list[list[SealedEvent]]:
        cuts = {"shorter": [page[:-1] for page in pages], "nothing": [[] for _ in pages], "another's": [*pages[1:], pages[0]]}
        return cuts[cut]

    store = Tampering(embedded.log.store, "read_many", change)
    assert await together(StateReader(store, MemoryCache(), embedded.log.vault), names) == await alone(embedded, names)


@pytest.mark.parametrize("ahead", [0, 1])
async def test_a_cache_that_holds_another_history_is_not_believed(embedded: Engine, ahead: int) -> None:
    names = await agents(embedded, 4)
    cache = MemoryCache()
    expected = await alone(embedded, names)
    for name in names[::2]:
        read = await reader_of(embedded).state(*name)
        token = Token(embedded.log.store.generation, read.epoch, read.version + ahead)
        write, _ = seal_whole(await embedded.log.vault.cipher(*name), token, 1, bytes(range(32)), {"forged": True})
        assert await cache.apply([write]) == [token]
    assert await together(reader_of(embedded, cache), names) == expected


async def test_cells_of_a_cache_that_were_exchanged_are_not_believed(embedded: Engine) -> None:
    names = await agents(embedded, 6)
    cache = MemoryCache()
    expected = await alone(embedded, names)
    assert await together(reader_of(embedded, cache), names) == expected

    def swap(answers: list[CachedState | None]) -> list[CachedState | None]:
        first, second, *others = answers
        return [second, first, *others]

    reader = reader_of(embedded, Tampering(cache, "get", lambda answers: swap(answers) if len(answers) > 1 else answers))
    assert await together(reader, names) == expected


class Held:
    """A reader whose answers come when they are let go, as those of a slow log."""

    def __init__(self, reader: StateReader) -> None:
        self._reader = reader
        self.read = asyncio.Semaphore(0)
        self.go = asyncio.Event()

    async def states(self, names: Sequence[AgentName]) -> list[ReadState | PerdureError]:
        found = await self._reader.states(names)
        self.read.release()
        await self.go.wait()
        return found


async def test_a_state_is_read_after_it_was_asked_for(embedded: Engine) -> None:
    (name, *_) = await agents(embedded, 1)
    held = Held(reader_of(embedded))
    loader = StateLoader(held)  # type: ignore[arg-type]
    before = asyncio.create_task(loader.load(name))
    await held.read.acquire()  # it has been read, and is on its way
    await embedded.agent(name.agent, tenant=name.tenant).append(events(2))
    after = [asyncio.create_task(loader.load(name)) for _ in range(3)]
    await asyncio.sleep(0)
    held.go.set()
    assert (await before).version == 3
    assert [(await load).version for load in after] == [5] * 3


async def test_nobody_waits_for_a_state_for_ever(embedded: Engine) -> None:
    names = await agents(embedded, LOAD_TOGETHER_MAX + 3, each=1)
    loader = StateLoader(reader_of(embedded))
    loads = [asyncio.create_task(loader.load(name)) for name in names]
    for task in loads[:LOAD_TOGETHER_MAX]:
        await asyncio.sleep(0)
        task.cancel()  # whoever goes away holds nobody up
    assert [loaded.version for loaded in await asyncio.gather(*loads[LOAD_TOGETHER_MAX:])] == [1] * 3
    with pytest.raises(AgentNotFound):
        await loader.load(AgentName("one", "nobody"))
    stuck = asyncio.create_task(loader.load(names[0]))
    await asyncio.sleep(0)
    await loader.close()
    with pytest.raises(asyncio.CancelledError):
        await stuck
