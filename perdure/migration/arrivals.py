"""What a host does about migrations beside its work: it takes on those that it is the target of, and settles those whose processes are gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from perdure.engine.log.log import EventLog
from perdure.errors import Unavailable
from perdure.migration.arrival import Arrival
from perdure.migration.journal import MigrationJournal
from perdure.migration.ledger import Entry, Kept, Ledger
from perdure.migration.settling import Settler
from perdure.migration.source import Links
from perdure.projections.fill import Base
from perdure.recovery.host import AgentHost, Companion

__all__ = ["ARRIVALS_AT_ONCE_MAX", "arrivals"]

POLL_S: Final = 0.05
ARRIVALS_AT_ONCE_MAX: Final = 4
"""Migrations that one target drives at once; the others wait for their turn."""
UNRECORDED_S: Final = 30.0
"""How long a node waits for the record of a migration that it was told of."""


def arrivals(log: EventLog, base: Base | None) -> Companion:
    """The companion of a host. base: gives snapshots."""

    async def companion(host: AgentHost) -> None:
        await _Arrivals(log, base, host).run()

    return companion


class _Arrivals:
    def __init__(self, log: EventLog, base: Base | None, host: AgentHost) -> None:
        self._log = log
        self._base = base
        self._host = host
        self._ledger = Ledger(log.store)
        self._settler = Settler(log, self._ledger, MigrationJournal(log), "target")
        self._links = Links()
        self._running: dict[Entry, asyncio.Task[None]] = {}
        self._unrecorded: dict[Entry, float] = {}

    async def run(self) -> None:
        try:
            while True:
                # With the log away nothing can be moved; the host's lease tells when to stop.
                with contextlib.suppress(Unavailable):
                    await self._look()
                await asyncio.sleep(POLL_S)
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            await self._links.close()

    async def _look(self) -> None:
        told = await self._ledger.told(self._host.name)
        self._unrecorded = {entry: since for entry, since in self._unrecorded.items() if entry in told}
        for entry in told:
            if len(self._running) >= ARRIVALS_AT_ONCE_MAX:
                return
            if entry in self._running or not self._host.holds_lease():
                continue
            kept = await self._ledger.get(entry.name)
            if kept is None or kept.migration.id != entry.id:
                await self._wait_for_record(entry, kept)
                continue
            task = asyncio.create_task(self._drive(kept), name=f"perdure-migration-{entry.agent}")
            self._running[entry] = task
            task.add_done_callback(lambda _, entry=entry: self._running.pop(entry, None))  # type: ignore[misc]

    async def _wait_for_record(self, entry: Entry, kept: Kept | None) -> None:
        """The coordinator writes the record after it has told; where it died in between there will be none."""
        since = self._unrecorded.setdefault(entry, time.monotonic())
        if time.monotonic() - since > UNRECORDED_S or (kept is not None and kept.migration.id > entry.id):
            await self._ledger.untell(self._host.name, [entry])

    async def _drive(self, kept: Kept) -> None:
        migration = kept.migration
        with contextlib.suppress(Unavailable):
            if not migration.open:
                await self._settler.tell_again(migration)
            elif migration.phase in ("planned", "preparing", "pre_copy"):
                await Arrival(self._host, self._log, self._ledger, self._settler, self._links, self._base, kept).run()
            else:
                # This node's earlier session died in the middle of the flip: what the log says is what happened.
                await self._settler.settle(kept, "the target was started again in the middle of the flip")
