"""Writers that are killed, stopped or replaced: what was acknowledged stands once and in its place, judged by the history checker."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from perdure.engine.event import Event
from perdure.engine.log.contract import LogStore
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName
from perdure.errors import Fenced
from perdure.identifiers import uuid7
from perdure.testing.history import Acknowledged, check_log_history
from perdure.testing.log_rows import LogUnderTest
from tests.faults.writer_process import open_store
from tests.faults.writers import Writer, told, writer

OWNED_AGENT = AgentName("t", "agent 0")
TAKEOVER_S = 60.0
"""Within which an agent is taken from a writer that stands still, also where it holds the partition's lock."""


@pytest.fixture
async def log(fresh_database: str) -> AsyncIterator[EventLog]:
    under = LogUnderTest(lambda: open_store(fresh_database))
    yield await under.open_log()
    await under.close()


async def assert_history(store: LogStore, acknowledged: list[Acknowledged]) -> None:
    report = await check_log_history(store, acknowledged)
    assert report.holds, report.problems
    assert report.acknowledged == len(acknowledged) > 0


async def killed_and_replaced(place: str, kill_point: str, *, own: bool, way: str = "") -> None:
    """One writer is killed at the step while another writes beside it; that one goes on."""
    own_agents = ["agent 0", "owned"] if own else ["agent 0", "agent 1"]
    async with writer(place, "other") as other:
        await other.until("acknowledged")
        async with writer(place, "victim", kill_point=kill_point, agents=own_agents[-1:], own=own, way=way) as victim:
            assert await victim.ended() == -signal.SIGKILL
        await other.until("acknowledged", 20, since=len(other.lines))
        await other.finish()
    store = await open_store(place)
    await assert_history(store, told([other, victim]))
    await store.close()


@pytest.mark.parametrize(
    "kill_point", ["append.before", "append.after", "append.before:7", "append.after:7", "writer.taken:3", "writer.written:3"]
)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "owned"])
async def test_a_writer_killed_at_any_step_leaves_the_log_whole(kill_point: str, own: bool, log: EventLog, fresh_database: str) -> None:
    await killed_and_replaced(fresh_database, kill_point, own=own)


@pytest.mark.parametrize("kill_point", ["append.locked", "append.before", "append.before:7", "append.after:7"])
async def test_a_writer_killed_with_the_lock_in_its_hands_leaves_the_log_whole(kill_point: str, log: EventLog, fresh_database: str) -> None:
    await killed_and_replaced(fresh_database, kill_point, own=True, way="locked")


@pytest.mark.parametrize("kill_point", ["append.before", "append.before:7", "append.after:7"])
async def test_a_writer_killed_while_it_goes_behind_others_leaves_the_log_whole(
    kill_point: str, log: EventLog, fresh_database: str
) -> None:
    await killed_and_replaced(fresh_database, kill_point, own=True, way="behind")


@pytest.mark.parametrize("kill_point", ["writer.taken:3", "writer.written:3"])
async def test_a_sqlite_writer_killed_at_any_step_leaves_the_log_whole(kill_point: str, tmp_path: Path) -> None:
    await (await open_store(str(tmp_path))).close()
    await killed_and_replaced(str(tmp_path), kill_point, own=False)


async def take_over(log: EventLog, zombie: Writer) -> list[Acknowledged]:
    """Become the owner and write."""
    async with asyncio.timeout(TAKEOVER_S):
        epoch = await log.take_ownership(OWNED_AGENT, "successor")
    assert epoch == len(zombie.of("owned")) + 1
    written = []
    for number in range(5):
        event = Event("worked", data=number, correlation_id="successor")
        done = await log.append_event(OWNED_AGENT, event, epoch=epoch)
        written.append(Acknowledged(*OWNED_AGENT, event.id, done.version, epoch))
    return written


async def assert_nothing_after(log: EventLog, successor: list[Acknowledged]) -> None:
    """Nobody but the successor wrote since it took over."""
    events = [event async for event in log.stream_events(OWNED_AGENT)]
    since = [event.correlation_id for event in events if event.version >= successor[0].version]
    assert since == ["successor"] * len(successor)


async def test_a_writer_that_wakes_after_a_takeover_is_fenced_and_writes_nothing(log: EventLog, fresh_database: str) -> None:
    async with writer(fresh_database, "zombie", agents=[OWNED_AGENT.agent], own=True) as zombie:
        await zombie.until("acknowledged", 10)
        zombie.process.send_signal(signal.SIGSTOP)
        successor = await take_over(log, zombie)
        zombie.process.send_signal(signal.SIGCONT)
        await zombie.until("fenced")
        assert await zombie.ended() == 0
    await assert_nothing_after(log, successor)
    await assert_history(log.store, [*zombie.acknowledged(), *successor])


@pytest.mark.parametrize(("step", "way"), [("append.locked", "locked"), ("append.before", "locked"), ("append.before", "behind")])
async def test_a_writer_stopped_with_the_lock_in_its_hands_or_just_before_does_not_hold_up_its_successor(
    log: EventLog, fresh_database: str, step: str, way: str
) -> None:
    await log.append_event(OWNED_AGENT, Event("begun"))
    async with writer(fresh_database, "zombie", agents=[OWNED_AGENT.agent], own=True, stop_at=step, way=way) as zombie:
        await zombie.until("ready")
        await stopped(zombie.process.pid)
        successor = await take_over(log, zombie)
        zombie.process.send_signal(signal.SIGCONT)
        await zombie.until("fenced")
        assert await zombie.ended() == 0
    await assert_nothing_after(log, successor)
    await assert_history(log.store, [*zombie.acknowledged(), *successor])


async def stopped(pid: int) -> None:
    """Wait until the process stands still."""
    async with asyncio.timeout(TAKEOVER_S):
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)


async def test_the_checker_sees_a_build_without_the_epoch_check(log: EventLog, fresh_database: str) -> None:
    async with writer(fresh_database, "zombie", agents=[OWNED_AGENT.agent], own=True, mutant="no-epoch-check") as zombie:
        await zombie.until("acknowledged", 5)
        zombie.process.send_signal(signal.SIGSTOP)
        successor = await take_over(log, zombie)
        zombie.process.send_signal(signal.SIGCONT)
        await zombie.until("acknowledged", 10, since=len(zombie.lines))
        await zombie.finish()
    report = await check_log_history(log.store, [*zombie.acknowledged(), *successor])
    assert any("to a writer of epoch 1, was written under epoch 2" in problem for problem in report.problems), report


async def test_the_checker_sees_a_build_that_acknowledges_early(log: EventLog, fresh_database: str) -> None:
    async with writer(fresh_database, "hasty", mutant="early-acknowledgement", kill_point="append.before:8") as hasty:
        assert await hasty.ended() == -signal.SIGKILL
    report = await check_log_history(log.store, hasty.acknowledged())
    assert any("is not in the log" in problem for problem in report.problems), report


async def test_the_checker_sees_no_fault_in_the_same_runs_of_the_real_build(log: EventLog, fresh_database: str) -> None:
    async with writer(fresh_database, "sound", kill_point="append.before:8") as sound:
        assert await sound.ended() == -signal.SIGKILL
    await assert_history(log.store, sound.acknowledged())


async def tail(store: LogStore, partition: int, seen: list[int], stop: asyncio.Event) -> None:
    """Follow a partition and note its offsets, until told to stop and nothing more comes."""
    while True:
        last_round = stop.is_set()
        page = await store.read(partition, len(seen), 7)
        seen += [event.offset for event in page]
        assert seen[-len(page) :] == list(range(len(seen) - len(page) + 1, len(seen) + 1)) if page else True, "a reader skipped"
        if last_round and not page:
            return


async def test_a_tailing_reader_skips_nothing_while_writers_are_killed(log: EventLog, fresh_database: str) -> None:
    seen: list[list[int]] = [[] for _ in range(log.store.partitions)]
    stop = asyncio.Event()
    readers = [asyncio.create_task(tail(log.store, partition, offsets, stop)) for partition, offsets in enumerate(seen)]
    writers: list[Writer] = []

    async def lifetimes(name: str, kill_point: str) -> None:
        async with writer(fresh_database, name, kill_point=kill_point, workers=8) as victim:
            writers.append(victim)
            assert await victim.ended() == -signal.SIGKILL

    async with writer(fresh_database, "steady") as steady:
        writers.append(steady)
        await steady.until("acknowledged")
        await asyncio.gather(lifetimes("first", "append.after:9"), lifetimes("second", "append.before:17"))
        await asyncio.gather(lifetimes("third", "append.after:23"), lifetimes("fourth", "append.before:5"))
        await steady.finish()
    stop.set()
    await asyncio.gather(*readers)
    positions = await log.store.positions()
    assert [len(offsets) for offsets in seen] == [positions[partition].offset for partition in range(log.store.partitions)]
    await assert_history(log.store, told(writers))


async def test_processes_that_retry_the_same_events_write_them_once(log: EventLog, fresh_database: str) -> None:
    ids = [uuid7() for _ in range(150)]
    orders = [ids, ids, ids * 2, ids * 2]

    async def run(number: int) -> Writer:
        async with writer(fresh_database, "the same", ids=orders[number], count=len(orders[number]), workers=8) as one:
            assert await one.ended() == 0
        return one

    writers = await asyncio.gather(*(run(number) for number in range(len(orders))))
    for one, order in zip(writers, orders, strict=True):
        assert sorted(line.id for line in one.of("acknowledged") if line.id) == sorted(order)
    fresh = [line for one in writers for line in one.of("acknowledged") if not line.already]
    assert sorted(line.id for line in fresh if line.id) == ids, "each event was new to one caller alone"
    assert sum(position.offset for position in (await log.store.positions()).values()) == len(ids)
    await assert_history(log.store, told(writers))


async def test_an_old_epoch_writes_nothing_in_the_same_process(log: EventLog) -> None:
    old = await log.take_ownership(OWNED_AGENT, "first")
    await log.take_ownership(OWNED_AGENT, "second")
    with pytest.raises(Fenced):
        await log.append_event(OWNED_AGENT, Event("late"), epoch=old)
    assert await log.version(OWNED_AGENT) == 2
