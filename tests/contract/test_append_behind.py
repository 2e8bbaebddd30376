"""Rows that go behind what others wrote meanwhile: one statement more and no lock held, and nothing of what the log promises is weaker for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from perdure.engine import steps
from perdure.engine.event import Event
from perdure.engine.log import postgres_behind
from perdure.engine.log.log import EventLog
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.postgres_append import Appender
from perdure.engine.log.records import AgentName, AgentRecord, Head
from perdure.errors import Conflict, Fenced
from perdure.testing.log_event_cases import check_log
from perdure.testing.log_kit import log_under_test
from perdure.testing.log_rows import read_all

SEGMENT = 48
ALONE = 9
"""After so many appends of one's own alone one sends the next without a thought of others."""
B_STANDS = 2 + ALONE
STAND = 6 + ALONE + 3
A, B, C = (AgentName("acme", agent) for agent in "abc")


class _Watch:
    """Which steps the writers of this process came to."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    def since(self) -> list[str]:
        found = [step for step in self.reached if step.startswith("append.")]
        self.reached.clear()
        return found


@pytest.fixture
def watch() -> Iterator[_Watch]:
    found = _Watch()
    steps.install(found.reached.append)
    yield found
    steps.install(None)


@pytest.fixture
async def logs(fresh_database: str) -> AsyncIterator[tuple[EventLog, EventLog]]:
    """Two openings of one log with one partition; both know where it stands, and then the first writes three events to A."""
    opener = partial(PostgresStore.open, fresh_database, partitions=1, segment_offsets=SEGMENT)
    async with log_under_test(opener) as under:
        ours, others = await under.open_log(), await under.open_log()
        for name in (A, B, C):
            await ours.append_event(name, Event("first"))
            await others.append_event(name, Event("second"))
        for _ in range(ALONE):
            await ours.append_event(B, Event("third"))
        await others.append_events(A, [Event("noted") for _ in range(3)])
        yield ours, others
        for partition in range(ours.store.partitions):
            await read_all(ours.store, partition)
        await check_log(ours)


SENT = ["append.before", "append.after"]
BEHIND = ["append.before", *SENT]
"""Refused for its offset, and then put behind; no lock is taken over several round trips."""


def _or_once_more(steps: list[str]) -> tuple[list[str], list[str]]:
    """Rows that were older than what another had written are sent once more; who is the older one depends on how busy the machine is."""
    return steps, [*steps, *SENT]


async def test_events_of_others_cost_one_more_statement_and_are_known_then(logs: tuple[EventLog, EventLog], watch: _Watch) -> None:
    ours, _ = logs
    watch.since()
    assert (await ours.append_event(B, Event("behind"), expected=B_STANDS)).version == B_STANDS + 1
    assert watch.since() in _or_once_more(BEHIND)
    assert (await ours.append_event(A, Event("known"), expected=5)).version == 6, "the head of A is known from what was told"
    assert watch.since() in _or_once_more(SENT)


async def test_who_is_mostly_behind_goes_there_at_once(logs: tuple[EventLog, EventLog], watch: _Watch) -> None:
    ours, others = logs
    for number in range(4):
        await ours.append_event(B, Event("ours"))
        watch.since()
        await others.append_event(A, Event("others"))
        assert watch.since() in (*_or_once_more(BEHIND), *_or_once_more(SENT)), f"round {number}"
    await ours.append_event(B, Event("ours"))
    assert watch.since() in _or_once_more(SENT)


async def test_a_retry_of_what_another_wrote_is_answered(logs: tuple[EventLog, EventLog]) -> None:
    ours, others = logs
    event = Event("once")
    assert (await others.append_event(B, event)).version == B_STANDS + 1
    again = await ours.append_event(B, event)
    assert (again.version, again.already) == (B_STANDS + 1, True)


async def test_an_agent_that_another_wrote_to_is_decided_anew(logs: tuple[EventLog, EventLog]) -> None:
    ours, others = logs
    with pytest.raises(Conflict) as refused:
        await ours.append_event(A, Event("late"), expected=2)
    assert "is at version 5" in str(refused.value)
    await others.append_event(A, Event("others"))
    assert (await ours.append_event(A, Event("whatever stands"))).version == 7


async def test_a_fence_of_another_is_seen(logs: tuple[EventLog, EventLog]) -> None:
    ours, others = logs
    await others.take_ownership(B, "node-b")
    with pytest.raises(Fenced):
        await ours.append_event(B, Event("late"), epoch=0)


async def test_an_agent_is_handed_over_behind_events_of_others(logs: tuple[EventLog, EventLog], watch: _Watch) -> None:
    ours, _ = logs
    (newest,) = await ours.get_events(B, limit=1, descending=True)
    watch.since()
    owned = await ours.hand_over(
        B, "node-b", epoch=0, version=B_STANDS, chain=newest.chain, event=Event("given"), first=[Event("first of b")]
    )
    assert (owned.epoch, owned.version) == (1, B_STANDS + 2)
    assert watch.since() in _or_once_more(SENT)
    (record,) = await ours.store.agents([B])
    assert record is not None
    assert (record.owner, record.epoch) == ("node-b", 1)


async def test_rows_that_are_older_than_what_others_wrote_are_stamped_anew(
    logs: tuple[EventLog, EventLog], watch: _Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = logs
    now, late = Appender._now_us, iter((900_000,) * 2)
    monkeypatch.setattr(Appender, "_now_us", lambda self, **given: now(self, **given) - next(late, 0))
    watch.since()
    await ours.append_event(B, Event("behind"))
    assert watch.since() == [*BEHIND, *SENT]
    times = [event.time_us for event in await read_all(ours.store, 0)]
    assert times == sorted(times)


async def test_more_than_fits_behind_is_read_in_pages(
    logs: tuple[EventLog, EventLog], watch: _Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = logs
    monkeypatch.setattr(postgres_behind, "BEHIND_MAX", 2)
    monkeypatch.setattr("perdure.engine.log.postgres_append.BEHIND_MAX", 2)
    watch.since()
    assert (await ours.append_event(B, Event("behind"))).version == B_STANDS + 1
    assert "append.locked" in watch.since()


@pytest.mark.parametrize("by_others", [20, 28, 29, 30, 31, 90])
async def test_what_crosses_the_end_of_a_segment_is_written_once(logs: tuple[EventLog, EventLog], by_others: int) -> None:
    """What another one writes to A leaves room in the segment for both of our events, for one of them, or for none, or goes beyond it."""
    ours, others = logs
    for _ in range(by_others):
        await others.append_event(A, Event("others"))
    assert (await ours.append_events(B, [Event("ours"), Event("ours")])).versions == (B_STANDS + 1, B_STANDS + 2)
    assert (await ours.append_event(A, Event("ours"))).version == 6 + by_others
    assert len(await read_all(ours.store, 0)) == STAND + 3 + by_others


@pytest.mark.parametrize("way", ["look ahead", "learn"])
async def test_what_is_learned_while_rows_are_on_their_way_leaves_no_hole(
    logs: tuple[EventLog, EventLog], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """As a migration of another agent to this process does; the store goes by the positions that it was asked with."""
    ours, _ = logs
    (record,) = await ours.store.agents([C])
    assert record is not None
    newest = (await read_all(ours.store, 0))[-3:]
    send = Appender._try

    async def beside(appender: Appender, *given: Any) -> bool:
        stands = await send(appender, *given)
        if way == "look ahead":
            await ours.look_ahead(record)
        else:
            assert ours.learn(newest)
        return stands

    monkeypatch.setattr(Appender, "_try", beside)
    assert (await ours.append_event(B, Event("ours"))).version == B_STANDS + 1
    assert len(await read_all(ours.store, 0)) == STAND + 1


@pytest.mark.parametrize("way", ["look ahead", "learn", "forget"])
async def test_a_head_that_was_read_before_an_event_does_not_stand_beside_a_position_after_it(fresh_database: str, way: str) -> None:
    """Over the end of a segment, behind which its index refuses no version."""
    async with log_under_test(partial(PostgresStore.open, fresh_database, partitions=1, segment_offsets=7)) as under:
        others, ours = await under.open_log(), await under.open_log()
        await others.append_event(A, Event("first"))
        await others.append_events(B, [Event("noted") for _ in range(4)])
        await ours.append_event(B, Event("ours"))
        records = [record for record in await ours.store.agents([A, B]) if record is not None]
        read, read_late = ours.store.heads, []

        async def heads(agents: Sequence[AgentRecord]) -> list[Head]:
            found = await read(agents)
            if not read_late:
                read_late.append(agents)
                await others.append_event(A, Event("second"))
                if way == "learn":
                    assert ours.learn(await ours.store.read(0, 6, 10))
                if way == "forget":
                    ours.writer.known.forget([0])
                await ours.look_ahead(records[1])
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ours.store, "heads", heads)
            assert (await ours.append_event(A, Event("third"))).version == 3
        assert [agent.agent_key for agent in read_late[0]] == [records[0].agent_key]
        await check_log(ours)


async def test_an_agent_that_others_wrote_to_while_it_was_made_is_asked_for(fresh_database: str) -> None:
    async with log_under_test(partial(PostgresStore.open, fresh_database, partitions=1, segment_offsets=7)) as under:
        others, ours = await under.open_log(), await under.open_log()
        await ours.append_events(B, [Event("noted") for _ in range(6)])
        (record,) = await ours.store.agents([B])
        assert record is not None
        make = ours.store.create_agents

        async def create_agents(rows: Sequence[AgentRecord]) -> list[AgentRecord]:
            made = await make(rows)
            await others.append_event(A, Event("first"))
            await ours.look_ahead(record)
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ours.store, "create_agents", create_agents)
            assert (await ours.append_event(A, Event("second"))).version == 2
        await check_log(ours)


async def test_whatever_is_learned_beside_appends_the_log_stays_dense(fresh_database: str) -> None:
    """Three openings append by chance, and look ahead all the time, as targets of many migrations do."""
    chance = random.Random(7)
    async with log_under_test(partial(PostgresStore.open, fresh_database, partitions=1, segment_offsets=50)) as under:
        logs = [await under.open_log() for _ in range(3)]
        acknowledged: list[tuple[AgentName, UUID, int]] = []
        for name in (A, B, C):
            await logs[0].append_event(name, Event("first"))
        records = [record for record in await logs[0].store.agents([A, B, C]) if record is not None]
        ended = asyncio.Event()

        async def write(log: EventLog) -> None:
            for _ in range(25):
                events = [Event("noted") for _ in range(chance.randrange(1, 3))]
                name = chance.choice((A, B, C))
                done = await log.append_events(name, events)
                acknowledged.extend((name, event.id, version) for event, version in zip(events, done.versions, strict=True))
                if chance.random() < 0.2:
                    await log.take_ownership(name, f"node-{chance.randrange(3)}")

        async def look(log: EventLog) -> None:
            while not ended.is_set():
                await log.look_ahead(chance.choice(records))

        async with asyncio.TaskGroup() as group:
            for log in logs:
                group.create_task(look(log))
            try:
                async with asyncio.TaskGroup() as writers:
                    for log in (*logs, *logs):
                        writers.create_task(write(log))
            finally:
                ended.set()
        await check_log(logs[0])
        stand = {(name, event.id): event.version for name in (A, B, C) for event in await logs[1].get_events(name, limit=1_000)}
        assert {(name, id): version for name, id, version in acknowledged}.items() <= stand.items()
