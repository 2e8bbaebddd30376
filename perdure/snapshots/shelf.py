"""Everything that works on one log's snapshots in one store, put together."""

from __future__ import annotations

from perdure.engine.log.log import EventLog
from perdure.snapshots.contents import ChunkDictionaryBook, Contents
from perdure.snapshots.dictionaries import DictionaryStore
from perdure.snapshots.loader import SnapshotLoader
from perdure.snapshots.restore import Restorer
from perdure.snapshots.store.contract import SnapshotStore
from perdure.snapshots.turns import Turns
from perdure.snapshots.verifying import SnapshotVerifier
from perdure.snapshots.writer import SnapshotWriter

__all__ = ["SnapshotShelf"]


class SnapshotShelf:
    """objects: the store. contents: what is in it. dictionaries: of chunks, unless a book of another kind is handed in; learns: as there. loader,
    writer, verifier, restorer: what works on it. turns: of writers and the sweep."""

    def __init__(self, log: EventLog, objects: SnapshotStore, book: ChunkDictionaryBook | None = None, *, learns: bool = True) -> None:
        self.objects = objects
        self.dictionaries = DictionaryStore(log.vault.ring, log.store, learns=learns)
        self.contents = Contents(objects, log.vault, book or self.dictionaries)
        self.loader = SnapshotLoader(log.store, self.contents)
        self.turns = Turns(log.store)
        self.writer = SnapshotWriter(log.store, log.vault, self.contents, self.loader, self.turns)
        self.verifier = SnapshotVerifier(log, self.contents, self.loader)
        self.restorer = Restorer(log, self.contents, self.loader)

    async def close(self) -> None:
        """Leave the store."""
        await self.objects.close()
