"""The independent checker at work on a store: it gets the keys and the objects, and decides by itself what they are worth."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Final

from perdure import limits
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.engine.vault import Vault
from perdure.errors import IntegrityError, LimitExceeded, ObjectNotFound
from perdure.security.cipher import key_version_of
from perdure.snapshots.check import Checked, CheckKeys, check_snapshot
from perdure.snapshots.contents import Contents

__all__ = ["check_independently"]

HEADER_BYTES: Final = 21
"""Of a stored manifest, before its seal (docs/format/snapshot.md)."""
FETCH_TIMEOUT_S: Final = 2 * limits.STORE_RETRY_S + limits.STORE_REQUEST_TIMEOUT_S
"""A thread that waits longer for an object ends by itself: its event loop is gone."""


async def check_independently(contents: Contents, vault: Vault, row: SnapshotRow) -> Checked:
    """Check everything that a row's manifest lists. Raises ObjectNotFound, IntegrityError (the manifest is not the row's), Unavailable,
    KeyUnavailable; what is wrong with the content is in the answer."""
    sealed = await contents.sealed_manifest(row)
    if sha256(sealed).digest() != row.manifest_digest:
        raise IntegrityError("a manifest is not the one that was registered", tenant=row.tenant, agent=row.agent, version=row.version)
    keys = await _keys(contents, vault, row, sealed)
    loop = asyncio.get_running_loop()

    async def get(name: str) -> bytes | None:
        try:
            return await contents.objects.get(name, bytes_max=limits.STORE_OBJECT_BYTES_MAX)
        except (ObjectNotFound, LimitExceeded):
            return None

    def fetch(name: str) -> bytes | None:
        return asyncio.run_coroutine_threadsafe(get(name), loop).result(FETCH_TIMEOUT_S)

    return await asyncio.shield(asyncio.to_thread(check_snapshot, sealed, row.version, fetch, keys))


async def _keys(contents: Contents, vault: Vault, row: SnapshotRow, sealed: bytes) -> CheckKeys:
    record = await vault.record(row.tenant, row.agent)
    data_key = await vault.ring.unwrap_data_key(row.tenant, row.agent, record.data_key)
    seal = sealed[HEADER_BYTES:]
    tenant_key = await vault.ring.key_for(row.tenant, seal)
    secrets, mark = tenant_key.snapshot_secrets()
    manifest = await contents.manifest(row)
    chunks = await contents.book.known(row.tenant, {chunk.dictionary for chunk in manifest.chunks})
    events = await vault.book.load(row.tenant)

    def of_events(id: int) -> bytes | None:
        found = events.find(id)
        return found.content if found is not None else None

    def of_chunks(id: int) -> bytes | None:
        found = chunks.find(id)
        return found.content if found is not None else None

    agent_key = tenant_key.agent_key(key_version_of(seal), data_key)
    return CheckKeys(row.tenant, row.agent, agent_key, secrets, mark, of_events, of_chunks)
