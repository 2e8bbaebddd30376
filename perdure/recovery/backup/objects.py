"""The objects of a backup: their names, and how they are sealed.

Everything but large values (which are sealed already) is msgpack, compressed by zstd and sealed with AES-256-GCM under the backup key, bound to
its own name: an object that is cut, changed or put in another's place does not open. The backup key is made once for a store of backups, and is
kept there wrapped by the root key. docs/format/backup.md specifies the bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any, Final, TypeVar

import msgspec
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from perdure.errors import IntegrityError, LimitExceeded, ObjectNotFound, SealBroken
from perdure.limits import STORE_OBJECT_BYTES_MAX
from perdure.security.framing import join_fields
from perdure.security.keys import KeyProvider
from perdure.snapshots.store.contract import SnapshotStore

__all__ = ["PREFIX", "Vessel", "blob_object", "open_vessel"]

PREFIX: Final = "backups/"
PLAIN_BYTES_MAX: Final = 1 << 30
"""Of one object, decompressed."""
_KEY_NAME: Final = PREFIX + "key"
_KEY_BYTES: Final = 32
_MAGIC: Final = b"PDB1"
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_LEVEL: Final = 1
_CONTEXT: Final = b"perdure backup key"

T = TypeVar("T")
_encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode


class Vessel:
    """A store of backups and the key of its objects. root: whose key wraps that key."""

    def __init__(self, store: SnapshotStore, key: bytes, root: str) -> None:
        self.store = store
        self.root = root
        self._cipher = AESGCM(key)

    async def put(self, name: str, value: Any) -> tuple[bytes, int]:
        """Seal and keep a value under a new name, read it back; (SHA-256 of what is stored, its bytes)."""
        sealed = await asyncio.to_thread(self._seal, name, _encode(value))
        await self.store.put(name, sealed)
        # Whatever stands there now is what a restore will read: also where the name was taken by an attempt before this one.
        stored = await self.store.get(name, bytes_max=STORE_OBJECT_BYTES_MAX)
        if stored != sealed:
            await asyncio.to_thread(self._open, name, stored)
        return hashlib.sha256(stored).digest(), len(stored)

    async def get(self, name: str, kind: type[T], digest: bytes | None = None) -> T:
        """The value under a name. Raises IntegrityError (it is gone, another, or cut) naming the object."""
        try:
            stored = await self.store.get(name, bytes_max=STORE_OBJECT_BYTES_MAX)
        except ObjectNotFound as problem:
            raise IntegrityError(f"the backup's object {name} is not there", object=name) from problem
        except LimitExceeded as problem:
            raise IntegrityError(f"the backup's object {name} is larger than any that was written", object=name) from problem
        if digest is not None and hashlib.sha256(stored).digest() != digest:
            raise IntegrityError(f"the backup's object {name} is not the one that was written", object=name)
        plain = await asyncio.to_thread(self._open, name, stored)
        try:
            return msgspec.msgpack.decode(plain, type=kind)
        except msgspec.MsgspecError as problem:
            raise IntegrityError(f"the backup's object {name} does not read: {problem}", object=name) from problem

    def _seal(self, name: str, plain: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        frame = zstandard.ZstdCompressor(level=_LEVEL).compress(plain)
        return _MAGIC + nonce + self._cipher.encrypt(nonce, frame, _associated(name))

    def _open(self, name: str, stored: bytes) -> bytes:
        start = len(_MAGIC) + _NONCE_BYTES
        if len(stored) < start + _TAG_BYTES or stored[: len(_MAGIC)] != _MAGIC:
            raise SealBroken(f"{name} is no object of a backup", object=name)
        try:
            frame = self._cipher.decrypt(stored[len(_MAGIC) : start], stored[start:], _associated(name))
        except InvalidTag as problem:
            raise SealBroken(f"the backup's object {name} was changed, or is not of this store", object=name) from problem
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= PLAIN_BYTES_MAX:
            raise IntegrityError(f"the backup's object {name} claims {size} bytes", object=name)
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)


async def open_vessel(store: SnapshotStore, provider: KeyProvider, *, create: bool = False) -> Vessel:
    """The store and its backup key. create: the key is made for the first backup; else a store without one is empty, and stays as it is. Raises
    KeyUnavailable, SealBroken, Unavailable."""
    facts = await store.facts(_KEY_NAME)
    if facts is None:
        key = os.urandom(_KEY_BYTES)
        if not create:
            return Vessel(store, key, "")  # there is nothing that it would have to open
        content = _encode({"format": 1, "root": provider.key_id, "wrapped": await provider.wrap(key, _CONTEXT)})
        await store.put(_KEY_NAME, content)
    # Of several that begin at once, one's key stands.
    kept = msgspec.msgpack.decode(await store.get(_KEY_NAME, bytes_max=STORE_OBJECT_BYTES_MAX))
    return Vessel(store, await provider.unwrap(kept["wrapped"], _CONTEXT), kept["root"])


def blob_object(tenant: str, name: bytes) -> str:
    """Where a large value is kept."""
    return f"{PREFIX}blobs/{hashlib.sha256(tenant.encode()).hexdigest()[:16]}/{name.hex()}"


def _associated(name: str) -> bytes:
    return join_fields(b"perdure backup", name.encode())
