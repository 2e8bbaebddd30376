"""The scrub: snapshots are read as a whole from time to time, so that damage is found while there is something to mend it from.

Each run reads a part of them, those first that were not read for longest: the registry keeps when that was. After 1 / fraction runs every snapshot
that there was at the first of them has been read, however many came since. What is damaged is marked, is never used again, and is made anew from
what is left: from an older snapshot and the log. So is what reads or a verification have marked since, unless a whole one stands for it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import Final
from uuid import UUID

import msgspec

from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName
from perdure.engine.log.snapshot_rows import CHECKPOINT, INCREMENTAL, SnapshotRow
from perdure.errors import AgentNotFound, Conflict, InvalidInput, KeyUnavailable, PerdureError, Unavailable
from perdure.limits import SCRUB_SNAPSHOTS_MAX, SNAPSHOTS_NEWEST_MIN, SWEEP_ROWS_PAGE
from perdure.snapshots.order import SnapshotOrder
from perdure.snapshots.shelf import SnapshotShelf
from perdure.snapshots.verifying import Verified

__all__ = ["Damage", "Scrubbed", "Scrubber"]

AT_ONCE: Final = 4
_log = logging.getLogger(__name__)


class Damage(msgspec.Struct, frozen=True):
    """A damaged snapshot: what is wrong, and what became of it. rebuilt: the snapshot in its place, None where none is needed or none could be
    made, which `outcome` says."""

    row: SnapshotRow
    problem: str
    rebuilt: UUID | None
    outcome: str


class Scrubbed(msgspec.Struct):
    """snapshots: there are; read: in this run. unreadable: not read for another reason than damage, each with it."""

    snapshots: int = 0
    read: int = 0
    bytes_read: int = 0
    damaged: list[Damage] = msgspec.field(default_factory=list)
    unreadable: list[str] = msgspec.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was read is whole."""
        return not self.damaged and not self.unreadable


class Scrubber:
    """Scrubs one log's snapshots."""

    def __init__(self, log: EventLog, shelf: SnapshotShelf) -> None:
        self._log = log
        self._shelf = shelf

    async def scrub(self, fraction: float = 1.0, *, rebuild: bool = True, progress: Callable[[int, int], None] | None = None) -> Scrubbed:
        """Read this part of all snapshots (0 to 1), rounded up. progress(read, to read). Raises InvalidInput, Unavailable."""
        if not 0 < fraction <= 1:
            raise InvalidInput(f"a fraction of {fraction:g}", hint="above 0, at most 1")
        report = Scrubbed()
        marked: list[SnapshotRow] = []
        chosen = await self._chosen(fraction, report, marked)
        for start in range(0, len(chosen), AT_ONCE):
            some = chosen[start : start + AT_ONCE]
            for row, found in zip(some, await asyncio.gather(*(self._verify(row) for row in some)), strict=True):
                await self._note(row, found, report, rebuild=rebuild)
            if progress is not None:
                progress(report.read, len(chosen))
        for row in sorted(marked, key=lambda row: -row.version) if rebuild else ():
            if not await self._stands_for(row):
                report.damaged.append(Damage(row, row.damage, *await self._rebuild(row)))
        return report

    async def _chosen(self, fraction: float, report: Scrubbed, marked: list[SnapshotRow]) -> list[SnapshotRow]:
        """Those not read for longest; they are counted first, so that no more than these are in memory. marked: gets those that are known to be
        damaged."""
        async for row in self._all():
            if not row.damage:
                report.snapshots += 1
            elif len(marked) < SCRUB_SNAPSHOTS_MAX:
                marked.append(row)
        wanted = min(SCRUB_SNAPSHOTS_MAX, math.ceil(report.snapshots * fraction))
        oldest: list[tuple[int, int, SnapshotRow]] = []
        number = 0
        async for row in self._all():
            if row.damage:
                continue
            number += 1
            heapq.heappush(oldest, (-row.verified_us, -number, row))
            if len(oldest) > wanted:
                heapq.heappop(oldest)
        return [row for _, _, row in sorted(oldest, key=lambda entry: (-entry[0], -entry[1]))]

    async def _stands_for(self, row: SnapshotRow) -> bool:
        """Whether a whole snapshot does what a damaged one was for: at its version where it was promised, else there or later."""
        try:
            agent = await self._log.vault.record(row.tenant, row.agent)
        except (AgentNotFound, KeyUnavailable):
            return True  # nobody can have its states
        good = await self._log.store.snapshots(agent, to_version=row.version if _promised(row) else None, limit=1, good=True)
        return bool(good) and good[0].version >= row.version

    async def _all(self) -> AsyncIterator[SnapshotRow]:
        for tenant in await self._log.store.tenants():
            after: UUID | None = None
            while page := await self._log.store.list_snapshots(tenant, after=after, limit=SWEEP_ROWS_PAGE):
                after = page[-1].id
                for row in page:
                    yield row

    async def _verify(self, row: SnapshotRow) -> Verified | PerdureError | None:
        try:
            return await self._shelf.verifier.verify(row)
        except Unavailable:
            raise
        except PerdureError as problem:
            return problem

    async def _note(self, row: SnapshotRow, found: Verified | PerdureError | None, report: Scrubbed, *, rebuild: bool) -> None:
        report.read += 1
        if isinstance(found, PerdureError):
            report.unreadable.append(f"{row.tenant}/{row.agent} version {row.version}: {found}")
        elif found is not None and not found.ok:
            _log.warning("snapshot %s of %s/%s at version %d is damaged: %s", row.id, row.tenant, row.agent, row.version, found.problem)
            rebuilt, outcome = await self._rebuild(found.row) if rebuild else (None, "left as it is")
            report.damaged.append(Damage(row, found.problem, rebuilt, outcome))
        elif found is not None:
            report.bytes_read += found.bytes_read

    async def _rebuild(self, row: SnapshotRow) -> tuple[UUID | None, str]:
        """Make anew what has to stay: at its version when it was promised, else a newest one."""
        promised = _promised(row)
        order = SnapshotOrder(
            kind=CHECKPOINT if promised else INCREMENTAL,
            creator="scrub",
            reason=f"in place of the damaged {row.id}",
            expires_us=row.expires_us,
            permanent=row.permanent,
            critical=row.critical,
        )
        name = AgentName(row.tenant, row.agent)
        try:
            agent = await self._log.vault.record(*name)
            newer = await self._log.store.snapshots(agent, limit=SNAPSHOTS_NEWEST_MIN, good=True)
            if not promised and len(newer) == SNAPSHOTS_NEWEST_MIN and newer[-1].version > row.version:
                return None, "newer ones stand"
            made = await self._shelf.writer.create(name, order, at_version=row.version if promised else None)
        except Unavailable:
            raise
        except Conflict:
            return None, "a newer one was made meanwhile"
        except PerdureError as problem:
            return None, f"cannot be made anew: {problem}"
        return made.row.id, "made anew"


def _promised(row: SnapshotRow) -> bool:
    return row.kind == CHECKPOINT or row.permanent or row.critical
