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

from perdure.engine.log.contract import LogStore, Position, SealedEvent
from perdure.engine.log.decide import Plan, Request, Written, plan
from perdure.engine.log.heads import KnownHeads

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

    def decide(self, request: Request) -> tuple[Plan, Position] | None:
        """What an append of one event becomes, and what it follows; None for all that needs to look into the log first."""
        if self.insert is None or len(request) != 1:
            return None
        item = request[0]
        if len(item.drafts) != 1 or item.owner is not None or item.record.past:
            return None
        agent, partition = item.record.agent_key, item.record.partition
        head, after = self._known.head(agent), self._known.positions.get(partition)
        if head is None or after is None or not after.offset:
            return None
        look = {partition: self._store.look_before_ms(partition, after.offset, 1)}
        # The store is on this machine: its clock is this one.
        planned = plan(time.time_ns() // 1000, (request,), {agent: head}, {partition: after}, {}, look)
        if type(planned.outcomes[0]) is not Written or planned.proposal.lookups:
            return None
        return planned, after
