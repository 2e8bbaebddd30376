"""The snapshotter: follows the log and makes snapshots of the agents that are due for one.

Any number of them share the partitions. What always holds:

- **No agent is forgotten.** A partition's position is kept behind every agent that is due and has no snapshot yet (`waiting`), and how many
  events an agent is behind follows from its version and its snapshot's (`tally`). A snapshotter that dies is gone on from by the next.
- **Bounded.** Agents that wait, agents that are remembered, states in memory at once: each has its limit. At the limit the log is read no
  further, which costs nothing: the log keeps it. A store that is away is waited for, and holds up snapshots, not the log.
- **Twice is no harm.** Two snapshotters that work on one agent for a moment make one snapshot: the registry takes one.

Steps for fault tests: snapshotter.due, .made, .kept, and those of the writer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.floor_rows import Written
from perdure.engine.log.fork_rows import begins_at
from perdure.engine.log.records import AgentName
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.engine.steps import reach
from perdure.engine.stopping import rest
from perdure.errors import Conflict, IntegrityError, PerdureError, Unavailable
from perdure.limits import SNAPSHOTTER_PAGE_OFFSETS, SNAPSHOTTER_STATE_BYTES_MAX, SNAPSHOTTER_WAITING_MAX
from perdure.snapshots.budget import ByteBudget
from perdure.snapshots.cadence import Cadence, Trigger
from perdure.snapshots.shares import RENEW_INTERVAL_S, PartitionShare
from perdure.snapshots.tally import Tally
from perdure.snapshots.waiting import Due, Waiting

__all__ = ["SCOPE", "Make", "Snapshotter", "SnapshotterStatus"]

SCOPE: Final = "snapshotter"
"""Scope of the documents that hold positions; their names are the partitions' numbers."""
PARALLEL_DEFAULT: Final = 4
"""Agents whose snapshots are made at once."""
POLL_S: Final = 0.5
REST_S: Final = 0.02
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 10.0
KEEP_INTERVAL_S: Final = 1.0
STOP_TIMEOUT_S: Final = 15.0
FAILED_PAUSE_S: Final = 60.0
"""An agent whose snapshot failed for a reason of its own is left alone for so long."""
STATE_WEIGHT: Final = 4
"""A state in memory takes about so many times the bytes of its cells."""

Make = Callable[[AgentName, Trigger], Awaitable[SnapshotRow]]
"""Makes a snapshot of the agent's newest version, or returns the one that stands there."""

_log = logging.getLogger(__name__)


class SnapshotterStatus(msgspec.Struct):
    """What a snapshotter has done since it started. waiting: agents due and not done. problem: the newest reason of a failure, or ''."""

    made: int = 0
    failed: int = 0
    retries: int = 0
    waiting: int = 0
    problem: str = ""


class _Partition(msgspec.Struct):
    read: int
    kept: int
    revision: int


class Snapshotter:
    """One process's share of the work. make: makes one snapshot; see the module."""

    def __init__(
        self,
        store: LogStore,
        make: Make,
        *,
        cadence: Cadence | None = None,
        parallel: int = PARALLEL_DEFAULT,
        state_bytes_max: int = SNAPSHOTTER_STATE_BYTES_MAX,
        waiting_max: int = SNAPSHOTTER_WAITING_MAX,
    ) -> None:
        self.status = SnapshotterStatus()
        self._store = store
        self._make = make
        self._parallel = parallel
        self._budget = ByteBudget(state_bytes_max)
        self._waiting_max = waiting_max
        self._share = PartitionShare(store, SCOPE)
        self._tally = Tally(cadence or Cadence())
        self._waiting = Waiting()
        self._partitions: dict[int, _Partition] = {}
        self._failed: dict[int, float] = {}
        self._room = asyncio.Event()
        self._changed = asyncio.Event()
        self._work = asyncio.Semaphore(0)
        self._stopping = asyncio.Event()
        self._kept_s = 0.0
        self._draining = 0

    async def run(self, stop: asyncio.Event, *, until_drained: bool = False) -> None:
        """Make snapshots until `stop` is set, or once until all is done. Servers that are away are waited for; what is in hand is finished."""
        if not until_drained:
            await self._run(stop)
            return
        running = asyncio.create_task(self._run(stop))
        try:
            await _first_of(self.drain(), asyncio.shield(running))
        finally:
            stop.set()
            await running

    async def _run(self, stop: asyncio.Event) -> None:
        self._stopping = stop
        workers = [asyncio.create_task(self._worker(), name="perdure-snapshotter") for _ in range(self._parallel)]
        tending = asyncio.create_task(self._tend(), name="perdure-snapshotter-leases")
        try:
            while not stop.is_set():
                for task in (*workers, tending):
                    if task.done():
                        task.result()
                await self._turn(stop)
        finally:
            await self._end(workers, tending)

    async def drain(self) -> None:
        """While `run` runs: until everything that is in the log now has been looked at, by whichever snapshotter, and what was due is made."""
        self._draining += 1
        self._changed.set()
        try:
            await self._drained()
        finally:
            self._draining -= 1

    async def _drained(self) -> None:
        target = {partition: position.offset for partition, position in (await self._store.positions()).items() if position.offset}
        while True:
            kept = {document.name: _offset(document.value) for document in await self._store.list_documents(SCOPE)}
            if all(kept.get(str(partition), 0) >= offset for partition, offset in target.items()):
                return
            await asyncio.sleep(POLL_S / 5)

    # --- following the log ---

    async def _turn(self, stop: asyncio.Event) -> None:
        signal = self._store.signal()
        try:
            grown = await self._follow()
            await self._keep()
        except Unavailable as problem:
            self._note(problem)
            self.status.retries += 1
            await rest(stop, RETRY_FIRST_S * 5)
            return
        if not grown:
            # A little rest first, so that a log that grows all the time is read by the page.
            await rest(stop, REST_S if self._draining else POLL_S / 2)
            await _first_of(signal.wait(POLL_S), self._changed.wait(), stop.wait())
            self._changed.clear()

    async def _follow(self) -> bool:
        """Read one page of each partition that has grown; whether there was any."""
        owned = self._share.owned
        for partition in set(self._partitions) - set(owned):
            del self._partitions[partition]
            self._waiting.drop(partition)
        grown = False
        for partition, end in (await self._store.positions()).items():
            if partition in owned:
                known = self._partitions.get(partition) or await self._load(partition)
                if known.read < end.offset:
                    grown = True
                    await self._read(partition, known, end.offset)
        return grown

    async def _load(self, partition: int) -> _Partition:
        document = await self._store.get_document(SCOPE, str(partition))
        offset = _offset(document.value) if document else 0
        known = self._partitions[partition] = _Partition(offset, offset, document.revision if document else 0)
        return known

    async def _read(self, partition: int, known: _Partition, end: int) -> None:
        await self._wait_for_room()
        after = known.read
        limit = min(SNAPSHOTTER_PAGE_OFFSETS, end - after)
        page = await self._store.written(partition, after, limit)
        while strange := self._tally.unknown(written.agent_key for written in page):  # a worker may forget one meanwhile
            await self._learn([written for written in page if written.agent_key in strange])
        for written in page:
            trigger = self._tally.saw(written.agent_key, written.version, written.bytes, written.events)
            if trigger is not None and time.monotonic() >= self._failed.get(written.agent_key, 0.0):
                self._let_wait(written, partition, trigger, after)
        self._tally.trim()
        known.read = after + limit

    async def _learn(self, strange: list[Written]) -> None:
        found = await self._store.agents([AgentName(written.tenant, written.agent) for written in strange])
        agents = [agent for agent in found if agent is not None]
        rows = await self._store.newest_snapshots(agents)
        for agent, row in zip(agents, rows, strict=True):
            # A fork reads what it shares with the help of its past's snapshots.
            self._tally.learn(agent.agent_key, row.version if row else begins_at(agent), row.plain_bytes if row else 0)

    def _let_wait(self, written: Written, partition: int, trigger: Trigger, after: int) -> None:
        weight = STATE_WEIGHT * self._tally.state_bytes(written.agent_key)
        due = Due(AgentName(written.tenant, written.agent), written.agent_key, partition, trigger, weight)
        if self._waiting.add(due, after):
            reach("snapshotter.due")
            self.status.waiting = len(self._waiting)
            self._work.release()

    async def _wait_for_room(self) -> None:
        while self._waiting.queued >= self._waiting_max and not self._stopping.is_set():
            self._room.clear()
            await self._keep()
            await _first_of(self._room.wait(), self._stopping.wait())

    async def _keep(self) -> None:
        """Write down how far partitions are done."""
        if time.monotonic() - self._kept_s < KEEP_INTERVAL_S and not self._draining:
            return
        self._kept_s = time.monotonic()
        for partition, known in list(self._partitions.items()):
            position = self._waiting.position(partition, known.read)
            if position <= known.kept or partition not in self._share.owned:
                continue
            value = msgspec.msgpack.encode(position)
            document = await self._store.put_document(SCOPE, str(partition), value, expected=known.revision)
            reach("snapshotter.kept")
            if document is None:  # another snapshotter wrote it: what is remembered here is old
                self._waiting.drop(partition)
                del self._partitions[partition]
            else:
                known.kept, known.revision = position, document.revision

    # --- making snapshots ---

    async def _worker(self) -> None:
        while True:
            await self._work.acquire()
            due = self._waiting.take()
            if due is None:
                continue  # its partition went to another
            self._room.set()
            async with self._budget.taken(due.weight_bytes):
                if await self._one(due):
                    self._waiting.done(due)
            self.status.waiting = len(self._waiting)
            if not self.status.waiting:
                self._changed.set()

    async def _one(self, due: Due) -> bool:
        """Make one snapshot, waiting for servers that are away as long as it takes; False when the snapshotter stops first."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                row = await self._make(due.name, due.trigger)
            except Unavailable as problem:
                self._note(problem)
                self.status.retries += 1
                await rest(self._stopping, delay_s)
                if self._stopping.is_set():
                    return False
                delay_s = min(RETRY_MAX_S, 2 * delay_s)
            except Conflict as problem:  # a newer one was made elsewhere; it is learned when the agent is seen again
                self._tally.forget(due.agent_key)
                self._note(problem)
                return True
            except PerdureError as problem:
                self._note(problem)
                self.status.failed += 1
                self._tally.forget(due.agent_key)
                self._failed[due.agent_key] = time.monotonic() + FAILED_PAUSE_S
                _log.warning("no snapshot of %s/%s: %s", due.name.tenant, due.name.agent, problem)
                return True
            else:
                self._tally.learn(due.agent_key, row.version, row.plain_bytes)
                self._failed.pop(due.agent_key, None)
                self.status.made += 1
                reach("snapshotter.made")
                return True

    # --- leases, and the end ---

    async def _tend(self) -> None:
        while True:
            try:
                await self._share.tend()
                self._changed.set()
            except Unavailable as problem:
                self._note(problem)
            await asyncio.sleep(RENEW_INTERVAL_S)

    async def _end(self, workers: list[asyncio.Task[None]], tending: asyncio.Task[None]) -> None:
        """Finish what is in hand, within bounds; keep positions; let others in."""
        self._stopping.set()
        while self._waiting.take() is not None:
            pass
        busy = [asyncio.create_task(self._budget.idle())]
        await asyncio.wait(busy, timeout=STOP_TIMEOUT_S)
        for task in (*busy, *workers, tending):
            task.cancel()
        await asyncio.gather(*busy, *workers, tending, return_exceptions=True)
        self._kept_s = 0.0
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._keep()
                await self._share.give_back()
        except (Unavailable, TimeoutError) as problem:
            _log.warning("the snapshotter's positions could not be kept at the end: %s", problem)

    def _note(self, problem: PerdureError) -> None:
        if self.status.problem != str(problem):
            _log.info("snapshotter: %s", problem)
        self.status.problem = str(problem)


def _offset(value: bytes) -> int:
    try:
        return msgspec.msgpack.decode(value, type=int)
    except msgspec.MsgspecError as problem:
        raise IntegrityError(
            f"a snapshotter's position cannot be read: {problem}", hint="delete it: the log is looked through again"
        ) from problem


async def _first_of(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
