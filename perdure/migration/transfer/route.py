"""What all transfers of one run share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from perdure.engine.log.arrival_rows import Swap
from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.records import AgentRecord
from perdure.migration.transfer.clocks import Clock
from perdure.migration.transfer.grouped import Grouped
from perdure.migration.transfer.inheritance import Inheritance
from perdure.migration.transfer.pasts import Pasts, Progress
from perdure.migration.transfer.sides import Side

__all__ = ["Route"]


class Route(NamedTuple):
    """From one engine to another. make: a row of an agent at the target, or the one that is there. floor: of an agent at the source; swap: of its
    owner there. clock: the target's. ready: awaited before a source is shut, with the bytes that were copied; by then every process knows that its
    agent goes. progress: (events, bytes) of each page that was put in."""

    source: Side
    target: Side
    keys: Inheritance
    pasts: Pasts
    clock: Clock
    make: Grouped[AgentRecord, AgentRecord]
    floor: Grouped[AgentRecord, Floor]
    swap: Grouped[Swap, bool]
    ready: Callable[[int], Awaitable[None]]
    progress: Progress | None = None

    async def close(self) -> None:
        """Wait for what is on its way."""
        for each in (self.make, self.floor, self.swap):
            await each.close()
