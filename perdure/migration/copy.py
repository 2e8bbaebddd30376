"""The target's copy of an agent: loaded from a snapshot and the log's tail, followed until the flip, hidden from everybody.

Invariant: the document is the fold of the log up to `version`, whose hash is `chain`; where a fold breaks off, the copy is dropped as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from perdure.engine.digest import FollowingDigest
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentRecord, SealedEvent
from perdure.engine.readonly import freeze
from perdure.engine.replay import Folded, fold_log, fold_page
from perdure.errors import ChainBroken, PerdureError
from perdure.migration.records import Transfer
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base, fold_on, open_cached

__all__ = ["Copy", "Copying"]

PAGE_EVENTS: Final = 100
"""Events that are read and folded at a time: the node serves others meanwhile."""
ROUNDS_MAX: Final = 64
LAG_EVENTS_MAX: Final = 64
ROUND_S_MAX: Final = 0.05
"""Converged: a round of following found no more than `LAG_EVENTS_MAX` events, or took no longer than this."""
LAST_LAG_EVENTS_MAX: Final = 5_000
"""Not converged after `ROUNDS_MAX` rounds: up to this many events in the last one are left to the fence; with more the agent would stand still
for too long."""


class Copying(NamedTuple):
    """What copies are made from. base: gives snapshots. cache: copies of states that others keep."""

    log: EventLog
    base: Base | None
    cache: StateCache | None

    def of(self, record: AgentRecord) -> Copy:
        """A copy of this agent, not loaded yet."""
        return Copy(self, record)


class Copy:
    """One agent's."""

    def __init__(self, source: Copying, record: AgentRecord) -> None:
        self._source = source
        self._store = source.log.store
        self._vault = source.log.vault
        self._record = record
        self._folded: Folded | None = None
        self._digest = FollowingDigest()
        self._once = False
        self.loaded_events = 0

    @property
    def loaded(self) -> bool:
        """Whether there is something in it."""
        return self._folded is not None

    @property
    def version(self) -> int:
        """Where it stands; 0 before it is loaded."""
        return self._folded.version if self._folded is not None else 0

    @property
    def chain(self) -> bytes:
        """The log's hash at its version."""
        assert self._folded is not None
        return self._folded.chain

    @property
    def document(self) -> dict[str, Any]:
        """The state; not to be changed."""
        assert self._folded is not None
        return self._folded.document

    def read_only(self) -> dict[str, Any]:
        """The state as it can be handed out. What is folded on from here copies what is on its way only; so it costs as much as was changed since
        it was asked for before."""
        assert self._folded is not None
        document: dict[str, Any] = freeze(self._folded.document)
        self._folded = self._folded._replace(document=document)
        return document

    async def load(self, to_version: int | None = None, *, transfer: Transfer = "streaming", rests: bool = False) -> None:
        """From a snapshot and what follows it; incremental: from the cache's copy, where the log goes on from it; snapshot: what is newer than this
        is not waited for (`catch_up`). Raises what stands against it."""
        self._drop()
        self._once = transfer == "snapshot"
        start = await self._cached(to_version) if transfer == "incremental" else None
        if start is not None:
            since = start.version
            try:
                self._folded = await fold_log(
                    self._store, self._vault, self._record, start=start, to_version=to_version, page_events=PAGE_EVENTS, rests=rests
                )
                self.loaded_events = self._folded.version - since
                return
            except ChainBroken:
                pass  # the cache held another history; the log is asked for all of it
        base = self._source.base
        start = await base(self._record, to_version) if base is not None else None
        since = start.version if start is not None else 0
        self._folded = await fold_on(
            self._store, self._vault, self._record, base, start=start, to_version=to_version, page_events=PAGE_EVENTS, rests=rests
        )
        self.loaded_events = self._folded.version - since

    async def catch_up(self) -> tuple[int, int, bool]:
        """Follow, round by round, until little is left; (events, rounds, whether what is left is little enough for a fence). A copy of a snapshot
        is not followed: what was written since is taken when the agent is handed over, which is as short as that is little."""
        if self._once:
            (head,) = await self._store.heads([self._record])
            return 0, 0, head.version - self.version <= LAST_LAG_EVENTS_MAX
        events = 0
        for number in range(1, ROUNDS_MAX + 1):
            began_at = time.monotonic()
            more = await self.follow()
            events += more
            if more <= LAG_EVENTS_MAX or time.monotonic() - began_at <= ROUND_S_MAX:
                return events, number, True
        return events, ROUNDS_MAX, more <= LAST_LAG_EVENTS_MAX

    async def follow(self, to_version: int | None = None) -> int:
        """Fold what the log has more; how many events. Raises ChainBroken and what opening events raises; then it must be loaded anew."""
        before = self._folded
        assert before is not None, "a copy is loaded first"
        self._folded = None
        try:
            self._folded = await fold_log(
                self._store,
                self._vault,
                self._record,
                start=before,
                to_version=to_version,
                cells=self._digest.touched,
                page_events=PAGE_EVENTS,
            )
        except BaseException:
            self._drop()
            raise
        return self._folded.version - before.version

    async def take(self, events: Sequence[SealedEvent]) -> Sequence[SealedEvent]:
        """Fold what follows the copy of events that somebody has read; others, and what is too late for it, are passed over. Those it took."""
        before = self._folded
        assert before is not None, "a copy is loaded first"
        record = self._record
        own = [
            event
            for event in events
            if (event.agent_key, event.partition) == (record.agent_key, record.partition) and event.version > before.version
        ]
        if not own or own[0].version != before.version + 1:
            return ()
        self._folded = None
        try:
            self._folded = await fold_page(self._vault, before, own, cells=self._digest.touched)
        except BaseException:
            self._drop()
            raise
        return own

    def digest(self) -> str:
        """The document's digest, hexadecimal; after the first time it costs only the cells that changed since."""
        return self._digest.of(self.document).hex()

    async def _cached(self, to_version: int | None) -> Folded | None:
        """The cache's copy, where it is not newer than wanted. Whether it is right, the chain of the events that follow it tells."""
        cache, name = self._source.cache, (self._record.tenant, self._record.agent)
        if cache is None:
            return None
        try:
            (cached,) = await cache.get([name])
            if cached is None or cached.token.generation != self._store.generation:
                return None
            opened = await open_cached(self._vault, *name, cached)
        except PerdureError:
            return None  # a cache that is away, or damaged, only saves time
        token = cached.token
        if to_version is not None and token.version > to_version:
            return None
        return Folded(opened.document, token.version, token.epoch, opened.time_us, opened.chain, [])

    def _drop(self) -> None:
        self._folded = None
        self._digest.forget()
