"""Log cases about the tail while things happen around the log: the ways in which event stores have lost, hidden or doubled committed events.

An open transaction in another database, an idle session, a dump and restore, a follower killed before its checkpoint, numbers beyond 31 bits,
and retries after a long time and after an erasure. (An append that began first and commits last, one that rolls back, and losers that burn
numbers stand in `log_process_cases` and `log_event_cases`.)
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from perdure.engine.changes import append
from perdure.engine.event import Event
from perdure.engine.log.chain import EMPTY_CHAIN, chain_hash
from perdure.engine.log.codec import encode_payload, event_context
from perdure.engine.log.expected import ANY, NO_STREAM
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, Position
from perdure.errors import KeyUnavailable
from perdure.identifiers import partition_of
from perdure.testing.log_event_cases import check_log, some, versions_of
from perdure.testing.log_process_cases import CHILD_TIMEOUT_S, Follower, finish, follow_writers, processes, start, write_many
from perdure.testing.log_rows import LogUnderTest, RawWriter, agent_name, agent_of, row
from perdure.testing.log_surroundings import Opener

__all__ = ["CASES"]

AGENT = AgentName("tenant", "agent")
AGENTS = 4
APPENDS_BEFORE = 6
PAGE_EVENTS = 7
FOLLOWED_APPENDS = 20
DAY_US = 24 * 3600 * 1_000_000
BEYOND = 2**31
"""The first offset that 31 bits do not hold."""


async def _agents(log: LogUnderTest) -> list[AgentRecord]:
    store = await log.open()
    return [await agent_of(store, f"agent {number}", "t") for number in range(AGENTS)]


async def a_transaction_open_elsewhere_hides_nothing(log: LogUnderTest) -> None:
    """While a transaction of another database of the server stays open, readers still see whatever several processes commit, at once."""
    records, store = await _agents(log), await log.open()
    async with log.surroundings.transaction_elsewhere():
        await follow_writers(store, log.opener, records, Follower(records))


async def an_idle_session_holds_nobody_up(log: LogUnderTest) -> None:
    """While somebody's session stands idle in a transaction over the log itself, appends, new segments and readers go on."""
    records, store = await _agents(log), await log.open()
    await RawWriter(store).append(*[(record, [{}]) for record in records])
    follower = Follower(records)
    await follower.step(store)
    async with log.surroundings.idle_session():
        await follow_writers(store, log.opener, records, follower)


async def a_restored_log_is_read_on_from_where_the_reader_stood(log: LogUnderTest) -> None:
    """A reader in the middle of the log goes on in its restored copy, where transactions are numbered anew, and so do writer processes."""
    records, store = await _agents(log), await log.open()
    writer = RawWriter(store)
    for turn in range(APPENDS_BEFORE):
        await writer.append(*[(record, [{}] * (1 + (turn + number) % 2)) for number, record in enumerate(records)])
    follower = Follower(records)
    await follower.step(store)
    await writer.append(*[(record, [{"id": uuid4()}]) for record in records])
    elsewhere = await log.surroundings.restored()
    copy = LogUnderTest(elsewhere)
    try:
        restored = await copy.open()
        assert (restored.partitions, await restored.positions()) == (store.partitions, await store.positions())
        assert await restored.heads(records) == await store.heads(records)
        assert await restored.agents([agent_name(record) for record in records]) == records
        await follower.rest(restored)
        await follow_writers(restored, elsewhere, records, follower)
        for record in records:
            newest = await restored.read_agent(record, EventFilter(), 1, descending=True)
            assert [event.version for event in newest] == [follower.versions[record.agent_key]]
        fresh = await agent_of(restored, "made after the restore", "t")
        assert fresh.agent_key not in {record.agent_key for record in records}
    finally:
        await copy.close()


def follow_and_keep(opener: Opener, partition: int, file: Path, until: int, moment: str, reached: Flag) -> None:
    """A child: deliver offsets to a file and keep its place in the log, page by page, until the offset `until`.

    moment: after the first page, `delivered` waits to be killed before its place is kept, `kept` after; `end` waits nowhere.
    """

    async def run() -> None:
        store = await opener()
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        document = await store.get_document("follower", str(partition))
        place = int(document.value) if document else 0
        while place < until:
            page = await store.read(partition, place, PAGE_EVENTS)
            os.write(descriptor, "".join(f"{event.offset}\n" for event in page).encode())
            if page and moment == "delivered":
                await _wait_for_the_end(reached)
            place += len(page)
            await store.put_document("follower", str(partition), str(place).encode(), expected=None)
            if page and moment == "kept":
                await _wait_for_the_end(reached)
            if not page:
                await store.signal().wait(0.01)
        os.close(descriptor)
        await store.close()

    asyncio.run(run())


async def _wait_for_the_end(reached: Flag) -> None:
    reached.set()
    await asyncio.sleep(CHILD_TIMEOUT_S)
    raise TimeoutError("nobody killed this process")


async def a_follower_killed_before_its_checkpoint_skips_nothing(log: LogUnderTest) -> None:
    """Killed between delivering and keeping its place, again and again, while others write: all is delivered, in order, a page at most twice."""
    store = await log.open()
    record = await agent_of(store)
    total = sum(1 + turn % 3 for turn in range(FOLLOWED_APPENDS))
    with tempfile.TemporaryDirectory(prefix="perdure-kit-") as folder:
        file = Path(folder) / "delivered"
        writer = start(write_many, log.opener, [agent_name(record)], FOLLOWED_APPENDS)
        for moment in ("delivered", "delivered", "kept", "end"):
            reached = processes.Event()
            follower = start(follow_and_keep, log.opener, record.partition, file, total, moment, reached)
            if moment == "end":
                await finish(follower)
                continue
            assert await asyncio.to_thread(reached.wait, CHILD_TIMEOUT_S), "the follower delivered nothing"
            follower.kill()
            await asyncio.to_thread(follower.join, CHILD_TIMEOUT_S)
        await finish(writer)
        delivered = [int(line) for line in file.read_text().split()]
    assert list(dict.fromkeys(delivered)) == list(range(1, total + 1)), "skipped, or out of order"
    assert len(delivered) - total <= 2 * PAGE_EVENTS


async def offsets_beyond_31_bits_go_on(log: LogUnderTest) -> None:
    """A partition that has had more than two thousand million events: two writers, readers, look-ups and live streams as ever."""
    record = await agent_of(await log.open())
    first = BEYOND - 2
    await log.surroundings.place(row(record, Position(first - 1, 0), 1, time.time_ns() // 1000))
    stores = [await log.open(), await log.open()]
    writers = [RawWriter(store) for store in stores]
    written = [event for turn in range(6) for event in await writers[turn % 2].add(record, 1 + turn % 2)]
    offsets = [event.offset for event in written]
    assert offsets == list(range(first + 1, first + 10))
    for store in stores:
        assert (await store.positions())[record.partition].offset == offsets[-1] > BEYOND
        assert await store.read(record.partition, first, 100) == written
        assert await store.read(record.partition, BEYOND, 2) == [event for event in written if event.offset > BEYOND][:2]
        assert (await store.read_agent(record, EventFilter(), 100))[1:] == written
        assert await store.find(record, [written[-1].id, written[0].id]) == [written[0], written[-1]]
        assert await store.read_tenant(record.tenant, record.partition, BEYOND, EventFilter(), 100) == written[2:]
    await _log_goes_on(await log.open_log(), record.partition, offsets[-1])


async def _log_goes_on(log: EventLog, partition: int, newest: int) -> None:
    name = next(name for number in range(10_000) if partition_of(*(name := AgentName("t", str(number))), log.store.partitions) == partition)
    events = some(3)
    assert (await log.append_events(name, events, expected=NO_STREAM)).versions == (1, 2, 3)
    assert (await log.append_events(name, events)).already
    assert [event.offset async for event in log.stream_events(name)] == [newest + 1, newest + 2, newest + 3]


async def _written_long_ago(log: LogUnderTest, ids: Sequence[UUID], time_us: int) -> list[Event]:
    """Events of `AGENT` as the log got them at that time, the first of its partition."""
    opened = await log.open_log()
    record, cipher = await opened.vault.obtain(AGENT)
    position, chain, events = Position(0, time_us), EMPTY_CHAIN, []
    for number, id_ in enumerate(ids):
        event = Event("noted", changes=(append("/notes", number),), id=id_)
        sealed = row(record, position, number + 1, time_us, id=id_, payload=cipher.seal(event_context(id_), encode_payload(event)))
        chain = chain_hash(chain, *AGENT, sealed.version, sealed.epoch, sealed.time_us, sealed)
        await log.surroundings.place(msgspec.structs.replace(sealed, chain=chain))
        position = Position(sealed.offset, time_us)
        events.append(event)
    return events


async def a_retry_after_a_day_is_answered(log: LogUnderTest) -> None:
    """Ids made and written more than a day ago are known, to every opening, whatever was written since; nothing goes in twice."""
    time_us = time.time_ns() // 1000 - DAY_US - DAY_US // 24
    by_time = UUID(int=(time_us // 1000) << 80 | 0x7 << 76 | 0x2 << 62 | uuid4().int & (1 << 62) - 1)
    events = await _written_long_ago(log, [by_time, uuid4()], time_us)
    logs = [await log.open_log(), await log.open_log()]
    for turn in range(5):
        await logs[turn % 2].append_events(AGENT, some(9))
    logs.append(await log.open_log())
    for opened in logs:
        for expected in (ANY, NO_STREAM, 0, 47, 99):
            done = await opened.append_events(AGENT, events, expected=expected)
            assert (done.versions, done.already) == ((1, 2), True)
    assert await versions_of(logs[0], AGENT) == list(range(1, 48))
    assert sum(await check_log(logs[0])) == 47


async def a_retry_after_an_erasure_writes_nothing(log: LogUnderTest) -> None:
    """Whoever still has the key is told the first result; without it the append is refused. No offset is taken, neighbours go on."""
    before = await log.open_log()
    events = some(2)
    await before.append_events(AGENT, events)
    await log.surroundings.erase(await before.vault.record(*AGENT))
    again = await before.append_events(AGENT, events)
    assert (again.versions, again.already) == ((1, 2), True)
    after = await log.open_log()
    for again_ in (events, some(1)):
        with pytest.raises(KeyUnavailable):
            await after.append_events(AGENT, again_)
    assert (await after.append_event(AgentName("tenant", "neighbour"), Event("noted"))).version == 1
    assert sum(await check_log(after)) == 3


CASES = (
    a_transaction_open_elsewhere_hides_nothing,
    an_idle_session_holds_nobody_up,
    a_restored_log_is_read_on_from_where_the_reader_stood,
    a_follower_killed_before_its_checkpoint_skips_nothing,
    offsets_beyond_31_bits_go_on,
    a_retry_after_a_day_is_answered,
    a_retry_after_an_erasure_writes_nothing,
)
