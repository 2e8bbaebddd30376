"""A state as it is handed out."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from perdure.engine.changes import Change
from perdure.engine.digest import digest

__all__ = ["State", "Updated"]


class State(msgspec.Struct, frozen=True, dict=True):
    """An agent's state at a version. The document is the caller's own: changing it changes nothing else.

    time: of the event that led here, None before the first. warnings: what surprised while folding, where it was folded.
    """

    tenant: str
    agent: str
    version: int
    epoch: int
    time: datetime | None
    document: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over the document, equal for equal documents."""
        return digest(self.document)


class Updated(msgspec.Struct, frozen=True):
    """What an update did. checksum: digest of the new state, hex."""

    previous_version: int
    version: int
    changes: tuple[Change, ...]
    checksum: str
    document: dict[str, Any]
