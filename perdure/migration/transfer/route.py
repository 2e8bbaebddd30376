"""What all transfers of one run share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from perdure.migration.transfer.clocks import Clock
from perdure.migration.transfer.inheritance import Inheritance
from perdure.migration.transfer.pasts import Pasts, Progress
from perdure.migration.transfer.sides import Side

__all__ = ["Route"]


class Route(NamedTuple):
    """From one engine to another. clock: the target's. ready: awaited before a source is shut; by then every process knows that its agent goes.
    progress: (events, bytes) of each page that was put in."""

    source: Side
    target: Side
    keys: Inheritance
    pasts: Pasts
    clock: Clock
    ready: Callable[[], Awaitable[None]]
    progress: Progress | None = None
