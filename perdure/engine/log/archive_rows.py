"""Taking a log out whole and putting it in elsewhere: what backup, restore and moves need of a store beyond reading and appending.

What is loaded keeps its place: offsets, versions, times and chain hashes are those of the log that it comes from. So loading is only for a log
that nobody has written to, and each call begins where the last ended; a store refuses what would leave a hole or stand twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.records import AgentRecord, Position, SealedEvent
from perdure.errors import Conflict, IntegrityError

__all__ = ["ArchiveRows", "check_follows", "lower_generation"]


class ArchiveRows(Protocol):
    """The part of `LogStore` that dumps and loads. All methods may raise `Unavailable`."""

    async def scopes(self) -> list[str]:
        """Every scope that has control documents, sorted."""
        ...

    async def list_blobs(self, after: tuple[str, bytes] | None, limit: int) -> list[tuple[str, bytes]]:
        """A page of (tenant, name) of the large values that are kept, in an order of the store's own."""
        ...

    async def removed_ids(self, agent: AgentRecord) -> list[tuple[UUID, int]]:
        """(id, version) of the agent's events that were removed."""
        ...

    async def load_events(self, partition: int, events: Sequence[SealedEvent]) -> None:
        """Put in events that follow what the partition holds, with this store's own keys; offsets may have holes where events were removed.

        All or none, and durable at the latest with the store's next write of another kind. Raises IntegrityError when they do not follow."""
        ...

    async def load_floor(self, agent: AgentRecord, floor: Floor, removed: Sequence[tuple[UUID, int]]) -> None:
        """Put in where an agent's events begin, above where it was said to before; what it has below that is not read any more. removed: ids
        and versions of events that were there, in whichever log."""
        ...

    async def mend_event(self, event: SealedEvent) -> None:
        """Put an event in the place of whatever stands at its offset, or at its version of the agent: the one exception to "nothing is ever
        updated", for a row that was damaged. The caller has proved that it is the event that was written."""
        ...

    async def set_generation(self, generation: int) -> None:
        """Begin a generation: tokens of older ones are stale from now on, and processes that know an older one are cut off
        where the store can do that. It only grows: a lower one is refused with Conflict."""
        ...


def check_follows(partition: int, stands: Position, events: Sequence[SealedEvent], *, arrivals: bool) -> None:
    """Raise IntegrityError unless the events go on from where the partition stands. arrivals: agents came into the log from elsewhere, with times
    of their own."""
    offset, time_us = stands
    for event in events:
        if event.partition != partition or event.offset <= offset or (event.time_us < time_us and not arrivals):
            raise IntegrityError(
                f"event {event.id} at offset {event.offset} does not follow offset {offset} of partition {partition}", partition=partition
            )
        offset, time_us = event.offset, event.time_us


def lower_generation(standing: int, wanted: int) -> Conflict:
    """The error of a generation that does not grow."""
    return Conflict(f"the log is of generation {standing}; {wanted} would not be newer")
