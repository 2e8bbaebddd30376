"""The tenants' chunk dictionaries: trained on chunks of one agent type, sealed with the tenant's key, kept for ever, shared by all processes.

A dictionary is plaintext of what it was trained on. It therefore never leaves the process unsealed and never serves two tenants. It is apart from
the dictionaries of events: chunks look different, and what is best for one agent type is not for another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from perdure import limits
from perdure.errors import LimitExceeded, PerdureError, SealBroken, Unavailable
from perdure.security.documents import Documents, StoredDocument
from perdure.security.framing import join_fields
from perdure.security.ring import KeyRing
from perdure.security.training import train
from perdure.snapshots.cells import CellWalk
from perdure.snapshots.cut import cut
from perdure.snapshots.zstd import NO_DICTIONARY, ChunkDictionary, builtin

__all__ = ["CHUNK_DICTIONARIES_SCOPE", "ChunkDictionarySet", "DictionaryStore", "samples_of", "train_dictionary"]

CHUNK_DICTIONARIES_SCOPE: Final = "chunk-dictionaries/"
"""Followed by the tenant; a document's name is the dictionary's id in decimal."""
_log = logging.getLogger(__name__)
ID_FIRST: Final = 16
"""Ids 1 … 15 are for dictionaries that ship with the package, now and later."""
SAMPLE_BYTES: Final = 4 * limits.KIB
"""Chunks are handed to the trainer in pieces of so many bytes, so that a few agents are enough."""
PLENTY: Final = 8
LOOK_AGAIN_S: Final = 60.0
"""After so long a process looks whether others have trained since. What a snapshot needs is looked for at once."""


class _Content(msgspec.Struct, frozen=True, array_like=True):
    format: int
    agent_type: str
    dictionary: bytes


class _Lesson:
    """What was seen of a type of agents. ended: a training was tried."""

    def __init__(self) -> None:
        self.agents: set[str] = set()
        self.samples: list[bytes] = []
        self.ended = False


class ChunkDictionarySet:
    """A tenant's dictionaries by id. Grows in place."""

    def __init__(self) -> None:
        self._by_id: dict[int, ChunkDictionary] = {}
        self._newest: dict[str, ChunkDictionary] = {}
        self.looked_s = 0.0

    @property
    def ids(self) -> list[int]:
        """Of the tenant's own, ascending."""
        return sorted(self._by_id)

    def find(self, id: int) -> ChunkDictionary | None:
        """The one with this id, or None where it is not loaded."""
        if id < ID_FIRST:
            return {0: NO_DICTIONARY, builtin().id: builtin()}.get(id)
        return self._by_id.get(id)

    def newest(self, agent_type: str) -> ChunkDictionary:
        """The one for new chunks of agents of this type: the newest that was trained on them, or the built-in one."""
        return self._newest.get(agent_type, builtin())

    def learn(self, dictionary: ChunkDictionary) -> None:
        """Take in one of the tenant's dictionaries; the highest id of a type is its newest."""
        self._by_id[dictionary.id] = dictionary
        standing = self._newest.get(dictionary.agent_type)
        if standing is None or standing.id < dictionary.id:
            self._newest[dictionary.agent_type] = dictionary


class DictionaryStore:
    """All tenants' chunk dictionaries. ring: gives the keys that seal them. documents: where they are kept. learns: whether a type of agents gets its
    first dictionary by itself, as soon as snapshots of enough of them were written here."""

    def __init__(self, ring: KeyRing, documents: Documents, *, learns: bool = True) -> None:
        self._ring = ring
        self._documents = documents
        self._sets: OrderedDict[str, ChunkDictionarySet] = OrderedDict()
        self._learns = learns
        self._lessons: OrderedDict[tuple[str, str], _Lesson] = OrderedDict()

    async def newest(self, tenant: str, agent_type: str) -> ChunkDictionary:
        """The one for new chunks of the tenant's agents of a type."""
        found = self._sets.get(tenant)
        if found is None or time.monotonic() - found.looked_s > LOOK_AGAIN_S:
            found = await self.load(tenant)
        return found.newest(agent_type)

    async def known(self, tenant: str, needed: Collection[int] = ()) -> ChunkDictionarySet:
        """Those that the tenant's chunks may name. needed: ids that somebody names; they are looked up when they are not known yet."""
        found = self._sets.get(tenant)
        if found is None or any(found.find(id) is None for id in needed):
            found = await self.load(tenant)
        return found

    async def load(self, tenant: str) -> ChunkDictionarySet:
        """Take in the dictionaries that were trained since, here or elsewhere. Raises SealBroken, KeyUnavailable."""
        documents = await self._documents.list_documents(CHUNK_DICTIONARIES_SCOPE + tenant)
        found = self._remember(tenant)
        for document in documents:
            if found.find(_id_of(document)) is None:
                found.learn(await self._open(tenant, document))
        found.looked_s = time.monotonic()
        return found

    async def add(self, tenant: str, agent_type: str, samples: Iterable[bytes]) -> int:
        """Train a dictionary for a type of agents, store it and use it from now on; its id. samples: as `samples_of` gives them, oldest first.

        Training runs in a thread. Raises InvalidInput when the samples are too few, LimitExceeded.
        """
        trained = await asyncio.to_thread(train_dictionary, list(samples))
        content = msgspec.msgpack.encode(_Content(1, agent_type, trained))
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            documents = await self._documents.list_documents(CHUNK_DICTIONARIES_SCOPE + tenant)
            if len(documents) >= limits.DICTIONARIES_PER_TENANT_MAX:
                raise LimitExceeded(f"the tenant has {len(documents)} chunk dictionaries, the limit", tenant=tenant)
            id = max((_id_of(document) for document in documents), default=ID_FIRST - 1) + 1
            sealed = (await self._ring.tenant_key(tenant)).seal(_context(id), content)
            # Another process may have taken the id in between: then the next one.
            if await self._documents.put_document(CHUNK_DICTIONARIES_SCOPE + tenant, str(id), sealed, expected=0) is not None:
                await self.load(tenant)
                return id
        raise Unavailable("chunk dictionaries of this tenant are being added by others all the time", tenant=tenant)

    async def see(self, tenant: str, agent_type: str, agent: str, document: Mapping[str, Any]) -> None:
        """A state of which a snapshot was written: something to learn from, while its type has no dictionary of its own.

        What a training fails with is logged, and the type is left alone then: a snapshot never fails for want of a dictionary.
        """
        lesson = self._lesson(tenant, agent_type, agent) if self._learns else None
        if lesson is None:
            return
        lesson.agents.add(agent)
        lesson.samples += islice(samples_of((document,)), limits.CHUNK_TRAINING_SAMPLES_PER_AGENT)
        if len(lesson.agents) < limits.CHUNK_TRAINING_AGENTS_MIN or len(lesson.samples) < limits.CHUNK_TRAINING_SAMPLES_MIN:
            return
        samples, lesson.samples, lesson.ended = lesson.samples, [], True
        try:
            if (await self.load(tenant)).newest(agent_type).id < ID_FIRST:
                await self.add(tenant, agent_type, samples)
        except PerdureError as problem:
            _log.warning("no chunk dictionary for agents of type %r of tenant %r: %s", agent_type, tenant, problem)

    def _lesson(self, tenant: str, agent_type: str, agent: str) -> _Lesson | None:
        """What was seen of a type, None where there is nothing more to learn, or not from this agent."""
        known = self._sets.get(tenant)
        if known is not None and known.newest(agent_type).id >= ID_FIRST:
            return None
        lesson = self._lessons.setdefault((tenant, agent_type), _Lesson())
        self._lessons.move_to_end((tenant, agent_type))
        if len(self._lessons) > limits.CHUNK_TRAINING_TYPES_MAX:
            self._lessons.popitem(last=False)
        return None if lesson.ended or agent in lesson.agents else lesson

    async def _open(self, tenant: str, document: StoredDocument) -> ChunkDictionary:
        id = _id_of(document)
        key = await self._ring.tenant_key(tenant)
        if not key.holds(document.value):
            key = await self._ring.tenant_key(tenant, refresh=True)  # sealed by a process that has rotated the key
        try:
            content = msgspec.msgpack.decode(key.open(_context(id), document.value), type=_Content)
        except msgspec.MsgspecError as error:
            raise SealBroken(f"chunk dictionary {id} is not readable", tenant=tenant, dictionary=id) from error
        if content.format != 1:
            raise SealBroken(f"chunk dictionary {id} has format {content.format}, unknown to this release", tenant=tenant, dictionary=id)
        return await asyncio.to_thread(ChunkDictionary, id, content.dictionary, content.agent_type)

    def _remember(self, tenant: str) -> ChunkDictionarySet:
        found = self._sets.setdefault(tenant, ChunkDictionarySet())
        self._sets.move_to_end(tenant)
        if len(self._sets) > limits.DICTIONARY_TENANTS_CACHED_MAX:
            self._sets.popitem(last=False)
        return found


def samples_of(documents: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """What a dictionary for states like these is trained on: pieces of their chunks, at most `limits.TRAINING_BYTES_MAX` bytes."""
    size_bytes = 0
    for document in documents:
        for chunk in cut(CellWalk(document).groups()):
            for start in range(0, len(chunk.plaintext), SAMPLE_BYTES):
                yield chunk.plaintext[start : start + SAMPLE_BYTES]
            size_bytes += len(chunk.plaintext)
            if size_bytes > limits.TRAINING_BYTES_MAX:
                return


def train_dictionary(samples: Sequence[bytes]) -> bytes:
    """A dictionary's content, of the largest size where there is plenty to learn from: chunks are long enough for it. Raises InvalidInput."""
    plenty = sum(map(len, samples)) >= PLENTY * limits.DICTIONARY_BYTES_MAX
    return train(samples, limits.DICTIONARY_BYTES_MAX if plenty else None)


def _id_of(document: StoredDocument) -> int:
    if not (document.name.isascii() and document.name.isdecimal() and ID_FIRST <= int(document.name) < 1 << 32):
        raise SealBroken(f"a chunk dictionary's document is named {document.name!r}, which is no id")
    return int(document.name)


def _context(id: int) -> bytes:
    return join_fields(b"chunk dictionary", id.to_bytes(4, "big"))
