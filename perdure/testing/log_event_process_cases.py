"""Log cases with several processes: whole logs that write beside each other, and one that is killed in the middle."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.process import BaseProcess
from uuid import UUID

from perdure.engine.changes import set_value
from perdure.engine.event import Event
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName
from perdure.identifiers import uuid7
from perdure.testing.log_event_cases import check_log
from perdure.testing.log_rows import LogUnderTest

__all__ = ["CASES"]

Opener = Callable[[], Awaitable[LogStore]]

NAMES = [AgentName("tenant", f"agent {number}") for number in range(5)]
KILLED_APPENDS = 400
CHILD_TIMEOUT_S = 90.0

_processes = multiprocessing.get_context("spawn")


def write_events(opener: Opener, ids: Sequence[UUID], *, twice: bool) -> None:
    """A child: append an event for each id, to the agents in turn, eight at a time; twice: then all of them again."""

    async def run() -> None:
        under = LogUnderTest(opener)
        log = await under.open_log()
        waiting = list(enumerate(ids)) * (2 if twice else 1)

        async def work() -> None:
            while waiting:
                number, id_ = waiting.pop(0)
                await log.append_event(NAMES[number % len(NAMES)], _event(number, id_))

        await asyncio.gather(*(work() for _ in range(8)))
        await under.close()

    asyncio.run(run())


def _event(number: int, id_: UUID) -> Event:
    return Event("counted", changes=(set_value("/number", number),), id=id_)


def _start(opener: Opener, ids: Sequence[UUID], *, twice: bool) -> BaseProcess:
    child = _processes.Process(target=write_events, args=(opener, ids), kwargs={"twice": twice}, daemon=True)
    child.start()
    return child


async def processes_write_each_event_once(under: LogUnderTest) -> None:
    """Three processes, two of which append the same events, and each all of its own twice: every id stands once, nothing has a gap."""
    log = await under.open_log()
    shared, own = [uuid7() for _ in range(60)], [uuid7() for _ in range(60)]
    children = [_start(under.opener, ids, twice=True) for ids in (shared, shared, own)]
    for child in children:
        await asyncio.to_thread(child.join, CHILD_TIMEOUT_S)
        assert child.exitcode == 0, f"a writer process ended with {child.exitcode}"
    assert sum(await check_log(log)) == 120
    found = [event.id for name in NAMES for event in await log.get_events(name)]
    assert sorted(found) == sorted(shared + own)


async def a_killed_process_is_made_good_by_a_retry(under: LogUnderTest) -> None:
    """Killed while it writes; whatever it got in, appending all of its events again gives each of them once."""
    log = await under.open_log()
    ids = [uuid7() for _ in range(KILLED_APPENDS)]
    child = _start(under.opener, ids, twice=False)
    while sum(position.offset for position in (await log.store.positions()).values()) < KILLED_APPENDS // 10:
        assert child.exitcode in (None, 0)
        await log.store.signal().wait(0.002)
    child.kill()
    await asyncio.to_thread(child.join, CHILD_TIMEOUT_S)
    written = sum(await check_log(log))
    results = await asyncio.gather(*(log.append_event(NAMES[n % len(NAMES)], _event(n, id_)) for n, id_ in enumerate(ids)))
    assert [done.already for done in results].count(True) == written
    assert sum(await check_log(log)) == KILLED_APPENDS
    found = [event.id for name in NAMES for event in await log.get_events(name)]
    assert sorted(found) == sorted(ids)


CASES = (processes_write_each_event_once, a_killed_process_is_made_good_by_a_retry)
