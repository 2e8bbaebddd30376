"""A rebuild of a projection of a user's own while it is read: a new build beside the old one, from the log's beginning, and one cut-over.

Invariant: what is read is the old build or the new one, and the new one has every event that the old one was given.

The projection goes on meanwhile. When the new build has caught up, the projection stands still for a moment: what came since is given to the new
build, the target lets it be read, and the checkpoints move on to its own; then the projection goes on, in the new build. A rebuild that dies is
gone on with by the next one, from its checkpoints; until `cut_over` was called the old build is read, and after it the new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol
from uuid import uuid4

from perdure.engine.leases import KeptLease
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Lease
from perdure.engine.steps import reach
from perdure.errors import Conflict, Fenced, Unavailable
from perdure.projections.builds import Build, BuildRecord
from perdure.projections.custom import (
    BATCH_EVENTS_MAX,
    LEASE_S,
    Checkpoint,
    Handler,
    Projections,
    encode_checkpoint,
    read_checkpoints,
    scope_of,
)

__all__ = ["Progress", "Target", "build_scope", "rebuild_projection"]

REBUILD_LEASE_S: Final = 30.0
CATCHING_UP_EVENTS: Final = 10 * BATCH_EVENTS_MAX
"""With fewer events to go the projection is stopped for the rest of them."""
STOP_WAIT_S: Final = 60.0
STOP_POLL_S: Final = 0.05
_NOTHING: Final = Checkpoint(0, 0)
_CUTTING: Final = "is being cut over; where that was broken off, rebuild again"

Progress = Callable[[Build], None]


class Target(Protocol):
    """Where a projection writes to, in numbered builds. Every method may be called again for the same number, after a crash."""

    async def begin(self, number: int) -> Handler:
        """A place for this build beside the one that is read, and the handler that fills it, with each event at least once and in order."""
        ...

    async def cut_over(self, number: int) -> None:
        """Let this build be read, in one step, and the projection's own handler go on in it. An older number never comes back."""
        ...

    async def discard(self, number: int) -> None:
        """Remove a build that was not cut over."""
        ...


async def rebuild_projection(
    store: LogStore, projections: Projections, name: str, target: Target, progress: Progress | None = None
) -> Build:
    """Build the registered projection `name` anew from the log's beginning, and let the new build be read; the build as it ended.

    Raises ProjectionNotFound; Conflict while another process rebuilds it, when it was aborted, and when the projection does not stop for the
    cut-over; Compacted where the log's first events were removed; what the handler raises, and then nothing is cut over.
    """
    await projections.wanted(name, [])
    scope = build_scope(name)
    lease = await KeptLease.acquire(store, scope, uuid4().hex, REBUILD_LEASE_S)
    if lease is None:
        raise Conflict(f"projection {name!r} is being rebuilt by another process")
    async with lease:
        return await _Rebuild(store, projections, name, target, scope, lease, progress).run()


def build_scope(name: str) -> str:
    """Where the record of a projection's rebuild and its checkpoints are kept."""
    return f"projection-build/{name}"


class _Rebuild:
    def __init__(
        self,
        store: LogStore,
        projections: Projections,
        name: str,
        target: Target,
        scope: str,
        lease: KeptLease,
        progress: Progress | None,
    ) -> None:
        self._store, self._projections, self._name, self._target = store, projections, name, target
        self._scope, self._lease, self._progress = scope, lease, progress
        self._record = BuildRecord(store, scope)
        self._since_s = time.monotonic()
        self._seen = 0

    async def run(self) -> Build:
        before = await self._record.read()
        status = await self._projections.status(self._name)
        if status.paused and status.reason.endswith(_CUTTING) and before.phase != "cutting":
            # A rebuild has died while it waited for the projection to stop.
            await self._projections.resume(self._name)
        if not before.open:
            await self._clean_up()
            await self._record.begin(None)
        handler = await self._target.begin(self._record.build.number)
        try:
            while await self._catch_up(handler) > CATCHING_UP_EVENTS:
                pass
            return await self._cut_over(handler)
        except Fenced:
            if not await self._record.was_aborted():
                raise
            await self._clean_up()
            raise Conflict(f"build {self._record.build.number} of projection {self._name!r} was aborted") from None

    async def _catch_up(self, handler: Handler) -> int:
        """Give the handler what the log holds now; how many events those were."""
        ends = {partition: position.offset for partition, position in (await self._store.positions()).items()}
        points = await read_checkpoints(self._store, self._scope)
        await self._record.advance(events=sum(ends.values()), events_done=sum(point.offset for point in points.values()))
        given = 0
        for partition, end in ends.items():
            point = points.get(partition, _NOTHING)
            while point.offset < end and (page := await self._store.read(partition, point.offset, BATCH_EVENTS_MAX)):
                self._must_hold()
                if events := await self._projections.wanted(self._name, page):
                    await handler(events)
                point = Checkpoint(page[-1].offset, page[-1].time_us)
                await self._store.put_document(self._scope, str(partition), encode_checkpoint(point), expected=None)
                given += len(page)
                await self._tell(len(page))
        return given

    async def _tell(self, events: int) -> None:
        """Note how far it is; who has aborted it, or gone on in its place, is noticed here."""
        self._seen += events
        rate = self._seen / max(time.monotonic() - self._since_s, 1e-3)
        build = await self._record.advance(events_done=self._record.build.events_done + events, events_per_s=rate)
        reach("projection.page_built")
        if self._progress is not None:
            self._progress(build)

    async def _cut_over(self, handler: Handler) -> Build:
        was_paused = (await self._projections.status(self._name)).paused
        number, live = self._record.build.number, None
        await self._projections.pause(self._name, f"build {number} {_CUTTING}")
        try:
            live = await self._stopped()
            if self._record.build.phase == "building":
                await self._catch_up(handler)
                await self._record.advance(phase="cutting")
            reach("projection.decided")
            await self._target.cut_over(number)
            reach("projection.cut_over")
            for partition, point in (await read_checkpoints(self._store, self._scope)).items():
                await self._store.put_document(scope_of(self._name), str(partition), encode_checkpoint(point), expected=None)
            build = await self._record.advance(phase="done", cleaned=True)
            await self._forget()
        finally:
            if live is not None:
                await self._store.release_lease(live)
            if not was_paused or self._record.build.phase == "done":
                await self._projections.resume(self._name)
        return build

    async def _stopped(self) -> Lease:
        """The projection's own lease, once whoever runs it has noticed that it is paused."""
        holder, deadline_s = uuid4().hex, time.monotonic() + STOP_WAIT_S
        while time.monotonic() < deadline_s:
            self._must_hold()
            if (lease := await self._store.acquire_lease(scope_of(self._name), holder, LEASE_S)) is not None:
                return lease
            await asyncio.sleep(STOP_POLL_S)
        raise Conflict(
            f"projection {self._name!r} does not stop for its cut-over", hint="its handler takes too long; rebuild again goes on"
        )

    async def _clean_up(self) -> None:
        build = self._record.build
        if not build.cleaned:
            await self._target.discard(build.number)
        await self._forget()
        if not build.cleaned:
            await self._record.advance(cleaned=True)

    async def _forget(self) -> None:
        for partition in await read_checkpoints(self._store, self._scope):
            await self._store.delete_document(self._scope, str(partition))

    def _must_hold(self) -> None:
        if not self._lease.holds():
            raise Unavailable("another process may rebuild by now", hint="rebuild again goes on where this one stood")
