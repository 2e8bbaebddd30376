"""What this room needs from the log: small control documents under compare-and-set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Documents", "StoredDocument"]


class StoredDocument(Protocol):
    """A document as it stands."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> int: ...

    @property
    def value(self) -> bytes: ...


class Documents(Protocol):
    """A store of control documents; every log is one."""

    async def get_document(self, scope: str, name: str) -> StoredDocument | None: ...

    async def list_documents(self, scope: str) -> Sequence[StoredDocument]: ...

    async def put_document(self, scope: str, name: str, value: bytes, *, expected: int | None) -> StoredDocument | None:
        """Write; expected: the revision that must stand (0: none). None is returned when another one stands."""
        ...
