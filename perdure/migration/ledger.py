"""Where migrations stand: control documents of the log, changed by compare-and-set.

One document an agent holds its newest migration; it is never deleted, so its revision never repeats. One document a node lists the migrations
that it is the target of; an entry is put there before the record and removed after its end, so that an open record is always found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName, Document
from perdure.engine.log.together import Together
from perdure.engine.moves import document_name
from perdure.errors import AlreadyExists, Conflict, Unavailable
from perdure.limits import CONTROL_WRITE_ATTEMPTS_MAX
from perdure.migration.records import Migration

__all__ = ["Entry", "Kept", "Ledger"]

SCOPE: Final = "migrations"
ARRIVALS: Final = "arrivals"
LISTS_MAX: Final = 1_000
"""Changes of lists that are made at once."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A migration that a node is the target of."""

    tenant: str
    agent: str
    id: str

    @property
    def name(self) -> AgentName:
        """Whose."""
        return AgentName(self.tenant, self.agent)


class _Change(NamedTuple):
    """Whether a node shall be told of a migration, or no more."""

    node: str
    entry: Entry
    told: bool


class Kept(NamedTuple):
    """A migration, and the revision of its document."""

    migration: Migration
    revision: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Migration).decode
_decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode


class Ledger:
    """Reads and writes both kinds of documents."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._lists = Together(self._change_lists, LISTS_MAX)

    async def close(self) -> None:
        """Wait for what is being written."""
        await self._lists.close()

    # --- records ---
    async def get(self, name: AgentName) -> Kept | None:
        """The agent's newest migration."""
        document = await self._store.get_document(SCOPE, document_name(name))
        return _kept(document) if document else None

    async def newest(self) -> list[Migration]:
        """Every agent's newest migration, newest first."""
        found = [_decode(document.value) for document in await self._store.list_documents(SCOPE)]
        return sorted(found, key=lambda migration: migration.id, reverse=True)

    async def begin(self, migration: Migration) -> Kept:
        """Write a new migration down. Raises AlreadyExists while another one of the agent is open."""
        before = await self.get(migration.name)
        if before is not None and before.migration.id == migration.id:
            return before  # the answer was lost
        if before is not None and before.migration.open:
            raise _open_already(before.migration)
        put = await self._put(migration, before.revision if before else 0)
        if put is None:
            now = await self.get(migration.name)
            if now is not None and now.migration.id == migration.id:
                return now
            raise _open_already(now.migration if now else migration)
        return put

    async def change(self, kept: Kept, migration: Migration) -> Kept:
        """Write it anew where it still stands as it was read. Raises Conflict."""
        put = await self._put(migration, kept.revision)
        if put is None:
            raise Conflict(f"migration {migration.id} was changed by another", tenant=migration.tenant, agent=migration.agent)
        return put

    async def amend(
        self, name: AgentName, id: str, how: Callable[[Migration], Migration | None], *, known: Kept | None = None
    ) -> Kept | None:
        """Change it however it stands now; how: None when nothing is to be done. None when it is not there any more. known: as it was seen last;
        while nobody else changes it, it need not be read."""
        for attempt in range(CONTROL_WRITE_ATTEMPTS_MAX):
            kept = known if known is not None and attempt == 0 else await self.get(name)
            if kept is None or kept.migration.id != id:
                return None
            changed = how(kept.migration)
            if changed is None:
                return kept
            put = await self._put(changed, kept.revision)
            if put is not None:
                return put
        raise Unavailable(f"others change migration {id} all the time")

    async def _put(self, migration: Migration, expected: int) -> Kept | None:
        document = await self._store.put_document(SCOPE, document_name(migration.name), _encode(migration), expected=expected)
        return Kept(migration, document.revision) if document else None

    # --- who is told ---
    async def told(self, node: str) -> list[Entry]:
        """The migrations that the node is the target of."""
        document = await self._store.get_document(ARRIVALS, node)
        return _decode_entries(document.value) if document else []

    async def lists(self) -> dict[str, list[Entry]]:
        """Those of all nodes, by node."""
        return {document.name: _decode_entries(document.value) for document in await self._store.list_documents(ARRIVALS)}

    async def tell(self, node: str, wanted: Collection[Entry]) -> None:
        """Add to what the node is told."""
        await asyncio.gather(*(self._lists.get(_Change(node, entry, told=True)) for entry in wanted))

    async def untell(self, node: str, done: Collection[Entry]) -> None:
        """Take away what is over."""
        await asyncio.gather(*(self._lists.get(_Change(node, entry, told=False)) for entry in done))

    async def _change_lists(self, changes: Sequence[_Change]) -> list[None]:
        """Many changes of a list in one write: of many migrations that begin and end at once each would find it changed by another."""
        for node in dict.fromkeys(change.node for change in changes):
            await self._change_list(node, [change for change in changes if change.node == node])
        return [None] * len(changes)

    async def _change_list(self, node: str, changes: Sequence[_Change]) -> None:
        for _ in range(CONTROL_WRITE_ATTEMPTS_MAX):
            document = await self._store.get_document(ARRIVALS, node)
            listed = _decode_entries(document.value) if document else []
            changed = list(listed)
            for change in changes:
                if (change.entry in changed) is not change.told:
                    changed.append(change.entry) if change.told else changed.remove(change.entry)
            if changed == listed:
                return
            if await self._store.put_document(ARRIVALS, node, _encode(changed), expected=document.revision if document else 0) is not None:
                return
        raise Unavailable(f"others change what node {node!r} is told all the time")


def _kept(document: Document) -> Kept:
    return Kept(_decode(document.value), document.revision)


def _open_already(migration: Migration) -> AlreadyExists:
    return AlreadyExists(
        f"migration {migration.id} of agent {migration.agent!r} is open ({migration.phase})",
        hint="wait for it, or `perdure migrate abort` it",
        tenant=migration.tenant,
        agent=migration.agent,
        migration=migration.id,
    )
