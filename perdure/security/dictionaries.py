"""The dictionary book: a tenant's trained dictionaries, sealed with the tenant's key, kept for ever and shared by all processes.

A dictionary is plaintext of what it was trained on. It therefore never leaves the process unsealed and never serves two tenants.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final
from weakref import WeakValueDictionary

from perdure import limits
from perdure.errors import LimitExceeded, SealBroken, Unavailable
from perdure.security.compression import Dictionary
from perdure.security.dictionary_set import BUILTIN, DICTIONARY_IDS, TENANT_ID_FIRST, DictionarySet
from perdure.security.documents import Documents, StoredDocument
from perdure.security.framing import join_fields
from perdure.security.ring import KeyRing
from perdure.security.training import train

__all__ = ["BUILTIN", "DICTIONARIES_SCOPE", "DictionaryBook", "DictionarySet"]

DICTIONARIES_SCOPE: Final = "dictionaries/"
"""Followed by the tenant; a document's name is the dictionary's id in decimal."""


class DictionaryBook:
    """All tenants' dictionaries. ring: gives the keys that seal them. documents: where they are kept."""

    def __init__(self, ring: KeyRing, documents: Documents) -> None:
        self._ring = ring
        self._documents = documents
        self._recent: OrderedDict[str, DictionarySet] = OrderedDict()
        # A set that a cipher still holds must stay the one that `load` adds to, also when it is not among the recent ones any more.
        self._alive: WeakValueDictionary[str, DictionarySet] = WeakValueDictionary()

    async def ensure(self, tenant: str) -> DictionarySet:
        """The tenant's dictionaries for a new Cipher, looked up at first use."""
        dictionaries = self._alive.get(tenant)
        return await self.load(tenant) if dictionaries is None else self._remember(tenant, dictionaries)

    async def load(self, tenant: str) -> DictionarySet:
        """Take in the dictionaries that were trained since, here or elsewhere; the tenant's ciphers see them at once."""
        documents = await self._documents.list_documents(DICTIONARIES_SCOPE + tenant)
        known = self._alive.get(tenant)
        opened = [await self._open(tenant, document) for document in documents if known is None or known.find(_id_of(document)) is None]
        # Looked up again: another task may have made the set meanwhile, and there must be only one.
        dictionaries = self._alive.get(tenant) or self._alive.setdefault(tenant, DictionarySet())
        for dictionary in opened:
            dictionaries.learn(dictionary)
        return self._remember(tenant, dictionaries)

    async def add(self, tenant: str, samples: Sequence[bytes]) -> int:
        """Train a dictionary from plaintexts of the tenant, store it and use it from now on; its id.

        samples: as they will be sealed, oldest first. Training runs in a thread. Raises InvalidInput when they are too few.
        """
        content = await asyncio.to_thread(train, samples)
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            documents = await self._documents.list_documents(DICTIONARIES_SCOPE + tenant)
            if len(documents) >= limits.DICTIONARIES_PER_TENANT_MAX:
                raise LimitExceeded(f"the tenant has {len(documents)} dictionaries, the limit", tenant=tenant)
            id = max((_id_of(document) for document in documents), default=TENANT_ID_FIRST - 1) + 1
            key = await self._ring.tenant_key(tenant)
            sealed = key.seal(_context(id), content)
            # Another process may have taken the id in between: then the next one.
            if await self._documents.put_document(DICTIONARIES_SCOPE + tenant, str(id), sealed, expected=0) is not None:
                await self.load(tenant)
                return id
        raise Unavailable("dictionaries of this tenant are being added by others all the time", tenant=tenant)

    async def adopt(self, tenant: str, content: bytes, id: int) -> int:
        """Keep a dictionary that was trained elsewhere, once: under its id where that is free, else under the next; the id it has here.

        Raises LimitExceeded, Unavailable.
        """
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            known = await self.load(tenant)
            for standing in known.ids:
                found = known.find(standing)
                if found is not None and found.content == content:
                    return standing
            if len(known.ids) >= limits.DICTIONARIES_PER_TENANT_MAX:
                raise LimitExceeded(f"the tenant has {len(known.ids)} dictionaries, the limit", tenant=tenant)
            chosen = id if known.find(id) is None else max(known.ids) + 1
            key = await self._ring.tenant_key(tenant)
            sealed = key.seal(_context(chosen), content)
            if await self._documents.put_document(DICTIONARIES_SCOPE + tenant, str(chosen), sealed, expected=0) is not None:
                await self.load(tenant)
                return chosen
        raise Unavailable("dictionaries of this tenant are being added by others all the time", tenant=tenant)

    async def _open(self, tenant: str, document: StoredDocument) -> Dictionary:
        id = _id_of(document)
        key = await self._ring.tenant_key(tenant)
        if not key.holds(document.value):
            key = await self._ring.tenant_key(tenant, refresh=True)  # sealed by a process that has rotated the key
        content = key.open(_context(id), document.value)
        return await asyncio.to_thread(Dictionary, id, content)

    def _remember(self, tenant: str, dictionaries: DictionarySet) -> DictionarySet:
        self._recent[tenant] = dictionaries
        self._recent.move_to_end(tenant)
        if len(self._recent) > limits.DICTIONARY_TENANTS_CACHED_MAX:
            self._recent.popitem(last=False)
        return dictionaries


def _id_of(document: StoredDocument) -> int:
    if not (document.name.isascii() and document.name.isdecimal() and TENANT_ID_FIRST <= int(document.name) < DICTIONARY_IDS):
        raise SealBroken(f"a dictionary's document is named {document.name!r}, which is no id")
    return int(document.name)


def _context(id: int) -> bytes:
    return join_fields(b"dictionary", id.to_bytes(4, "big"))
