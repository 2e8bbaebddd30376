"""Rebuilds of the cache of current states, as people hold them: begin one, look at it, end it."""

from __future__ import annotations

import msgspec

from perdure.client.parts import Parts
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput
from perdure.limits import REBUILD_PARALLEL_MAX
from perdure.projections.builds import Build
from perdure.projections.rebuild import Progress, Rebuilder

__all__ = ["RebuildStatus", "Rebuilds"]


class RebuildStatus(msgspec.Struct, frozen=True):
    """build: the newest one. running: whether a process works on it; eta_s: how long it will take at its rate, None where that is not known."""

    build: Build
    running: bool
    eta_s: float | None


class Rebuilds:
    """Rebuilds of one engine's cache, while it is read and written (docs/adr/0015-rebuild.md)."""

    def __init__(self, engine: Parts) -> None:
        self._engine = engine

    async def run(self, tenant: str | None = None, *, parallel: int = 8, progress: Progress | None = None) -> Build:
        """Rebuild the states of a tenant's agents, or of all (None), and let them be read; the build as it ended. progress(build) is called
        after every page. One that was left half-done is gone on with.

        Raises Conflict while another process rebuilds and when it was aborted, Fenced when another one went on in its place, Unavailable.
        """
        return await self._rebuilder(parallel).run(tenant, progress)

    async def agent(self, name: AgentName, number: int | None = None) -> int:
        """Rebuild one agent at once, whatever else is under way; its version. number: that several agents share, see `number`.

        Raises AgentNotFound, and what stands against folding it; then nothing has changed."""
        rebuilder, record = self._rebuilder(1), await self._engine.log.vault.served(*name)
        return await rebuilder.one(record, await rebuilder.number() if number is None else number)

    async def number(self) -> int:
        """A number for agents that are rebuilt one by one, instead of one for each."""
        return await self._rebuilder(1).number()

    async def status(self) -> RebuildStatus:
        """The newest rebuild: phase, counts, whether a process works on it, and the seconds it will still take."""
        build, running = await self._rebuilder(1).status()
        return RebuildStatus(build, running, build.eta_s if running else None)

    async def abort(self) -> Build:
        """End the rebuild that is under way; what was read before goes on to be read. Raises NotFound without one, Conflict when it is being
        cut over."""
        return await self._rebuilder(1).abort()

    def _rebuilder(self, parallel: int) -> Rebuilder:
        if not 1 <= parallel <= REBUILD_PARALLEL_MAX:
            raise InvalidInput(f"{parallel} at once", hint=f"1 to {REBUILD_PARALLEL_MAX}")
        log = self._engine.log
        return Rebuilder(log.store, self._engine.cache, log.vault, self._engine.snapshots.base, parallel=parallel)
