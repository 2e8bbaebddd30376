"""Store cases: a log that is put in whole. Each is a plain async function on a new log."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.records import EventFilter, Position, SealedEvent
from perdure.errors import Conflict, IntegrityError
from perdure.identifiers import uuid7
from perdure.testing.log_rows import LogUnderTest, RawWriter, agent_of, row

__all__ = ["CASES"]

LONG_AGO_US = 1_600_000_000_000_000


def _assert_refused(problem: BaseException | None, kind: type[BaseException]) -> None:
    assert isinstance(problem, kind), f"{problem!r} instead of {kind.__name__}"


async def _problem(work: object) -> BaseException | None:
    try:
        await work  # type: ignore[misc]
    except (Conflict, IntegrityError) as problem:
        return problem
    return None


async def loaded_events_keep_their_places_and_appends_follow(log: LogUnderTest) -> None:
    """Offsets with holes, times of long ago, chain hashes: all as they were, whoever reads; then the log goes on after them."""
    store, other = await log.open(), await log.open()
    agent = await agent_of(store, created_us=LONG_AGO_US)
    events: list[SealedEvent] = []
    position = Position(0, 0)
    for version in range(1, 31):
        # Every third offset is missing, as where events of other agents were removed.
        position = Position(position.offset + version % 3 // 2, LONG_AGO_US + version)
        events.append(row(agent, position, version, LONG_AGO_US + version))
        position = Position(events[-1].offset, events[-1].time_us)
    for start in range(0, 30, 10):
        await store.load_events(agent.partition, events[start : start + 10])
    for each in (store, other):
        assert await each.read(agent.partition, 0, 100, sparse=True) == events
        assert await each.read_agent(agent, EventFilter(from_version=5), 100) == events[4:]
        assert (await each.heads([agent]))[0].chain == events[-1].chain
        assert await each.version_at(agent, LONG_AGO_US + 12) == 12
        assert await each.find(agent, [events[7].id]) == [events[7]]
    (added,) = await RawWriter(other).add(agent)
    assert (added.version, added.offset) == (31, events[-1].offset + 1)
    assert added.time_us > LONG_AGO_US + 31


async def loaded_events_keep_every_column(log: LogUnderTest) -> None:
    """Whatever an event has or lacks, and however large or strange its texts are."""
    store = await log.open()
    agent = await agent_of(store)
    events: list[SealedEvent] = []
    texts = (None, "", "x", "ü\n\\N\t" * 5_000)
    for number, text in enumerate(texts):
        more: dict[str, Any] = {
            "correlation_id": text,
            "trace_id": texts[number - 1],
            "project": texts[number - 2],
            "module": texts[number - 3],
        }
        more |= {"causation_id": events[-1].id if number % 2 else None, "type": f"t{number}", "epoch": number * 1_000_000}
        position = Position(number, LONG_AGO_US + number)
        events.append(row(agent, position, number + 1, LONG_AGO_US, payload=bytes(number * 40_000), **more))
    await store.load_events(agent.partition, events[:1])
    await store.load_events(agent.partition, events[1:])
    assert await store.read_agent(agent, EventFilter(), 10) == events


async def events_that_do_not_follow_are_not_loaded(log: LogUnderTest) -> None:
    """At an offset that is there, of a time before the newest, in another order: nothing of the call is in."""
    store = await log.open()
    agent = await agent_of(store)
    first = row(agent, Position(0, 0), 1, LONG_AGO_US)
    second = row(agent, Position(1, LONG_AGO_US), 2, LONG_AGO_US)
    await store.load_events(agent.partition, [first])
    third = row(agent, Position(2, LONG_AGO_US), 3, LONG_AGO_US)
    for wrong in ([first], [third, second], [row(agent, Position(1, 0), 2, LONG_AGO_US - 1)], [second, first]):
        _assert_refused(await _problem(store.load_events(agent.partition, wrong)), IntegrityError)
        assert await store.read(agent.partition, 0, 10) == [first]
    await store.load_events(agent.partition, [second, third])
    assert await store.read(agent.partition, 0, 10) == [first, second, third]


async def a_loaded_floor_hides_what_was_removed_and_knows_its_ids(log: LogUnderTest) -> None:
    """Versions below it are told as removed; an event that was removed is not appended a second time."""
    store = await log.open()
    agent = await agent_of(store)
    removed = [(uuid7(), version) for version in range(1, 5)]
    fifth = row(agent, Position(4, LONG_AGO_US), 5, LONG_AGO_US)
    floor = Floor(5, uuid4().bytes * 2, 0, LONG_AGO_US, 4)
    await store.load_events(agent.partition, [fifth])
    await store.load_floor(agent, floor, removed)
    assert await store.floors([agent]) == [floor]
    assert await store.removed_ids(agent) == removed
    assert await store.read_agent(agent, EventFilter(from_version=5), 10) == [fifth]
    (head,) = await store.heads([agent])
    assert head.version == 5


async def a_generation_only_grows(log: LogUnderTest) -> None:
    """Whoever opens the log later sees it; the same or a lower one is refused."""
    store = await log.open()
    await store.set_generation(store.generation + 2)
    assert (await log.open()).generation == store.generation == 3
    for lower in (1, 3):
        _assert_refused(await _problem(store.set_generation(lower)), Conflict)
    assert (await log.open()).generation == 3


async def scopes_and_large_values_are_listed(log: LogUnderTest) -> None:
    """All of them, page by page, each once."""
    store = await log.open()
    for scope in ("b", "a/x", "a"):
        await store.put_document(scope, "name", b"value", expected=0)
    assert await store.scopes() == ["a", "a/x", "b"]
    names = sorted({(tenant, bytes([number]) * 32) for tenant in ("t", "ü") for number in range(5)})
    for tenant, name in names:
        await store.put_blob(tenant, name, b"sealed")
    found: list[tuple[str, bytes]] = []
    while page := await store.list_blobs(found[-1] if found else None, 3):
        found += page
    assert sorted(found) == names


CASES = (
    loaded_events_keep_their_places_and_appends_follow,
    loaded_events_keep_every_column,
    events_that_do_not_follow_are_not_loaded,
    a_loaded_floor_hides_what_was_removed_and_knows_its_ids,
    a_generation_only_grows,
    scopes_and_large_values_are_listed,
)
