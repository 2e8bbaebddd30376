"""Projections of users' own, with upcasters behind what their handlers get."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from perdure.engine.event import RecordedEvent
from perdure.engine.log.contract import LogStore
from perdure.engine.upcasters import UpcasterRegistry
from perdure.engine.vault import Vault
from perdure.projections.custom import Handler, Projections

__all__ = ["CurrentProjections"]


class CurrentProjections(Projections):
    """As `Projections`; handlers get events of today's schema versions. An upcaster that fails pauses the projection, as a handler does."""

    def __init__(self, store: LogStore, vault: Vault, upcasters: UpcasterRegistry) -> None:
        super().__init__(store, vault)
        self._upcasters = upcasters

    def register(self, name: str, handler: Handler, *, types: Iterable[str] | None = None) -> None:
        """Add a projection. types: the event types it wants (None: all). Raises InvalidInput, AlreadyExists."""

        async def current(events: Sequence[RecordedEvent]) -> None:
            await handler([self._upcasters.upcast(event) for event in events] if self._upcasters else events)

        super().register(name, current, types=types)
