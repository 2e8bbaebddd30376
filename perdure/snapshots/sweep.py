"""The sweep: objects that no registered snapshot names are removed from the store.

What always holds: an object is deleted only when it is older than the grace, no row of the registry names it, and no snapshot is being written
(`turns`). It goes in two steps. Marking reads all manifests while everything goes on, and takes what nobody names as candidates. Then, in the
sweep's turn, the rows that came since are marked as well, and what is left of the candidates is deleted. A manifest that cannot be read although
its row is good leaves its tenant out: what it names is not known.

Steps for fault tests: sweep.marked, sweep.deleted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Final
from uuid import UUID

import msgspec

from perdure.engine.log.log import EventLog
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.engine.steps import reach
from perdure.errors import InvalidInput, PerdureError, Unavailable
from perdure.limits import SWEEP_GRACE_MIN_S, SWEEP_ROWS_PAGE
from perdure.snapshots.keys import SnapshotKeys, tenant_mark
from perdure.snapshots.loader import DAMAGE
from perdure.snapshots.shelf import SnapshotShelf
from perdure.snapshots.store.contract import ObjectFacts

__all__ = ["GRACE_DEFAULT_S", "Sweeper", "Swept"]

GRACE_DEFAULT_S: Final = 24 * 3600.0
AT_ONCE: Final = 16
_log = logging.getLogger(__name__)


class Swept(msgspec.Struct):
    """named: objects that snapshots consist of. young: named by none, but younger than the grace. gone: deleted, or in a dry run what would be.
    skipped: tenants that were left out, each with the reason."""

    named: int = 0
    young: int = 0
    gone: int = 0
    gone_bytes: int = 0
    skipped: dict[str, str] = msgspec.field(default_factory=dict)
    dry_run: bool = False


class _Unknown(Exception):
    """What a good snapshot names cannot be told now."""


class Sweeper:
    """Sweeps one store."""

    def __init__(self, log: EventLog, shelf: SnapshotShelf) -> None:
        self._log = log
        self._shelf = shelf

    async def sweep(
        self, *, grace_s: float = GRACE_DEFAULT_S, dry_run: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> Swept:
        """Delete what nobody names. progress(objects looked at, deleted). Raises InvalidInput, Conflict (another process sweeps), Unavailable."""
        if grace_s < SWEEP_GRACE_MIN_S and not dry_run:
            raise InvalidInput(f"a grace of {grace_s:g} s", hint=f"at least {SWEEP_GRACE_MIN_S:g} s, so that no clock can be that wrong")
        swept = Swept(dry_run=dry_run)
        for tenant in await self._log.store.tenants():
            try:
                await _Tenant(self._log, self._shelf, tenant, swept).sweep(grace_s, progress)
            except _Unknown as problem:
                swept.skipped[tenant] = str(problem)
                _log.warning("the objects of tenant %s are not swept: %s", tenant, problem)
        return swept


class _Tenant:
    """One tenant's objects."""

    def __init__(self, log: EventLog, shelf: SnapshotShelf, tenant: str, swept: Swept) -> None:
        self._log = log
        self._shelf = shelf
        self._tenant = tenant
        self._swept = swept
        self._named: set[str] = set()
        self._rows: set[UUID] = set()

    async def sweep(self, grace_s: float, progress: Callable[[int, int], None] | None) -> None:
        mark = tenant_mark(await self._log.vault.ring.tenant_key(self._tenant))
        before_us = int((time.time() - grace_s) * 1e6)
        await self._mark()
        candidates = [facts async for facts in self._strangers(mark, before_us)]
        reach("sweep.marked")
        if candidates and not self._swept.dry_run:
            async with self._shelf.turns.sweeping() as turn:
                await self._mark()
                for start in range(0, len(candidates), AT_ONCE):
                    if turn.lost:
                        raise Unavailable("this process stood still while it swept", hint="try again")
                    await self._delete(candidates[start : start + AT_ONCE])
                    if progress is not None:
                        progress(len(self._named) + len(candidates), self._swept.gone)
        elif self._swept.dry_run:
            self._swept.gone += len(candidates)
            self._swept.gone_bytes += sum(facts.size_bytes for facts in candidates)
        self._swept.named += len(self._named)

    async def _strangers(self, mark: str, before_us: int) -> AsyncIterator[ObjectFacts]:
        """Objects that nobody names and that are old enough."""
        for folder in (f"chunks/{mark}/", f"manifests/{mark}/"):
            async for facts in self._shelf.objects.list(folder):
                if facts.name in self._named:
                    continue
                if facts.modified_us > before_us:
                    self._swept.young += 1
                    continue
                yield facts

    async def _delete(self, candidates: list[ObjectFacts]) -> None:
        doomed = [facts for facts in candidates if facts.name not in self._named]
        await asyncio.gather(*(self._shelf.objects.delete(facts.name) for facts in doomed))
        self._swept.gone += len(doomed)
        self._swept.gone_bytes += sum(facts.size_bytes for facts in doomed)
        reach("sweep.deleted")

    async def _mark(self) -> None:
        """Name what the tenant's rows consist of, those that were not seen before."""
        after: UUID | None = None
        while page := await self._log.store.list_snapshots(self._tenant, after=after, limit=SWEEP_ROWS_PAGE):
            after = page[-1].id
            fresh = [row for row in page if row.id not in self._rows]
            for start in range(0, len(fresh), AT_ONCE):
                await asyncio.gather(*(self._name(row) for row in fresh[start : start + AT_ONCE]))

    async def _name(self, row: SnapshotRow) -> None:
        self._rows.add(row.id)
        self._named.add(row.manifest)
        agent = await self._log.vault.record(row.tenant, row.agent)
        if not agent.data_key:
            return  # erased: nobody can read it any more
        try:
            manifest = await self._shelf.contents.manifest(row)
            keys: SnapshotKeys = await self._shelf.contents.keys(row.tenant, row.agent)
        except Unavailable:
            raise
        except DAMAGE as problem:
            if row.damage:
                return
            raise _Unknown(f"the manifest of snapshot {row.id} cannot be read: {problem}") from problem
        except PerdureError as problem:
            raise _Unknown(f"the manifest of snapshot {row.id} cannot be read: {problem}") from problem
        self._named.update(keys.chunk_object(chunk.name) for chunk in manifest.chunks)
