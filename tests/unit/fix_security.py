"""Control documents in memory, for the unit tests of keys and dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class StoredDocument(NamedTuple):
    scope: str
    name: str
    revision: int
    value: bytes


class MemoryDocuments:
    """Compare-and-set documents in a dict. before_put: called once before the next write, to let somebody else be faster."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], StoredDocument] = {}
        self.before_put: Callable[[], None] | None = None

    async def get_document(self, scope: str, name: str) -> StoredDocument | None:
        return self.stored.get((scope, name))

    async def list_documents(self, scope: str) -> list[StoredDocument]:
        return [document for (found, _), document in sorted(self.stored.items()) if found == scope]

    async def put_document(self, scope: str, name: str, value: bytes, *, expected: int | None) -> StoredDocument | None:
        if self.before_put is not None:
            interrupt, self.before_put = self.before_put, None
            interrupt()
        standing = self.stored.get((scope, name))
        revision = standing.revision if standing else 0
        if expected is not None and expected != revision:
            return None
        document = self.stored[scope, name] = StoredDocument(scope, name, revision + 1, value)
        return document

    def replace(self, scope: str, name: str, value: bytes) -> None:
        """Write past the contract, as somebody with access to the database could."""
        self.stored[scope, name] = StoredDocument(scope, name, self.stored[scope, name].revision, value)
