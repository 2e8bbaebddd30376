"""Replaying a log: fast or event by event, the same state, warnings, chain and refusals."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from perdure import Event, append, limits, set_value
from perdure.client.engine import Engine
from perdure.engine.changes import Change
from perdure.engine.digest import canonical, digest
from perdure.engine.fold import apply
from perdure.engine.importing import BrokenRecord, read_conversations
from perdure.engine.log.chain import EMPTY_CHAIN, chain_hash
from perdure.engine.log.postgres_call import Silent, answered_within
from perdure.engine.log.postgres_pages import fetch_page
from perdure.engine.log.records import AgentName, EventFilter
from perdure.engine.replay import WARNINGS_KEPT_MAX, Folded, fold_log
from perdure.errors import ChainBroken, SealBroken
from tests.fix_client import OpenEngine

NAME = AgentName("default", "replayed")
PAGE_EVENTS = 7
"""So that a few events are several pages."""
PATHS = ("/messages", "/messages/0", "/messages/-", "/plan", "/plan/step", "/plan/0", "/a/b/c", "/a", "/notes/x")


def some_events(chance: random.Random, count: int) -> list[Event]:
    """All kinds of changes, meeting each other, with every field of the envelope now and then."""
    events: list[Event] = []
    for number in range(count):
        changes = []
        for _ in range(chance.choice((0, 1, 1, 1, 3))):
            operation: Any = chance.choice(("set", "set", "delete", "append", "append", "insert", "merge"))
            path = chance.choice(PATHS) + ("/0" if operation == "insert" else "")
            value = chance.choice((None, 1, "text " * 20, [1, {"x": 2}], {"y": None, "z": [3]}, {}))
            changes.append(Change(operation, tuple(path.split("/")[1:]), None if operation == "delete" else value))
        more: Any = {"correlation_id": f"c{number % 3}", "trace_id": f"t{number}", "project": "p", "module": "m"} if number % 4 == 0 else {}
        causation = events[-1].id if events and number % 5 == 0 else None
        events.append(Event(f"type{number % 3}", changes=tuple(changes), data={"n": [number]}, causation_id=causation, **more))
    return events


async def one_by_one(engine: Engine, name: AgentName, to_version: int | None = None) -> Folded:
    """What `fold_log` has to find, event by event and with nothing shared with it but the fold's own rules."""
    record = await engine.log.vault.record(*name)
    document: dict[str, Any] = {}
    found = Folded(document, 0, 0, 0, EMPTY_CHAIN, [])
    for sealed in await engine.log.store.read_agent(record, EventFilter(to_version=to_version), 10_000):
        event = await engine.log.vault.open(sealed)
        chain = chain_hash(found.chain, sealed.tenant, sealed.agent, sealed.version, sealed.epoch, sealed.time_us, sealed)
        assert chain == sealed.chain
        document, warnings = apply(found.document, event.changes)
        told = [*found.warnings, *(f"version {event.version}: {warning}" for warning in warnings)][:WARNINGS_KEPT_MAX]
        found = Folded(document, event.version, event.epoch, sealed.time_us, chain, told)
    return found


def check_same(fast: Folded, slow: Folded) -> None:
    assert canonical(fast.document) == canonical(slow.document)
    assert fast._replace(document={}) == slow._replace(document={})


async def test_a_replay_is_the_fold_of_each_event(open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With large values that stand outside, from any version on, over pages and under a key that was rotated in between."""
    chance = random.Random(5)
    async with open_engine() as engine:
        agent = engine.agent(NAME.agent)
        await agent.append(some_events(chance, 40))
        await engine.keys.rotate_encryption_key(NAME.tenant)
        await agent.append([*some_events(chance, 20), Event("large", changes=(append("/messages", "x" * (limits.INLINE_BYTES_MAX + 1)),))])
        await agent.append(some_events(chance, 30))
    monkeypatch.setattr(limits, "READ_PAGE_EVENTS", PAGE_EVENTS)
    async with open_engine() as engine:
        store, vault, record = engine.log.store, engine.log.vault, await engine.log.vault.record(*NAME)
        whole = await fold_log(store, vault, record)
        check_same(whole, await one_by_one(engine, NAME))
        assert whole.warnings
        assert whole.version == 91
        for middle in (1, PAGE_EVENTS, 40, 61, 90):
            start = await fold_log(store, vault, record, to_version=middle)
            check_same(start, await one_by_one(engine, NAME, middle))
            cells: set[bytes] = set()
            check_same(await fold_log(store, vault, record, start=start, cells=cells), whole)
            assert cells or middle == 90


async def test_a_replay_that_nobody_watches_finds_what_a_watched_one_does(open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_PAGE_EVENTS", PAGE_EVENTS)
    async with open_engine() as engine:
        events = [
            msgspec.structs.replace(event, replayable=number % 4 > 0) for number, event in enumerate(some_events(random.Random(6), 50))
        ]
        await engine.agent(NAME.agent).append(events)
        cases: tuple[dict[str, Any], ...] = ({}, {"from_version": 11}, {"to_version": 30, "types": ["type0", "type2"]})
        for wanted in cases:
            seen: list[Event] = []
            watched = await engine.log.replay_events(NAME, handler=seen.append, **wanted)
            alone = await engine.log.replay_events(NAME, **wanted)
            assert msgspec.structs.replace(alone, duration_s=0) == msgspec.structs.replace(watched, duration_s=0)
            assert alone.events == len(seen) > 0
            assert alone.skipped > 0
            assert alone.checksum == digest((await one_by_one(engine, NAME, wanted.get("to_version"))).document).hex()


async def test_real_conversations_replay_as_they_were_written(embedded: Engine, trajectories: Path) -> None:
    path = trajectories / "tau-bench" / "gpt-4o-airline.json"
    for number, conversation in zip(range(12), read_conversations(str(path), format="auto"), strict=False):
        assert not isinstance(conversation, BrokenRecord)
        name = AgentName("default", f"real-{number}")
        await embedded.agent(name.agent).append(conversation.events)
        record = await embedded.log.vault.record(*name)
        check_same(await fold_log(embedded.log.store, embedded.log.vault, record), await one_by_one(embedded, name))


async def test_a_replay_stops_at_an_event_that_was_changed_and_names_it(open_engine: OpenEngine) -> None:
    async with open_engine() as engine:
        await engine.agent(NAME.agent).append([Event("e", changes=(set_value(f"/x/{n}", n),)) for n in range(9)])
        store, vault, record = engine.log.store, engine.log.vault, await engine.log.vault.record(*NAME)
        (event,) = await store.read_agent(record, EventFilter(from_version=5, to_version=5), 1)
        await store.mend_event(msgspec.structs.replace(event, payload=event.payload[:-1] + bytes([event.payload[-1] ^ 1])))
        with pytest.raises(ChainBroken) as broken:
            await fold_log(store, vault, record)
        assert broken.value.version == 5
        for handler in (None, lambda _: None):
            with pytest.raises(ChainBroken):
                await engine.log.replay_events(NAME, handler=handler)
        # Where the chain was made to fit, the seal tells.
        events = await store.read_agent(record, EventFilter(), 9)
        chain = events[3].chain
        for each in events[4:]:
            chain = chain_hash(chain, each.tenant, each.agent, each.version, each.epoch, each.time_us, each)
            await store.mend_event(msgspec.structs.replace(each, chain=chain))
        with pytest.raises(SealBroken) as unsealed:
            await fold_log(store, vault, record)
        assert (unsealed.value.agent, unsealed.value.version) == (NAME.agent, 5)


async def test_a_page_that_fails_harms_no_other(fresh_database: str) -> None:
    """The server's error is raised and the connection goes on; what was left off half-way is closed, not given to the next."""
    async with await psycopg.AsyncConnection.connect(fresh_database, autocommit=True) as connection:
        for setting, query in ((b"SELECT 1", b"SELECT 1/0"), (b"SELECT 1/0", b"SELECT 1")):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await fetch_page(connection, setting, query, tuple)
            assert await fetch_page(connection, b"SELECT 1", b"SELECT g, 'x' FROM generate_series(1, 3) g", tuple) == [
                (1, "x"),
                (2, "x"),
                (3, "x"),
            ]
        assert await (await connection.execute("SELECT 5")).fetchone() == (5,)
        with pytest.raises(psycopg.OperationalError):
            await fetch_page(connection, b"SELECT 1", b"SELECT pg_terminate_backend(pg_backend_pid())", tuple)
        assert connection.closed
    async with await psycopg.AsyncConnection.connect(fresh_database, autocommit=True) as connection:
        fetching = asyncio.create_task(fetch_page(connection, b"SELECT 1", b"SELECT pg_sleep(60)", tuple))
        await asyncio.sleep(0)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert connection.closed


async def test_a_page_whose_server_falls_silent_is_given_up(fresh_database: str) -> None:
    async with await psycopg.AsyncConnection.connect(fresh_database, autocommit=True) as connection:
        with pytest.raises(Silent), answered_within(connection, 0.3):
            await fetch_page(connection, b"SELECT 1", b"SELECT pg_sleep(60)", tuple)
        assert connection.closed
