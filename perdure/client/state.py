"""A state as it is handed out, and what led to it."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

import msgspec

from perdure.engine.agent_state import AgentState, from_document
from perdure.engine.changes import Change
from perdure.engine.digest import digest
from perdure.engine.event import RecordedEvent
from perdure.engine.readonly import freeze, thaw

__all__ = ["AppliedChange", "State", "Updated", "VersionEntry"]


class State(msgspec.Struct, frozen=True, dict=True):
    """An agent's state at a version. The document is read-only and shared (docs/adr/0018-read-only-states.md); `copy` gives one to change.

    time: of the event that led here, None before the first. warnings: what surprised while folding, where it was folded.
    """

    tenant: str
    agent: str
    version: int
    epoch: int
    time: datetime | None
    document: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "document", freeze(self.document))

    def copy(self) -> dict[str, Any]:
        """The document as plain dicts and lists that are the caller's own: changing them changes nothing else."""
        document: dict[str, Any] = thaw(self.document)
        return document

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over the document, equal for equal documents."""
        return digest(self.document)

    def typed(self) -> AgentState:
        """The document as `AgentState`, the caller's own. Raises SchemaViolation where it is none."""
        return from_document(self.copy())


class Updated(msgspec.Struct, frozen=True):
    """What an update did.

    changes: that were applied. events: that were written, as they stand in the log. checksum: digest of the new state, hex. time: the log's.
    document: the new state, read-only.
    """

    previous_version: int
    version: int
    changes: tuple[Change, ...]
    events: tuple[RecordedEvent, ...]
    checksum: str
    time: datetime
    document: dict[str, Any]

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "document", freeze(self.document))


class VersionEntry(msgspec.Struct, frozen=True):
    """One version of an agent: the event that made it. paths: what it touched, as JSON pointers."""

    version: int
    time: datetime
    epoch: int
    type: str
    id: UUID
    actor: str
    correlation_id: str | None
    paths: tuple[str, ...]


class AppliedChange(msgspec.Struct, frozen=True):
    """A change with what stood at its path before and after it, read-only; None also where nothing stood."""

    op: str
    path: str
    old_value: Any
    new_value: Any
