"""What a target does before anything is touched: the copy is loaded, follows the log, and is compared, while the source serves.

A copy that differs ends the migration here (`Aborted`), and the source never notices.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from perdure.engine import steps
from perdure.engine.log.signal import Signal
from perdure.migration.copy import Copy
from perdure.migration.driven import Aborted, Driven
from perdure.migration.source import SourceLink

__all__ = ["Preparation"]

LOOKS_MAX: Final = 3
LOOK_S: Final = 0.05
BEAT_S: Final = 2.0
"""Pause between two signs of life while a large agent is copied."""
COMPARE_S: Final = 0.5
"""Pause between two comparisons of a copy that waits."""
SHADOW_COMPARISONS_MIN: Final = 3
"""How often a blue-green migration compares before it flips."""

Result = TypeVar("Result")


class Preparation:
    """Of one copy. signal: of the log, when there is more to follow."""

    def __init__(self, driven: Driven, source: SourceLink, copy: Copy, signal: Signal) -> None:
        self._driven = driven
        self._source = source
        self._signal = signal
        self.copy = copy

    async def bring(self) -> None:
        """Load the copy and follow the log until little is missing."""
        if self._driven.migration.phase != "pre_copy":  # as an earlier session of this node has left it
            await self._driven.enter("pre_copy")
        await self.load(rests=True)
        events, rounds, converged = await self._beside(self.copy.catch_up())
        self._driven.facts.update(events=self.copy.loaded_events + events, rounds=rounds, copied_version=self.copy.version)
        if not converged:
            raise Aborted(f"the copy does not catch up: it is still behind after {rounds} rounds")

    async def load(self, *, rests: bool = False) -> None:
        """Up to where the coordinator has looked, and compare with what it saw. rests: nobody waits for it, so this node's other agents come
        first."""
        migration, copy = self._driven.migration, self.copy
        began_at = time.monotonic()
        await self._beside(copy.load(to_version=migration.witness_version or None, transfer=migration.transfer, rests=rests))
        steps.reach("migration.target.copied")
        self._driven.facts.update(copy_s=round(time.monotonic() - began_at, 6), events=copy.loaded_events)
        if migration.witness_digest and copy.version == migration.witness_version:
            found = copy.digest()
            self._driven.facts.update(digest_target=found, verified_version=copy.version)
            if found != migration.witness_digest:
                raise Aborted(f"digest mismatch: this node's copy at version {copy.version} is not what the coordinator folds")

    async def _beside(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do what may take long, and meanwhile show that it goes on and look whether it was aborted."""
        task = asyncio.create_task(work, name=f"perdure-copy-{self._driven.migration.name.agent}")
        try:
            while not (await asyncio.wait([task], timeout=BEAT_S))[0]:
                await self._driven.write(beats=self._driven.migration.beats + 1)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def compare(self) -> None:
        """With what the source has in memory, at exactly its version."""
        for _ in range(0 if self._driven.migration.distrusted else LOOKS_MAX):
            stand = await self._source.stand()
            if stand is None:
                return  # it does not answer; the coordinator's fold and the chain have to do
            if stand.version < self.copy.version:
                continue
            await self.copy.follow(stand.version)
            if self.copy.version < stand.version:
                raise Aborted(f"the source is at version {stand.version}, which the log does not have")
            self.same(stand.digest)
            steps.reach("migration.target.verified")
            return

    def same(self, digest: str) -> None:
        """Raise Aborted unless the copy has this digest."""
        found = self.copy.digest()
        self._driven.facts.update(digest_source=digest, digest_target=found, verified_version=self.copy.version)
        if found != digest:
            raise Aborted(f"digest mismatch: this node's copy at version {self.copy.version} is not what the source has")

    async def shadow(self) -> None:
        """Follow until it is told to go on; every now and then the copy is compared again."""
        left = SHADOW_COMPARISONS_MIN - 1 if self._driven.migration.strategy == "blue_green" else 0
        compared_at = time.monotonic()
        while left > 0 or not self._driven.migration.go:
            await self._signal.wait(LOOK_S)
            await self.copy.catch_up()
            if time.monotonic() - compared_at >= COMPARE_S:
                await self.compare()
                left -= 1
                await self._driven.write(copied_version=self.copy.version, verified_version=self._driven.facts.get("verified_version", 0))
                compared_at = time.monotonic()
            else:
                await self._driven.look()
