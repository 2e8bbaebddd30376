"""A migration's record, as its target drives it: what it says now, the next phase, and whether this process drives it still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from perdure.migration.ledger import Kept, Ledger
from perdure.migration.records import Migration, Phase, advanced
from perdure.migration.settling import now_us

__all__ = ["Aborted", "Driven", "Superseded"]


class Aborted(Exception):
    """The migration cannot go on; why."""


class Superseded(Exception):
    """Another process drives this migration, or it has ended."""


class Driven:
    """Of one migration. session: the lease epoch of the node that drives it, now. facts: what is written down with its end.

    Whatever is written is written over what stands then: raises Aborted where it has ended meanwhile, Superseded where others drive it."""

    def __init__(self, ledger: Ledger, kept: Kept, session: Callable[[], int]) -> None:
        self._ledger = ledger
        self._session = session
        self.kept = kept
        self.facts: dict[str, Any] = {}

    @property
    def migration(self) -> Migration:
        """As it stands here."""
        return self.kept.migration

    async def enter(self, phase: Phase, **facts: Any) -> None:
        """The next phase, wherever the record has got to meanwhile by facts alone."""
        self._believe(
            await self._ledger.amend(
                self.migration.name,
                self.migration.id,
                lambda now: advanced(self._own(now), phase, now_us(), **facts) if now.open else None,
                known=self.kept,
            )
        )

    def note(self, phase: Phase) -> None:
        """As `enter`, written down with the end: there is no time for it now."""
        self.kept = self.kept._replace(migration=advanced(self.migration, phase, now_us()))

    async def write(self, **facts: Any) -> None:
        """Facts alone."""
        self._believe(
            await self._ledger.amend(
                self.migration.name, self.migration.id, lambda now: replace(now, **facts) if now.open else None, known=self.kept
            )
        )

    async def look(self) -> None:
        """What it says by now."""
        self._believe(await self._ledger.get(self.migration.name))

    def _own(self, now: Migration) -> Migration:
        if now.session not in (0, self._session()):
            raise Superseded(f"session {now.session} of this node drives it")
        return now

    def _believe(self, kept: Kept | None) -> None:
        if kept is None or kept.migration.id != self.migration.id:
            raise Superseded("the record is not there any more")
        if not kept.migration.open:
            raise Aborted(kept.migration.error or "it was aborted")
        self.kept = Kept(self._own(kept.migration), kept.revision)
