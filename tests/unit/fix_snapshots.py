"""Keys, states and packed snapshots for the unit tests of snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from perdure import limits
from perdure.engine.replay import Folded
from perdure.security.cipher import Cipher
from perdure.security.dictionary_set import BUILTIN
from perdure.security.tenant_key import TenantKey
from perdure.snapshots.check import CheckKeys
from perdure.snapshots.keys import SnapshotKeys
from perdure.snapshots.manifest import Manifest
from perdure.snapshots.pack import pack

CREATED_US = 1_700_000_000_000_000


class Stored(NamedTuple):
    """A snapshot as a store would hold it: manifest, sealed manifest, chunks by object name."""

    manifest: Manifest
    sealed: bytes
    chunks: dict[str, bytes]

    def in_order(self, keys: SnapshotKeys) -> list[bytes]:
        return [self.chunks[keys.chunk_object(chunk.name)] for chunk in self.manifest.chunks]


def make_keys(tenant: str = "acme", agent: str = "one", *, secret: int = 1, data_key: int = 2) -> SnapshotKeys:
    """The keys of an agent. secret: of the tenant; data_key: of the agent."""
    return SnapshotKeys(TenantKey(tenant, {1: bytes([secret]) * 32}), Cipher(tenant, agent, bytes([data_key]) * 32, BUILTIN))


def state_of(document: dict[str, Any], version: int = 7) -> Folded:
    """A state at a version."""
    return Folded(document, version, 3, CREATED_US - 1, bytes(range(32)), ["version 2: something was surprising"])


def store(state: Folded, keys: SnapshotKeys, before: Stored | None = None, **options: Any) -> Stored:
    """Pack a state; before: the snapshot whose chunks are there already."""
    packed = pack(state, keys=keys, created_us=CREATED_US, previous=before.manifest if before else None, **options)
    chunks = dict(before.chunks) if before else {}
    chunks.update((chunk.object, chunk.sealed) for chunk in packed.chunks)
    return Stored(packed.manifest, packed.sealed_manifest(), chunks)


def conversation(messages: int, seed: int = 0) -> dict[str, Any]:
    """A document with a long list, a map and scalars."""
    texts = [
        {"role": "user" if number % 2 else "assistant", "content": f"{seed}:{number} " * (number % 40 + 1)} for number in range(messages)
    ]
    return {"messages": texts, "profile": {"name": "ä", "tags": ["x", 1, 1.5, None]}, "status": "busy", "empty": [], "void": {}}


@contextmanager
def small_chunks() -> Iterator[None]:
    """Chunks of a few cells, so that small states have many."""
    sizes = {"MIN": 60, "STEP": 100, "MAX": 400, "UNIT_BYTES_MAX": 200}
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(limits, f"CHUNK_{name if 'UNIT' in name else 'BYTES_' + name}", size)
        patch.setattr(limits, "INLINE_BYTES_MAX", 500)
        yield


def check_keys(tenant: str = "acme", agent: str = "one", *, secret: int = 1, data_key: int = 2) -> CheckKeys:
    """The same keys as `make_keys`, for the checker."""
    secrets, mark = TenantKey(tenant, {1: bytes([secret]) * 32}).snapshot_secrets()
    builtin = {1: BUILTIN.newest.content}.get
    return CheckKeys(tenant, agent, bytes([data_key]) * 32, secrets, mark, builtin, builtin)
