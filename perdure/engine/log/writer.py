"""The group-commit writer: one a process and log.

Appends queue up while a batch commits; the next batch takes what has gathered, so it grows by itself under load, and one caller alone waits for
nobody. All rules are in `decide`; this is the shell that feeds it.

Preparing appends (this process) and committing them (the store) shall overlap. So when a batch is committed, the next one is sent before the
callers of the first are told; and where nothing is queued, because all callers were in that one batch, half of them are told first, so that
what they append next is on its way while the other half prepares. Where other processes write too, they use the time, and few large batches
are better than many.

Where callers come one after the other, each goes the short way (`lone`), if the store has one, and the task is not woken for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from uuid import UUID

from perdure import limits
from perdure.engine.log.contract import LogStore, Proposal, StaleWriter
from perdure.engine.log.decide import Outcome, Plan, Request, moved, plan
from perdure.engine.log.fork_rows import ids_known_before_ms
from perdure.engine.log.heads import KnownHeads
from perdure.engine.log.lone import LoneAppends
from perdure.engine.log.records import AgentRecord, Head, Position, SealedEvent, TailEvent
from perdure.engine.log.together import Together
from perdure.engine.log.trails import Trails
from perdure.engine.log.waiting import Deadlines, Waiting, tell
from perdure.engine.steps import reach
from perdure.errors import Overloaded, Unavailable

__all__ = ["Writer"]

STALE_RETRIES_MAX = 5
LOOKS_MAX = 8
"""Pages of others' events that a look ahead reads."""
HALVED_FROM = 16
"""Callers of one batch from which on they are told in two halves."""
COMPANY_BATCHES = 16
"""After others' events were met, so many batches without any have to pass before this writer is taken to be alone."""


class Writer:
    """Appends requests to a store, many at a time. Start it inside a running event loop; `close` waits for what is queued."""

    def __init__(
        self,
        store: LogStore,
        known: KnownHeads | None = None,
        *,
        queue_max: int = limits.WRITER_QUEUE_MAX,
        queue_bytes_max: int = limits.WRITER_QUEUE_BYTES_MAX,
    ) -> None:
        self._store = store
        self._queue: deque[Waiting] = deque()
        self._queue_max = queue_max
        self._queued_bytes = 0
        self._queue_bytes_max = queue_bytes_max
        self._writing: list[Waiting] = []
        self._company = 0
        self._wake = asyncio.Event()
        self._closing = False
        self.known = known or KnownHeads()
        self.trails = Trails()
        self._lone = LoneAppends(store, self.known)
        self._resting = False
        """The task waits for appends, and callers have come one after the other lately: the next one goes the short way."""
        self._sent_alone: SealedEvent | None = None
        """What is under way the short way; it is the one in `_writing` then."""
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(lambda: (*self._writing, *self._queue))
        self._tails: Together[tuple[int, int], list[SealedEvent]] = Together(self._read_tails, limits.PARTITIONS_MAX)
        self._task = asyncio.create_task(self._run(), name="perdure-writer")

    async def append(self, request: Request, timeout_s: float = limits.APPEND_TIMEOUT_S) -> Outcome:
        """What became of the request. Raises Overloaded, Unavailable, DeadlineExceeded (then its outcome is unknown; a retry is safe)."""
        return await self.submit(request, timeout_s)

    def submit(self, request: Request, timeout_s: float = limits.APPEND_TIMEOUT_S) -> asyncio.Future[Outcome]:
        """As `append`, without waiting: Overloaded and Unavailable of a closed log are raised at once, the rest comes with the future."""
        if self._closing:
            raise Unavailable("the log is closed")
        events = size_bytes = 0
        for item in request:
            events += len(item.drafts)
            for draft in item.drafts:
                size_bytes += len(draft.payload)
        queue = self._queue
        if queue and (len(queue) >= self._queue_max or self._queued_bytes + size_bytes > self._queue_bytes_max):
            raise Overloaded(f"{len(queue)} appends with {self._queued_bytes} bytes are waiting", hint="slow down, or add a writer process")
        done: asyncio.Future[Outcome] = self._loop.create_future()
        deadline_s = self._loop.time() + timeout_s
        waiting = Waiting(request, done, deadline_s, timeout_s, events, size_bytes)
        if not (self._resting and self._send_alone(waiting)):
            queue.append(waiting)
            self._queued_bytes += size_bytes
            if len(queue) == 1:
                self._rouse()
        self._deadlines.note(deadline_s)
        return done

    def _rouse(self) -> None:
        """Let the task look what there is to do; while an append goes the short way it has to wait for that."""
        self._resting = False
        if self._sent_alone is None:
            self._wake.set()

    def _send_alone(self, waiting: Waiting) -> bool:
        """Send it the short way; False where it may not go there."""
        found = self._lone.decide(waiting.request)
        if found is None or self._lone.insert is None:
            return False
        reach("writer.taken")
        row, after = found
        self._lone.insert(row, after, self._told_alone)
        self._resting, self._sent_alone, self._writing = False, row, [waiting]
        return True

    def _told_alone(self, stands: bool, problem: BaseException | None) -> None:
        """What came of the append that went the short way."""
        row, (waiting,) = self._sent_alone, self._writing
        self._sent_alone, self._writing = None, []
        if problem is not None:
            self._fail([waiting], problem)
        elif stands and row is not None:
            reach("writer.written")
            if self.trails:
                self.trails.note([row])
            tell([(waiting, self._lone.stands(row))])
        else:
            self._queue.appendleft(waiting)
            self._queued_bytes += waiting.size_bytes
        if self._queue or self._closing:
            self._rouse()
        else:
            self._resting = True

    async def look_ahead(self, record: AgentRecord) -> list[SealedEvent]:
        """As `EventLog.look_ahead`. Nothing but the number of round trips of appends depends on it: what is known is checked by each of them."""
        partition = record.partition
        await self._learn({record.agent_key: record}, {partition})
        found: list[SealedEvent] = []
        for _ in range(LOOKS_MAX):
            at = self.known.positions.get(partition)
            if at is None:
                break
            page = await self._tails.get((partition, at.offset))
            found += page
            # Meanwhile a batch may have told more; and what was removed leaves a hole, behind which nothing is known.
            if not page or self.known.positions.get(partition) != at or page[-1].offset != at.offset + len(page):
                break
            self.known.absorb([_tail_event(event) for event in page])
            if len(page) < limits.READ_PAGE_EVENTS:
                break
        return found

    def learn(self, events: Sequence[SealedEvent]) -> bool:
        """Events of one partition, in order of offset, that somebody else committed and has told: whether this writer knows now where they end. It
        does not where something that it has not seen lies before them."""
        if not events:
            return True
        at = self.known.positions.get(events[0].partition)
        new = [event for event in events if at is not None and event.offset > at.offset]
        if at is None or any(event.offset != at.offset + number for number, event in enumerate(new, 1)):
            return False
        self.known.absorb([_tail_event(event) for event in new])
        return True

    async def _read_tails(self, wanted: Sequence[tuple[int, int]]) -> list[list[SealedEvent]]:
        """What stands after each of these offsets of a partition."""
        pages: dict[tuple[int, int], list[SealedEvent]] = {at: [] for at in wanted}
        after = dict(sorted(wanted, reverse=True))  # of two offsets of a partition, the earlier one
        for event in await self._store.read_tails(after, limits.READ_PAGE_EVENTS):
            for partition, offset in wanted:
                if partition == event.partition and offset < event.offset:
                    pages[partition, offset].append(event)
        return list(pages.values())

    async def close(self) -> None:
        """Write what is queued, then stop."""
        self._closing = True
        self._rouse()
        await self._task
        await self._tails.close()
        self._deadlines.close()

    async def _run(self) -> None:
        told: list[tuple[Waiting, Outcome]] = []
        singly = True
        while True:
            batch = self._take()
            if not batch:
                tell(told)
                told = []
                if self._closing:
                    return
                self._wake.clear()
                self._resting = singly
                await self._wake.wait()
                continue
            reach("writer.taken")
            writing: Awaitable[list[Outcome]] = self._write([waiting.request for waiting in batch])
            if told:
                # The task's first step decides and sends; it comes before the callers that are told now.
                writing = asyncio.create_task(writing, name="perdure-batch")  # type: ignore[arg-type]
                tell(told)
            told = await self._finish(batch, writing)
            singly = len(batch) == 1 and not self._company

    async def _finish(self, batch: list[Waiting], writing: Awaitable[list[Outcome]]) -> list[tuple[Waiting, Outcome]]:
        """Wait for the commit; who is still to be told what."""
        try:
            outcomes = await writing
        except Exception as problem:
            self._fail(batch, problem)
            return []
        finally:
            self._writing = []
        reach("writer.written")
        told = list(zip(batch, outcomes, strict=True))
        if not self._company and not self._queue and len(batch) >= HALVED_FROM:
            half = len(batch) // 2
            tell(told[:half])
            del told[:half]
            await asyncio.sleep(0)
        return told

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        events = size_bytes = 0
        queue = self._queue
        while queue:
            waiting = queue[0]
            if not waiting.done.done():  # else its caller gave up before anything was sent
                events += waiting.events
                size_bytes += waiting.size_bytes
                if batch and (events > limits.BATCH_EVENTS_MAX or size_bytes > limits.BATCH_BYTES_MAX):
                    break
                batch.append(waiting)
            queue.popleft()
            self._queued_bytes -= waiting.size_bytes
        self._writing = batch
        return batch

    def _fail(self, batch: Sequence[Waiting], problem: BaseException) -> None:
        # After a failure it is not known what was committed, so neither are the heads.
        self.known.forget({item.record.partition for waiting in batch for item in waiting.request})
        for waiting in batch:
            if not waiting.done.done():
                waiting.done.set_exception(problem)

    async def _write(self, requests: list[Request]) -> list[Outcome]:
        records = {item.record.agent_key: item.record for request in requests for item in request}
        if not records:
            return [plan(0, [request], {}, {}, {}, {}).outcomes[0] for request in requests]
        partitions = {record.partition for record in records.values()}
        for _ in range(STALE_RETRIES_MAX):
            await self._learn(records, partitions)
            try:
                return await self._commit(requests, records, partitions)
            except StaleWriter:
                self.known.forget(partitions)
        raise Unavailable("other writers are faster than this one can follow", hint="retry")

    async def _learn(self, records: Mapping[int, AgentRecord], partitions: set[int]) -> None:
        known, sure = self.known, False
        while not sure:
            # Positions before heads: events between the two readings are then seen again in a tail, never missed.
            if partitions - known.positions.keys():
                for partition, position in (await self._store.positions()).items():
                    known.positions.setdefault(partition, position)
            missing = [records[agent] for agent in known.missing(records)]
            if not missing:
                return
            with known.reading([record.agent_key for record in missing]) as learn:
                heads = await self._store.heads(missing)
                sure = learn([(record.agent_key, record.partition, head) for record, head in zip(missing, heads, strict=True)])

    async def _commit(self, requests: list[Request], records: Mapping[int, AgentRecord], partitions: set[int]) -> list[Outcome]:
        known = self.known
        decided: list[Plan] = []
        self._company = max(0, self._company - 1)
        events = dict.fromkeys(partitions, 0)
        for request in requests:
            for item in request:
                events[item.record.partition] += len(item.drafts)
        forks = [record for record in records.values() if record.past]
        # Where the store was told that partitions stand. What this process learns on other ways meanwhile is newer, and not what the store goes by.
        positions: dict[int, Position] = {partition: known.positions[partition] for partition in partitions}

        def propose(now_us: int, tail: Sequence[TailEvent], found: Mapping[tuple[int, UUID], int]) -> Proposal:
            if tail:
                self._company = COMPANY_BATCHES
                known.absorb(tail)
                positions.update({event.partition: Position(event.offset, event.time_us) for event in tail})
            heads: dict[int, Head] = known.view(records)
            look = {partition: self._store.look_before_ms(partition, at.offset, events[partition]) for partition, at in positions.items()}
            for record in forks:
                look[record.partition] = max(look[record.partition], ids_known_before_ms(record))
            decided[:] = [plan(now_us, requests, heads, positions, found, look)]
            return decided[0].proposal

        await self._store.append(dict(positions), propose)
        done = decided[0]
        rows = done.proposal.rows
        if self.trails:
            self.trails.note(rows)
        outcomes = self._put_behind(requests, done, positions) if done.proposal.behind else done.outcomes
        ends = {row.partition: Position(row.offset, row.time_us) for row in rows}
        known.commit(done.heads, {agent: records[agent].partition for agent in done.heads}, ends)
        return outcomes

    def _put_behind(self, requests: Sequence[Request], done: Plan, positions: Mapping[int, Position]) -> list[Outcome]:
        """What became of the requests, and what is known, where the store has put the rows behind events of others."""
        behind = done.proposal.behind
        by = {event.partition: event.offset - positions[event.partition].offset for event in behind}
        self._company = COMPANY_BATCHES
        self.known.absorb(behind)
        return [moved(request, outcome, by) for request, outcome in zip(requests, done.outcomes, strict=True)]


def _tail_event(event: SealedEvent) -> TailEvent:
    return TailEvent(event.partition, event.offset, event.time_us, event.agent_key, event.version, event.epoch, event.type, event.chain)
