"""What a host does about migrations beside its work: it takes on those that it is the target of, and settles those whose target is gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import msgspec

from perdure.errors import PerdureError
from perdure.limits import ARRIVALS_AT_ONCE_MAX, LARGE_ARRIVAL_BYTES, LARGE_ARRIVALS_AT_ONCE_MAX
from perdure.migration.arrival import Arrival
from perdure.migration.copy import Copying
from perdure.migration.keeping import Keeper
from perdure.migration.ledger import Entry, Kept
from perdure.migration.nodes import is_drained
from perdure.migration.records import can_abort_quietly
from perdure.migration.settling import Settler
from perdure.migration.source import Links
from perdure.recovery.host import AgentHost, Companion
from perdure.recovery.ticks import tick

__all__ = ["arrivals"]

POLL_S: Final = 0.1
BUSY_POLL_S: Final = 0.02
"""Pause between two looks while something comes: where one was told of many, the next ones follow soon."""
KEEP_S: Final = 1.0
"""Pause between two looks at migrations of others, and at whether this node is being drained."""
AGAIN_S: Final = 2.0
"""A migration that could not be worked on, e.g. without its key, is not tried again before this."""
UNRECORDED_S: Final = 30.0
"""How long a node waits for the record of a migration that it was told of."""


def arrivals(copying: Copying) -> Companion:
    """The companion of a host."""

    async def companion(host: AgentHost) -> None:
        await _Arrivals(copying, host).run()

    return companion


class _Arrivals:
    def __init__(self, copying: Copying, host: AgentHost) -> None:
        self._host = host
        self._copying = copying
        self._store = copying.log.store
        self._settler = Settler(copying.log, "target")
        self._ledger = self._settler.ledger
        self._keeper = Keeper(copying.log)
        self._links = Links(copying.log.store)
        self._running: dict[Entry, asyncio.Task[None]] = {}
        self._not_before: dict[Entry, float] = {}
        self._large: set[Entry] = set()
        self._unrecorded: dict[Entry, float] = {}

    async def run(self) -> None:
        kept_at = 0.0
        try:
            while True:
                # With the log away nothing can be moved, and what another version of perdure wrote may not be readable here: both are looked at
                # again. The host's lease tells when to stop.
                with contextlib.suppress(PerdureError, msgspec.MsgspecError):
                    await self._look()
                    if time.monotonic() - kept_at >= KEEP_S:
                        kept_at = time.monotonic()
                        self._host.drained = await is_drained(self._store, self._host.name)
                        await self._keeper.look(besides=self._host.name)
                await tick(BUSY_POLL_S if self._running else POLL_S)
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            await self._ledger.close()
            await self._links.close()

    async def _look(self) -> None:
        told = await self._ledger.told(self._host.name)
        now = time.monotonic()
        self._unrecorded = {entry: since for entry, since in self._unrecorded.items() if entry in told}
        self._not_before = {entry: until for entry, until in self._not_before.items() if until > now}
        self._large = {entry for entry in self._large if entry in self._running}
        new = [entry for entry in told if entry not in self._running and entry not in self._not_before]
        if len(self._running) >= ARRIVALS_AT_ONCE_MAX or not new or not self._host.holds_lease():
            return
        records = dict(zip(new, await asyncio.gather(*(self._ledger.get(entry.name) for entry in new)), strict=True))
        for entry in new:
            if len(self._running) >= ARRIVALS_AT_ONCE_MAX:
                return
            kept = records[entry]
            if kept is None or kept.migration.id != entry.id:
                await self._wait_for_record(entry, kept)
                continue
            if kept.migration.bytes > LARGE_ARRIVAL_BYTES:
                if len(self._large) >= LARGE_ARRIVALS_AT_ONCE_MAX:
                    continue
                self._large.add(entry)
            task = asyncio.create_task(self._drive(entry, kept), name=f"perdure-migration-{entry.agent}")
            self._running[entry] = task
            task.add_done_callback(lambda _, entry=entry: self._running.pop(entry, None))  # type: ignore[misc]

    async def _wait_for_record(self, entry: Entry, kept: Kept | None) -> None:
        """The coordinator writes the record after it has told; where it died in between there will be none."""
        since = self._unrecorded.setdefault(entry, time.monotonic())
        if time.monotonic() - since > UNRECORDED_S or (kept is not None and kept.migration.id > entry.id):
            await self._ledger.untell(self._host.name, [entry])

    async def _drive(self, entry: Entry, kept: Kept) -> None:
        migration = kept.migration
        try:
            if not migration.open:
                await self._settler.tell(migration)
            elif can_abort_quietly(migration):
                await Arrival(self._host, self._settler, self._links, self._copying, kept).run()
            else:
                # An earlier session of this node, or a log that was away, ended in the middle of the flip: what the log says is what happened.
                await self._settler.settle(kept, "the target was broken off in the middle of the flip")
        except PerdureError:
            # Not now, e.g. the log or a key is away. It stays in the list: it is tried again, or somebody else settles it.
            self._not_before[entry] = time.monotonic() + AGAIN_S
