"""Builds with a fault in what guards a migration, to prove that the checks see such faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from perdure.engine.log.records import SealedEvent
from perdure.migration.copy import Copy
from perdure.migration.preparation import Preparation
from tests.faults import mutants

__all__ = ["BY_NAME"]


COMMIT_S = 0.3


def acknowledge_long_before() -> None:
    """An append is acknowledged when it has been decided, and written so late that the agent has more of them under way all the time."""
    mutants.COMMIT_S = COMMIT_S
    mutants.acknowledge_early()


def fold_otherwise() -> None:
    """The target's copy is not the fold of the log: it counts one too few."""
    load, follow, take = Copy.load, Copy.follow, Copy.take

    async def load_otherwise(self: Copy, *given: Any, **named: Any) -> None:
        await load(self, *given, **named)
        self.document["count"] -= 1

    async def follow_otherwise(self: Copy, to_version: int | None = None) -> int:
        events = await follow(self, to_version)
        if events:
            self.document["count"] -= 1
        return events

    async def take_otherwise(self: Copy, events: Sequence[SealedEvent]) -> Sequence[SealedEvent]:
        taken = await take(self, events)
        if taken:
            self.document["count"] -= 1
        return taken

    Copy.load = load_otherwise  # type: ignore[method-assign]
    Copy.follow = follow_otherwise  # type: ignore[method-assign]
    Copy.take = take_otherwise  # type: ignore[method-assign]


def fold_otherwise_unseen_by_the_coordinator() -> None:
    """The same, where the copy is not compared with what the coordinator folds."""
    fold_otherwise()

    async def load_only(self: Preparation, *, rests: bool = False) -> None:
        await self.copy.load(to_version=self._driven.migration.witness_version or None, rests=rests)

    Preparation.load = load_only  # type: ignore[method-assign]


def compare_nothing() -> None:
    """The same, and it is not compared with the source either."""
    fold_otherwise_unseen_by_the_coordinator()
    assert callable(Preparation.same)
    Preparation.same = lambda *_: None  # type: ignore[method-assign]


BY_NAME: dict[str, Callable[[], None]] = {
    "no-epoch-check": mutants.drop_the_epoch_check,
    "early-acknowledgement": acknowledge_long_before,
    "another-fold": fold_otherwise,
    "another-fold-without-a-witness": fold_otherwise_unseen_by_the_coordinator,
    "no-verification": compare_nothing,
}
