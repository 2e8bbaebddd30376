"""Settling what nobody drives any more: migrations whose target is lost, or has not gone on for long.

Every host, every watcher and every coordinator keeps; settling twice is settling once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from perdure.engine.log.log import EventLog
from perdure.engine.stopping import rest
from perdure.errors import PerdureError, Unavailable
from perdure.migration.ledger import Entry
from perdure.migration.settling import Settler
from perdure.recovery.detection import Detector
from perdure.recovery.nodes import list_nodes

__all__ = ["STALLED_S", "Keeper"]

LOOK_S: Final = 0.5
STALLED_S: Final = 60.0
"""An open migration whose record nobody has changed for so long, by this process's clock, and that does not wait for anybody, is settled."""
UNRECORDED_S: Final = 30.0


class Keeper:
    """Looks; `run` goes on looking."""

    def __init__(self, log: EventLog) -> None:
        self._store = log.store
        self._settler = Settler(log)
        self._ledger = self._settler.ledger
        self._detector = Detector()
        self._seen: dict[Entry, tuple[int, float]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. The log being away is waited out."""
        while not stop.is_set():
            with contextlib.suppress(Unavailable):
                await self.look()
            await rest(stop, LOOK_S)

    async def look(self, *, besides: str = "") -> int:
        """Settle what is to be settled, except what node `besides` is the target of; how many were."""
        lists = await self._ledger.lists()
        if not any(lists.values()):
            self._seen.clear()
            return 0
        states = await list_nodes(self._store)
        self._detector.look(states)
        lost = self._detector.lost() | (lists.keys() - {state.node.name for state in states})
        entries = [(node, entry) for node, listed in lists.items() if node != besides for entry in listed]
        self._seen = {entry: seen for entry, seen in self._seen.items() if any(entry == other for _, other in entries)}
        settled = 0
        for node, entry in entries:
            try:
                settled += await self._settle(node, entry, lost=node in lost)
            except Unavailable:
                raise
            except PerdureError:
                continue  # e.g. its key is not here: others can
        return settled

    async def _settle(self, node: str, entry: Entry, *, lost: bool) -> bool:
        kept = await self._ledger.get(entry.name)
        now = time.monotonic()
        if kept is None or kept.migration.id != entry.id:
            _, since = self._seen.setdefault(entry, (-1, now))
            if lost and now - since > UNRECORDED_S:
                await self._ledger.untell(node, [entry])
            return False
        revision, since = self._seen.get(entry, (-1, now))
        if revision != kept.revision:
            self._seen[entry] = (kept.revision, now)
            since = now
        stalled = now - since > STALLED_S and not (kept.migration.wait and not kept.migration.go)
        if not lost and not stalled:
            return False
        if kept.migration.open:
            await self._settler.settle(kept, f"the target, node {node!r}, is lost" if lost else "the target has not gone on")
        else:
            await self._settler.tell(kept.migration)
        return True
