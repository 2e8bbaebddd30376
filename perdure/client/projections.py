"""Projections of users' own, with upcasters behind what their handlers get."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from perdure.engine.event import RecordedEvent
from perdure.engine.log.contract import LogStore
from perdure.engine.upcasters import UpcasterRegistry
from perdure.engine.vault import Vault
from perdure.projections.builds import Build, BuildRecord
from perdure.projections.custom import Handler, Projections
from perdure.projections.custom_rebuild import Progress, Target, build_scope, rebuild_projection

__all__ = ["CurrentProjections"]


class CurrentProjections(Projections):
    """As `Projections`; handlers get events of today's schema versions. An upcaster that fails pauses the projection, as a handler does."""

    def __init__(self, store: LogStore, vault: Vault, upcasters: UpcasterRegistry) -> None:
        super().__init__(store, vault)
        self._upcasters = upcasters

    def register(self, name: str, handler: Handler, *, types: Iterable[str] | None = None) -> None:
        """Add a projection. types: the event types it wants (None: all). Raises InvalidInput, AlreadyExists."""

        super().register(name, self._current(handler), types=types)

    async def rebuild(self, name: str, target: Target, progress: Progress | None = None) -> Build:
        """Build a registered projection anew from the log's beginning, beside what is read, and let it be read. See `rebuild_projection`."""
        return await rebuild_projection(self._store, self, name, _Current(target, self._current), progress)

    async def abort_rebuild(self, name: str) -> Build:
        """End the rebuild that is under way; what was read before goes on to be read. Raises NotFound, Conflict (it is being cut over)."""
        return await BuildRecord(self._store, build_scope(name)).abort()

    async def rebuild_status(self, name: str) -> Build:
        """The projection's newest rebuild: its number (0: there was none), phase and counts."""
        return await BuildRecord(self._store, build_scope(name)).read()

    def _current(self, handler: Handler) -> Handler:
        async def current(events: Sequence[RecordedEvent]) -> None:
            await handler([self._upcasters.upcast(event) for event in events] if self._upcasters else events)

        return current


class _Current:
    """A target whose handlers get events of today's schema versions."""

    def __init__(self, target: Target, current: Callable[[Handler], Handler]) -> None:
        self._target = target
        self._current = current
        self.cut_over, self.discard = target.cut_over, target.discard

    async def begin(self, number: int) -> Handler:
        """The handler of the build."""
        return self._current(await self._target.begin(number))
