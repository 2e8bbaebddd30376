"""The short way of an append that is alone: decided where it comes in, handed to the store's thread at once, written by one statement.

A batch costs a task's wake-up, a transaction of several statements and a look at where its partitions stand. Many callers share that; one
caller after the other pays it for each event. Invariants:

1. *What was decided is still true when it is committed.* The store inserts the row only where its partition's newest event is the very one,
   by offset and time, that was known when it was decided. Partitions are dense, and whatever moves a head is an event, so the head was exact.
2. *What is refused has written nothing.* Somebody else's event, an id or a version that is there already, an id that was removed: the append
   then goes the long way, as if it had just come, and is told there what it is.
3. *Nobody is refused here.* Whether an agent really is not where its caller expects it is decided under the log's lock alone.
4. *One at a time.* While it is under way there is no batch beside it; what comes meanwhile waits for it, and makes the next batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from perdure.engine.log.contract import LogStore
from perdure.engine.log.decide import Request, Written, ids_ahead, plain_row
from perdure.engine.log.heads import KnownHeads
from perdure.engine.log.records import Head, Position, SealedEvent

__all__ = ["Inserted", "LoneAppends", "StoresAlone"]

Inserted = Callable[[bool, BaseException | None], None]
"""Told on the event loop what came of a row: whether it is in the log, durably; or what was raised (then it is not known)."""


@runtime_checkable
class StoresAlone(Protocol):
    """A store on this machine that can insert one row in one step."""

    def insert_alone(self, row: SealedEvent, after: Position, told: Inserted) -> None:
        """Commit the row where its partition's newest event is the one at `after`, and nothing contradicts it; else nothing is written.

        Returns at once. `told` is called in any case, also when whoever wanted the row is gone. Raises Unavailable when the log is closed."""
        ...


class LoneAppends:
    """Decides which appends may go the short way, and what they become there."""

    def __init__(self, store: LogStore, known: KnownHeads) -> None:
        self.insert = store.insert_alone if isinstance(store, StoresAlone) else None
        """`StoresAlone.insert_alone`; None where there is no short way."""
        self._store = store
        self._known = known

    def decide(self, request: Request) -> tuple[SealedEvent, Position] | None:
        """What an append of one event becomes, and what it follows; None for all that needs to look into the log first."""
        if self.insert is None or len(request) != 1 or request[0].record.past:
            return None
        record = request[0].record
        head, after = self._known.head(record.agent_key), self._known.positions.get(record.partition)
        if head is None or after is None or not after.offset:
            return None
        look_before_ms = self._store.look_before_ms(record.partition, after.offset, 1)
        now_us = time.time_ns() // 1000  # the store is on this machine: its clock is this one
        row = plain_row(request[0], head, after.offset + 1, max(now_us, after.time_us), look_before_ms, ids_ahead(now_us))
        return None if row is None else (row, after)

    def stands(self, row: SealedEvent) -> Written:
        """The row is in the log: what follows for who appends next, and the outcome."""
        agent, partition = row.agent_key, row.partition
        head, position = Head(row.version, row.epoch, row.chain), Position(row.offset, row.time_us)
        self._known.commit({agent: head}, {agent: partition}, {partition: position})
        return Written([(row.version, row.offset, row.time_us, row.epoch, row.chain)])
