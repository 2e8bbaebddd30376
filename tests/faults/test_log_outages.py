"""Postgres stopped, away, silent, or lost between a commit and its answer: typed errors in bounded time, and every retry is safe."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from perdure import limits, services
from perdure.engine import steps
from perdure.engine.event import Event
from perdure.engine.log import postgres_append
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName
from perdure.engine.log.writer import Writer
from perdure.errors import DeadlineExceeded, Overloaded, PerdureError, Unavailable
from perdure.testing.history import Acknowledged, check_log_history
from perdure.testing.log_rows import LogUnderTest
from tests.faults.writer_process import open_store
from tests.faults.writers import told, writer
from tests.fix_proxy import Proxy

AGENT = AgentName("t", "agent 0")
BOUND_S = 60.0
"""Whatever becomes of the log, a caller has its answer within this, on a machine that is busy with much else."""
QUEUE_MAX = 50
CALLERS = 200
ROUNDS = 8
"""Of appends that somebody else came before: from then on a writer takes the lock first, and commits by itself."""
FLAT_BYTES = 2_000_000


@pytest.fixture
async def proxy(fresh_database: str, proxy_before: Callable[[str], Awaitable[Proxy]]) -> Proxy:
    return await proxy_before(fresh_database)


@pytest.fixture
async def log(proxy: Proxy) -> AsyncIterator[EventLog]:
    """A log behind the proxy, with one agent that has one event."""
    under = LogUnderTest(lambda: open_store(proxy.url))
    opened = await under.open_log()
    await opened.append_event(AGENT, Event("begun"))
    yield opened
    proxy.flow()
    await under.close()


async def assert_events(log: EventLog, ids: list[Any], acknowledged: list[Acknowledged]) -> None:
    """These stand in the log, in this order and once, after the first."""
    assert (await stored_ids(log))[1:] == ids
    report = await check_log_history(log.store, acknowledged)
    assert report.holds, report.problems


async def stored_ids(log: EventLog) -> list[UUID]:
    """What the agent has; a connection that was cut while nobody used it costs its first reader an error."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return [event.id for event in await log.get_events(AGENT)]
            except Unavailable:
                await asyncio.sleep(0.05)


async def until_it_answers(log: EventLog, event: Event) -> Acknowledged:
    """Repeat the append until the log has it."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                done = await log.append_event(AGENT, event)
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return Acknowledged(*AGENT, event.id, done.version)


async def test_a_reply_lost_after_the_commit_is_answered_by_the_retry(log: EventLog, proxy: Proxy) -> None:
    event = Event("once")
    proxy.cut_reply_to(event.id.bytes)
    with pytest.raises(Unavailable):
        await log.append_event(AGENT, event)
    assert proxy.cut_done.is_set()
    again = await log.append_event(AGENT, event)
    assert (again.already, again.versions) == (True, (2,))
    await assert_events(log, [event.id], [Acknowledged(*AGENT, event.id, 2)])


@pytest.mark.parametrize("way", ["behind others", "under a lock"])
async def test_a_reply_lost_while_others_write_is_answered_by_the_retry(
    log: EventLog, proxy: Proxy, fresh_database: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "under a lock":
        monkeypatch.setattr(postgres_append, "TRIES_MAX", 0)
    other = LogUnderTest(lambda: open_store(fresh_database))
    beside = await other.open_log()
    before = [Event("before") for _ in range(2 * ROUNDS)]
    for number, each in enumerate(before):
        await (log if number % 2 else beside).append_event(AGENT, each)
    await other.close()
    event = Event("once")
    taken: list[str] = []
    steps.install(taken.append)
    proxy.cut_reply_to(event.id.bytes)
    try:
        with pytest.raises(Unavailable):
            await log.append_event(AGENT, event)
    finally:
        steps.install(None)
    assert ("append.locked" in taken) is (way == "under a lock")
    assert proxy.cut_done.is_set()
    again = await log.append_event(AGENT, event)
    version = 1 + len(before) + 1
    assert (again.already, again.versions) == (True, (version,))
    await assert_events(log, [each.id for each in (*before, event)], [Acknowledged(*AGENT, event.id, version)])


async def test_a_request_that_never_arrived_is_written_by_the_retry(log: EventLog, proxy: Proxy) -> None:
    event = Event("once")
    proxy.cut_request(event.id.bytes)
    with pytest.raises(Unavailable):
        await log.append_event(AGENT, event)
    assert proxy.cut_done.is_set()
    again = await log.append_event(AGENT, event)
    assert (again.already, again.versions) == (False, (2,))
    await assert_events(log, [event.id], [Acknowledged(*AGENT, event.id, 2)])


async def test_a_lost_takeover_is_not_taken_twice(log: EventLog, proxy: Proxy) -> None:
    proxy.cut_reply_to(b"perdure_append_after_owned")  # the statement of an append that changes an owner
    with pytest.raises(Unavailable):
        await log.take_ownership(AGENT, "me", expected_epoch=0)
    assert proxy.cut_done.is_set()
    with pytest.raises(PerdureError, match="belongs to epoch 1"):
        await log.take_ownership(AGENT, "me", expected_epoch=0)


async def outcome(log: EventLog, event: Event) -> str:
    """How an append ends, by the error's code."""
    try:
        async with asyncio.timeout(BOUND_S):
            await log.append_event(AGENT, event)
    except PerdureError as problem:
        return problem.code
    return "written"


async def assert_bounded(log: EventLog, events: list[Event]) -> None:
    """Of appends at once, those beyond the queue are refused before anybody has an answer; the others fail in time."""
    ended: list[str] = []

    async def one(event: Event) -> None:
        ended.append(await outcome(log, event))

    await asyncio.gather(*map(one, events))
    counts = Counter(ended)
    # One batch is out of the queue while the next gathers in it.
    assert CALLERS - 2 * QUEUE_MAX <= counts[Overloaded.code] <= CALLERS - QUEUE_MAX, counts
    assert counts.keys() <= {Overloaded.code, Unavailable.code, DeadlineExceeded.code}, counts
    assert set(ended[: counts[Overloaded.code]]) == {Overloaded.code}


async def small_queue(log: EventLog) -> None:
    await log.writer.close()
    log.writer = Writer(log.store, queue_max=QUEUE_MAX)


async def test_without_postgres_appends_fail_in_bounded_time_and_the_queue_is_bounded(log: EventLog, proxy: Proxy) -> None:
    await small_queue(log)
    await proxy.shut()
    events = [Event("queued", data="x" * 1_000) for _ in range(CALLERS)]
    await assert_bounded(log, events)
    await proxy.open()
    written = await until_it_answers(log, events[0])
    await assert_events(log, [events[0].id], [written])


async def test_without_postgres_refused_callers_leave_nothing_behind(log: EventLog, proxy: Proxy) -> None:
    await small_queue(log)
    await proxy.shut()
    waiting = [asyncio.create_task(outcome(log, Event("queued"))) for _ in range(2 * QUEUE_MAX)]
    await asyncio.sleep(0)  # they are in the queue, which is full from here on
    tracemalloc.start()
    try:
        await outcome(log, Event("first"))
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(3_000):
            assert await outcome(log, Event("refused", data="x" * 1_000)) == Overloaded.code
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < FLAT_BYTES
    await asyncio.gather(*waiting)


async def test_a_silent_postgres_costs_callers_their_deadline_and_no_more(log: EventLog, proxy: Proxy) -> None:
    await small_queue(log)
    proxy.stall()
    events = [Event("queued") for _ in range(CALLERS)]
    await assert_bounded(log, events)
    proxy.flow()
    # Whatever was written meanwhile, all of them again give each once.
    acknowledged = [await until_it_answers(log, event) for event in events[:QUEUE_MAX]]
    stored = (await stored_ids(log))[1:]
    assert sorted(stored) == sorted(event.id for event in events[:QUEUE_MAX])
    report = await check_log_history(log.store, acknowledged)
    assert report.holds, report.problems


async def test_a_commit_without_an_answer_is_given_up_and_the_next_connection_writes(
    log: EventLog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMMIT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 0.5)
    event = Event("once")
    proxy.stall()
    with pytest.raises(Unavailable, match="did not answer"):
        await log.append_event(AGENT, event)
    proxy.flow_for_new_connections()  # the stalled ones stay open and silent for ever
    again = await until_it_answers(log, event)
    assert again.version == 2
    await assert_events(log, [event.id], [again])


async def test_a_large_commit_has_longer_than_a_small_one(log: EventLog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMMIT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "COMMIT_BYTES_PER_S_MIN", 1_000)
    event = Event("large", data=random.randbytes(8_000))
    proxy.stall()
    asyncio.get_running_loop().call_later(0.6, proxy.flow)
    done = await log.append_event(AGENT, event)
    assert (done.already, done.version) == (False, 2)


async def test_appends_beyond_the_bytes_that_may_wait_are_refused(log: EventLog, proxy: Proxy) -> None:
    await log.writer.close()
    log.writer = Writer(log.store, queue_bytes_max=20_000)
    proxy.stall()
    events = [Event("queued", data=str(number) + random.randbytes(2_500).hex()) for number in range(20)]
    first = asyncio.create_task(outcome(log, events[0]))
    await asyncio.sleep(0)  # one batch is under way
    rest = [asyncio.create_task(outcome(log, event)) for event in events[1:]]
    refused = [event for event, task in zip(events[1:], rest, strict=True) if await done_at_once(task)]
    assert 0 < len(refused) < len(rest)
    proxy.flow()
    assert Counter(await asyncio.gather(first, *rest)) == {"written": len(events) - len(refused), Overloaded.code: len(refused)}
    assert sorted(await stored_ids(log))[1:] == sorted(event.id for event in events if event not in refused)


async def done_at_once(task: asyncio.Task[Any]) -> bool:
    """Whether it ends without anything else having to happen."""
    await asyncio.sleep(0)
    return task.done()


async def test_a_postgres_that_is_killed_and_comes_back_loses_nothing(private_services: Callable[..., Any]) -> None:
    private = private_services("postgres")
    url = private.services.postgres.url
    async with writer(url, "first") as first, writer(url, "second") as second:
        for one in (first, second):
            await one.until("acknowledged", 30)
        for _ in range(2):
            await asyncio.to_thread(services.stop, "postgres", private.root, how="immediate")
            for one in (first, second):
                await one.until("unavailable", since=len(one.lines) - len(one.of("unavailable")[-1:]))
            said = [len(one.lines) for one in (first, second)]
            await asyncio.to_thread(services.start, "postgres", private.root)
            for one, lines in zip((first, second), said, strict=True):
                await one.until("acknowledged", 30, since=lines)
        for one in (first, second):
            await one.finish()
            assert all(line.took_s < BOUND_S for line in one.lines)
            assert {line.error for line in one.of("unavailable")} <= {Unavailable.code, DeadlineExceeded.code}
    store = await open_store(url)
    acknowledged = told([first, second])
    report = await check_log_history(store, acknowledged)
    assert report.holds, report.problems
    assert report.acknowledged == len(acknowledged) > 100
    await store.close()
