"""The key ring: root key → tenant keys → data keys of agents.

Only tenant keys need the provider and the log; they are cached. Data keys are wrapped and unwrapped synchronously, by the ten thousand a second.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from typing import Final

import msgspec

from perdure import limits
from perdure.errors import KeyUnavailable, LimitExceeded, SealBroken, Unavailable
from perdure.security.documents import Documents, StoredDocument
from perdure.security.framing import join_fields
from perdure.security.keys import KeyProvider
from perdure.security.tenant_key import KEY_BYTES, TenantKey

__all__ = ["TENANT_KEYS_SCOPE", "KeyRing", "TenantKey"]

TENANT_KEYS_SCOPE: Final = "tenant-keys"


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A tenant's document: version → key wrapped by the provider. No versions at all: the keys were destroyed."""

    format: int
    wrapped: dict[int, bytes]


class KeyRing:
    """The tenants' keys. provider: holds the root key. documents: the log's control documents, where wrapped tenant keys are kept."""

    def __init__(self, provider: KeyProvider, documents: Documents) -> None:
        self._provider = provider
        self._documents = documents
        self._cached: OrderedDict[str, TenantKey] = OrderedDict()
        self._lock = asyncio.Lock()

    async def tenant_key(self, tenant: str, *, refresh: bool = False) -> TenantKey:
        """The tenant's key, made at first use; of several makers one wins and all get its key.

        refresh: read it again, after a `KeyUnavailable` about a version that another process made. Raises KeyUnavailable, SealBroken.
        """
        key = self._cached.get(tenant)
        if key is not None and not refresh:
            self._cached.move_to_end(tenant)
            return key
        async with self._lock:
            # Whoever waited for the lock finds the key that the one before has loaded.
            newer = self._cached.get(tenant)
            if newer is not None and newer is not key:
                return newer
            return self._remember(tenant, await self._load_or_create(tenant))

    async def unwrap_data_key(self, tenant: str, agent: str, wrapped: bytes) -> bytes:
        """As `TenantKey.unwrap_data_key`, and loads the tenant's key again when another process has rotated it."""
        key = await self.tenant_key(tenant)
        if not key.holds(wrapped):
            key = await self.tenant_key(tenant, refresh=True)
        return key.unwrap_data_key(agent, wrapped)

    async def rotate_tenant_key(self, tenant: str) -> TenantKey:
        """Give the tenant a new key version that wraps and names from now on; the older versions keep opening what they closed."""
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            await self.tenant_key(tenant)
            document, record = await self._read(tenant)
            version = max(record.wrapped) + 1
            if version > limits.TENANT_KEY_VERSIONS_MAX:
                raise LimitExceeded(f"a tenant's key has at most {limits.TENANT_KEY_VERSIONS_MAX} versions", tenant=tenant)
            wrapped = await self._provider.wrap(os.urandom(KEY_BYTES), _context(tenant, version))
            grown = _Record(1, {**record.wrapped, version: wrapped})
            if await self._write(tenant, grown, expected=document.revision):
                return self._remember(tenant, await self._unwrap(tenant, grown))
        raise Unavailable("the tenant's key is being changed by others all the time", tenant=tenant)

    async def rewrap(self, tenant: str) -> None:
        """Wrap all versions of the tenant's key under the provider's current root key; afterwards the older root keys are not needed."""
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            document, record = await self._read(tenant)
            wrapped = {}
            for version, value in record.wrapped.items():
                context = _context(tenant, version)
                wrapped[version] = await self._provider.wrap(await self._provider.unwrap(value, context), context)
            if await self._write(tenant, _Record(1, wrapped), expected=document.revision):
                return
        raise Unavailable("the tenant's key is being changed by others all the time", tenant=tenant)

    async def tenants(self) -> list[str]:
        """The tenants that have keys, sorted."""
        return sorted(document.name for document in await self._documents.list_documents(TENANT_KEYS_SCOPE))

    async def _load_or_create(self, tenant: str) -> TenantKey:
        if await self._documents.get_document(TENANT_KEYS_SCOPE, tenant) is None:
            wrapped = await self._provider.wrap(os.urandom(KEY_BYTES), _context(tenant, 1))
            await self._write(tenant, _Record(1, {1: wrapped}), expected=0)
        # Read back also after an own write: what is used must be what every other process will find.
        return await self._unwrap(tenant, (await self._read(tenant))[1])

    async def _read(self, tenant: str) -> tuple[StoredDocument, _Record]:
        document = await self._documents.get_document(TENANT_KEYS_SCOPE, tenant)
        if document is None:
            raise KeyUnavailable("the tenant has no key", tenant=tenant, reason="missing")
        try:
            record = msgspec.msgpack.decode(document.value, type=_Record)
        except msgspec.DecodeError as error:
            raise SealBroken("the tenant's key document is damaged", tenant=tenant) from error
        if record.format != 1:
            raise SealBroken(f"the tenant's key document has format {record.format}, unknown to this release", tenant=tenant)
        if not record.wrapped:
            raise KeyUnavailable("the tenant's keys were destroyed", tenant=tenant, reason="destroyed")
        return document, record

    async def _write(self, tenant: str, record: _Record, *, expected: int) -> bool:
        value = msgspec.msgpack.encode(record)
        return await self._documents.put_document(TENANT_KEYS_SCOPE, tenant, value, expected=expected) is not None

    async def _unwrap(self, tenant: str, record: _Record) -> TenantKey:
        keys = {version: await self._provider.unwrap(value, _context(tenant, version)) for version, value in record.wrapped.items()}
        return TenantKey(tenant, keys)

    def _remember(self, tenant: str, key: TenantKey) -> TenantKey:
        self._cached[tenant] = key
        self._cached.move_to_end(tenant)
        if len(self._cached) > limits.TENANT_KEYS_CACHED_MAX:
            self._cached.popitem(last=False)
        return key


def _context(tenant: str, version: int) -> bytes:
    return join_fields(b"perdure tenant key", tenant.encode(), version.to_bytes(4, "big"))
