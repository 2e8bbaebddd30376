"""The group-commit writer: one a process and log.

Appends queue up while a batch commits; the next batch takes what has gathered, so it grows by itself under load, and one caller alone waits for
nobody. All rules are in `decide`; this is the shell that feeds it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from uuid import UUID

from perdure import limits
from perdure.engine.log.contract import AgentRecord, Head, LogStore, Position, Proposal, StaleWriter, TailEvent
from perdure.engine.log.decide import Outcome, Plan, Request, plan
from perdure.engine.log.heads import KnownHeads
from perdure.engine.steps import reach
from perdure.errors import DeadlineExceeded, Overloaded, Unavailable

__all__ = ["Writer"]

STALE_RETRIES_MAX = 5


class _Waiting:
    """One caller's request and where its outcome goes."""

    __slots__ = ("done", "events", "request", "size_bytes")

    def __init__(self, request: Request, done: asyncio.Future[Outcome]) -> None:
        self.request = request
        self.done = done
        self.events = sum(len(item.drafts) for item in request)
        self.size_bytes = sum(len(draft.payload) for item in request for draft in item.drafts)


class Writer:
    """Appends requests to a store, many at a time. Start it inside a running event loop; `close` waits for what is queued."""

    def __init__(self, store: LogStore, known: KnownHeads | None = None, *, queue_max: int = limits.WRITER_QUEUE_MAX) -> None:
        self._store = store
        self._queue: deque[_Waiting] = deque()
        self._queue_max = queue_max
        self._wake = asyncio.Event()
        self._closing = False
        self.known = known or KnownHeads()
        self._task = asyncio.create_task(self._run(), name="perdure-writer")

    async def append(self, request: Request, timeout_s: float = limits.APPEND_TIMEOUT_S) -> Outcome:
        """What became of the request. Raises Overloaded, Unavailable, DeadlineExceeded (then its outcome is unknown; a retry is safe)."""
        if self._closing:
            raise Unavailable("the log is closed")
        if len(self._queue) >= self._queue_max:
            raise Overloaded(f"{len(self._queue)} appends are waiting", hint="slow down, or add a writer process")
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(request, done))
        self._wake.set()
        # A timer per append would cost more than the append: the handle is cheap, `wait_for` is not.
        timer = done.get_loop().call_later(timeout_s, _expire, done, timeout_s)
        try:
            return await done
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Write what is queued, then stop."""
        self._closing = True
        self._wake.set()
        await self._task

    async def _run(self) -> None:
        while True:
            if not self._queue:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = self._take()
            reach("writer.taken")
            try:
                outcomes = await self._write([waiting.request for waiting in batch])
            except Exception as problem:
                self._fail(batch, problem)
            else:
                reach("writer.written")
                for waiting, outcome in zip(batch, outcomes, strict=True):
                    if not waiting.done.done():
                        waiting.done.set_result(outcome)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        events = size_bytes = 0
        while self._queue:
            waiting = self._queue[0]
            if waiting.done.done():  # its caller gave up before anything was sent
                self._queue.popleft()
                continue
            events += waiting.events
            size_bytes += waiting.size_bytes
            if batch and (events > limits.BATCH_EVENTS_MAX or size_bytes > limits.BATCH_BYTES_MAX):
                break
            batch.append(self._queue.popleft())
        return batch

    def _fail(self, batch: Sequence[_Waiting], problem: Exception) -> None:
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
        known = self.known
        # Positions before heads: events between the two readings are then seen again in a tail, never missed.
        if partitions - known.positions.keys():
            for partition, position in (await self._store.positions()).items():
                known.positions.setdefault(partition, position)
        missing = [records[agent] for agent in known.missing(records)]
        if missing:
            for record, head in zip(missing, await self._store.heads(missing), strict=True):
                known.learn(record.agent_key, record.partition, head)

    async def _commit(self, requests: list[Request], records: Mapping[int, AgentRecord], partitions: set[int]) -> list[Outcome]:
        known = self.known
        decided: list[Plan] = []
        events = sum(len(item.drafts) for request in requests for item in request)

        def propose(now_us: int, tail: Sequence[TailEvent], found: Mapping[tuple[int, UUID], int]) -> Proposal:
            known.absorb(tail)
            heads: dict[int, Head] = known.view(records)
            positions: dict[int, Position] = {partition: known.positions[partition] for partition in partitions}
            look = {partition: self._store.look_before_ms(partition, at.offset, events) for partition, at in positions.items()}
            decided[:] = [plan(now_us, requests, heads, positions, found, look)]
            return decided[0].proposal

        await self._store.append({partition: known.positions[partition] for partition in partitions}, propose)
        done = decided[0]
        known.commit(done.heads, {agent: records[agent].partition for agent in done.heads}, done.positions)
        return done.outcomes


def _expire(done: asyncio.Future[Outcome], timeout_s: float) -> None:
    if not done.done():
        done.set_exception(DeadlineExceeded(f"the log did not answer within {timeout_s:g} s", hint="retry with the same event ids"))
