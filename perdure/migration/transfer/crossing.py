"""Many agents on their way at once.

A small agent costs statements, not bytes, and each that writes waits for the disk. So what is done before its events are copied (its row at the
target is marked) and after they are in (both ends write down that it has moved) is done for a group of agents in lockstep, and what they ask for
goes as one statement. Agents begin by `limits.TRANSFER_GROUP_AGENTS`; what is written down at last waits for as many, for a moment: by then the
agent is served by the target, and its row at the source says where it is. An agent alone waits for nobody. Only what lies between has turns.

Bounds: `at_once` agents are copied, compared or shut at a time, each with two pages in hand and its state of both ends in memory. Beside these at
most `limits.TRANSFER_AGENTS_AHEAD` have their row marked, are being written down, or wait, compared, until every process knows that they go; of
those that wait so, only as many as have `limits.TRANSFER_AHEAD_BYTES` of events together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from perdure import limits
from perdure.errors import Compacted, PerdureError
from perdure.migration.transfer.clocks import Clock
from perdure.migration.transfer.grouped import Grouped, Patience
from perdure.migration.transfer.inheritance import Inheritance
from perdure.migration.transfer.mover import Mover
from perdure.migration.transfer.pasts import Pasts
from perdure.migration.transfer.records import TransferRecord
from perdure.migration.transfer.reports import Teller
from perdure.migration.transfer.route import Route
from perdure.migration.transfer.sides import Side

__all__ = ["Crossing", "Turn"]

RETRIES_MAX = 5
RETRY_PAUSE_S = 1.0
PATIENCE_S = 0.25


class Turn(msgspec.Struct, frozen=True):
    """A transfer. after: what tells that those are over that it goes on from. over: what tells it of this one. is_fork: it takes a past along."""

    record: TransferRecord
    after: Sequence[asyncio.Event]
    over: asyncio.Event
    is_fork: bool


class Crossing:
    """From one engine to another. See the module."""

    def __init__(self, source: Side, target: Side, keys: Inheritance, pasts: Pasts, teller: Teller, *, at_once: int) -> None:
        group = limits.TRANSFER_AGENTS_AHEAD
        grouped = Grouped(target.store.create_agents, group), Grouped(source.store.floors, group), Grouped(source.store.swap_owners, group)
        clock = Clock(target.store.clock_us)
        self._route = Route(source, target, keys, pasts, clock, *grouped, self._wait_until_known, progress=teller.copied)
        self._teller = teller
        self._room = asyncio.Semaphore(at_once + group)
        self._turn = asyncio.Semaphore(at_once)
        self._begin = Grouped(_begin_all, group)
        self._end = Grouped(_end_all, group)
        self._others = Patience(lambda: min(limits.TRANSFER_GROUP_AGENTS, self._left), PATIENCE_S)
        self._left = 0
        self._ahead_bytes = 0
        self._told_s = 0.0

    def mover(self, record: TransferRecord) -> Mover:
        """Of one agent."""
        return Mover(self._route, record)

    async def move(self, turns: Sequence[Turn]) -> None:
        """Move the agents, of which every process has just been told. What goes wrong with one is in its record, and holds up no other."""
        self._told_s = time.monotonic()
        self._left = len(turns)
        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(turns), limits.TRANSFER_GROUP_AGENTS):
                    together = turns[start : start + limits.TRANSFER_GROUP_AGENTS]
                    for _ in together:
                        await self._room.acquire()
                    for turn in together:
                        group.create_task(self._one(turn)).add_done_callback(self._over)
        finally:
            for each in (self._begin, self._end, self._route):
                await each.close()

    def _over(self, _: asyncio.Task[None]) -> None:
        self._left -= 1
        self._room.release()

    async def _one(self, turn: Turn) -> None:
        for each in turn.after:
            await each.wait()
        try:
            done, moved = await self._persistently(turn), True
        except PerdureError as problem:
            done, moved = await self._give_up(turn.record, problem), False
        turn.over.set()
        self._teller.over(done, moved=moved)

    async def _persistently(self, turn: Turn) -> TransferRecord:
        """A server that is away for a moment is waited for: the agent may be shut at this time."""
        for attempt in range(RETRIES_MAX):
            try:
                return await self._attempt(turn)
            except PerdureError as problem:
                # Events that were removed while they were copied: the next attempt begins behind them.
                if not (problem.retryable or isinstance(problem, Compacted)) or attempt == RETRIES_MAX - 1:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S * (attempt + 1))
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, turn: Turn) -> TransferRecord:
        mover = self.mover(turn.record)
        # A fork may take long to begin: events of its past go first. Others do not wait for it.
        if await (mover.begin() if turn.is_fork else self._begin(mover)):
            async with self._turn:
                await mover.move()
        await mover.forward()
        turn.over.set()  # it is there, whatever is still to be written down
        await self._others()
        return await self._end(mover)

    async def _give_up(self, record: TransferRecord, problem: PerdureError) -> TransferRecord:
        """What cannot be is taken back; what may come later is left for `resume`."""
        reason = f"{problem.code}: {problem.message}"
        if not problem.retryable:
            try:
                return await self.mover(record).abort(reason)
            except PerdureError as second:
                reason = f"{reason}; and it could not be taken back: {second.message}"
        return msgspec.structs.replace(record, problem=reason)

    async def _wait_until_known(self, bytes: int) -> None:
        """Twice what a process may go without looking at the notices. Meanwhile it is another agent's turn."""
        left_s = self._told_s + 2 * limits.MOVES_FRESH_S - time.monotonic()
        if left_s <= 0:
            return
        if self._ahead_bytes + bytes > limits.TRANSFER_AHEAD_BYTES:
            await asyncio.sleep(left_s)
            return
        self._ahead_bytes += bytes
        self._turn.release()
        try:
            await asyncio.sleep(left_s)
        finally:
            await self._turn.acquire()
            self._ahead_bytes -= bytes


async def _begin_all(movers: Sequence[Mover]) -> list[bool | BaseException]:
    return await asyncio.gather(*(mover.begin() for mover in movers), return_exceptions=True)


async def _end_all(movers: Sequence[Mover]) -> list[TransferRecord | BaseException]:
    return await asyncio.gather(*(mover.end() for mover in movers), return_exceptions=True)
