"""The key ring: root key → tenant keys → data keys of agents.

Only tenant keys need the provider and the log; they are cached for a while. Data keys are wrapped and unwrapped synchronously, by the ten
thousand a second.

What holds of the cache: a tenant's key is used for at most `limits.KEY_CACHE_LIFETIME_S` before the log and the provider are asked again; so
long it may take until a process follows a rotation or a destruction by another one. While one of them is away, and only then, the key goes on
to be used for `limits.KEY_CACHE_OUTAGE_S`. A tenant whose key cannot be had holds up no other tenant.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, runtime_checkable
from weakref import WeakValueDictionary

import msgspec

from perdure import limits
from perdure.errors import KeyUnavailable, LimitExceeded, PerdureError, SealBroken, Unavailable
from perdure.security.documents import Documents, StoredDocument
from perdure.security.framing import join_fields
from perdure.security.keys import KeyProvider, key_id_of
from perdure.security.tenant_key import KEY_BYTES, TenantKey

__all__ = ["TENANT_KEYS_SCOPE", "KeyRing", "TenantKey"]

TENANT_KEYS_SCOPE: Final = "tenant-keys"


@runtime_checkable
class _MadeAtFirstUse(Protocol):
    """A provider that makes its first root key by itself."""

    def missing(self) -> bool: ...


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A tenant's document: version → key wrapped by the provider. No versions at all: the keys were destroyed."""

    format: int
    wrapped: dict[int, bytes]


class _Cached(msgspec.Struct):
    """A key in use. turn: number of the load that it is of. fresh_until, usable_until: on the ring's clock."""

    key: TenantKey
    wrapped: dict[int, bytes]
    turn: int
    fresh_until: float
    usable_until: float


class KeyRing:
    """The tenants' keys. provider: holds the root key. documents: the log's control documents, where wrapped tenant keys are kept.

    lifetime_s: of a cached key; clock: seconds, monotonic.
    """

    def __init__(
        self,
        provider: KeyProvider,
        documents: Documents,
        *,
        lifetime_s: float = limits.KEY_CACHE_LIFETIME_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.provider = provider
        self._documents = documents
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._cached: OrderedDict[str, _Cached] = OrderedDict()
        # A key that a cipher still holds must stay the one that learns new versions, also when it is not cached any more.
        self._alive: WeakValueDictionary[str, TenantKey] = WeakValueDictionary()
        self._turns = 0
        self._renewals: dict[str, asyncio.Task[TenantKey]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def is_fresh(self, tenant: str) -> bool:
        """Whether the tenant's key, and the ciphers that share it, may be used without asking."""
        cached = self._cached.get(tenant)
        return cached is not None and cached.fresh_until > self._clock()

    async def tenant_key(self, tenant: str, *, refresh: bool = False) -> TenantKey:
        """The tenant's key, made at first use; of several makers one wins and all get its key.

        refresh: read it again, after a `KeyUnavailable` about a version that another process made. Raises KeyUnavailable, SealBroken.
        """
        cached = self._cached.get(tenant)
        if cached is not None and not refresh and cached.fresh_until > self._clock():
            self._cached.move_to_end(tenant)
            return cached.key
        turn = self._turns
        lock = self._locks.setdefault(tenant, asyncio.Lock())
        async with lock:
            # Whoever waited for the lock takes what the one before has loaded, if that began to load after this call, or may be used anyway.
            newer = self._cached.get(tenant)
            if newer is not None and (newer.turn > turn or not refresh) and newer.fresh_until > self._clock():
                return newer.key
            return await self._renew(tenant, cached, must=refresh)

    async def unwrap_data_key(self, tenant: str, agent: str, wrapped: bytes) -> bytes:
        """As `TenantKey.unwrap_data_key`, and loads the tenant's key again when another process has rotated it."""
        return (await self.key_for(tenant, wrapped)).unwrap_data_key(agent, wrapped)

    async def unwrap_material(self, tenant: str, agent: str, wrapped: bytes) -> bytes:
        """As `unwrap_data_key`, with what the agent inherited from other engines."""
        return (await self.key_for(tenant, wrapped)).unwrap_material(agent, wrapped)

    async def key_for(self, tenant: str, sealed: bytes) -> TenantKey:
        """The tenant's key, loaded again when it does not know the version that a wrapped or sealed value names."""
        key = await self.tenant_key(tenant)
        return key if key.holds(sealed) else await self.tenant_key(tenant, refresh=True)

    async def rotate_tenant_key(self, tenant: str) -> TenantKey:
        """Give the tenant a new key version that seals, wraps and names from now on; the older versions keep opening what they closed."""
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            await self.tenant_key(tenant)
            document, record = await self._read(tenant)
            version = max(record.wrapped) + 1
            if version > limits.TENANT_KEY_VERSIONS_MAX:
                raise LimitExceeded(f"a tenant's key has at most {limits.TENANT_KEY_VERSIONS_MAX} versions", tenant=tenant)
            wrapped = await self.provider.wrap(os.urandom(KEY_BYTES), _context(tenant, version))
            grown = _Record(1, {**record.wrapped, version: wrapped})
            if await self._write(tenant, grown, expected=document.revision):
                return await self.tenant_key(tenant, refresh=True)
        raise Unavailable("the tenant's key is being changed by others all the time", tenant=tenant)

    async def rewrap(self, tenant: str, *, previous: KeyProvider | None = None) -> None:
        """Wrap all versions of the tenant's key under the provider's current root key; afterwards the older root keys are not needed.

        previous: the provider that wrapped them, when it is another one.
        """
        opener = previous or self.provider
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            document, record = await self._read(tenant)
            wrapped = {}
            for version, value in record.wrapped.items():
                context = _context(tenant, version)
                wrapped[version] = await self.provider.wrap(await opener.unwrap(value, context), context)
            if await self._write(tenant, _Record(1, wrapped), expected=document.revision):
                return
        raise Unavailable("the tenant's key is being changed by others all the time", tenant=tenant)

    async def check_root_key(self) -> None:
        """Raise KeyUnavailable where the provider would make a root key in place of one that is gone and that other tenants' keys need: it would
        hide the loss, and divide the log between two root keys."""
        if isinstance(self.provider, _MadeAtFirstUse) and await asyncio.to_thread(self.provider.missing):
            for other in await self.tenants():
                try:
                    _, record = await self._read(other)
                except KeyUnavailable:
                    continue  # destroyed: it needs none
                version = max(record.wrapped)
                await self.provider.unwrap(record.wrapped[version], _context(other, version))
                return

    async def tenants(self) -> list[str]:
        """The tenants that have keys, sorted."""
        return sorted(document.name for document in await self._documents.list_documents(TENANT_KEYS_SCOPE))

    async def root_key_ids(self, tenant: str) -> dict[int, str]:
        """Version of the tenant's key → id of the root key that wraps it. Raises KeyUnavailable, SealBroken."""
        _, record = await self._read(tenant)
        return {version: key_id_of(value) for version, value in sorted(record.wrapped.items())}

    async def _renew(self, tenant: str, cached: _Cached | None, *, must: bool) -> TenantKey:
        if cached is None or must or cached.usable_until <= self._clock():
            return await self._load(tenant, cached)
        # Who has a key that is good for a while yet is not held up long by a log or a provider that does not answer. The question stays
        # asked, by one task: its answer is learned when it comes.
        task = self._renewals.get(tenant)
        if task is None:
            task = self._renewals[tenant] = asyncio.create_task(self._load(tenant, cached), name=f"perdure-key-{tenant}")
            task.add_done_callback(partial(self._forget_renewal, tenant))
        done, _ = await asyncio.wait({task}, timeout=limits.KEY_RENEWAL_WAIT_S)
        if done and not isinstance(task.exception(), Unavailable):
            return task.result()
        cached.fresh_until = self._clock() + limits.KEY_CACHE_RETRY_S
        return cached.key

    def _forget_renewal(self, tenant: str, task: asyncio.Task[TenantKey]) -> None:
        del self._renewals[tenant]
        if not task.cancelled():
            task.exception()  # nobody may be waiting any more; who asks next is told again

    async def _load(self, tenant: str, cached: _Cached | None) -> TenantKey:
        try:
            return await self._load_or_create(tenant, cached)
        except Unavailable:
            raise
        except PerdureError:
            self._cached.pop(tenant, None)  # destroyed, denied or damaged: from now on nobody uses what was cached
            raise

    async def _load_or_create(self, tenant: str, cached: _Cached | None) -> TenantKey:
        self._turns += 1
        turn = self._turns
        if await self._documents.get_document(TENANT_KEYS_SCOPE, tenant) is None:
            await self.check_root_key()
            wrapped = await self.provider.wrap(os.urandom(KEY_BYTES), _context(tenant, 1))
            await self._write(tenant, _Record(1, {1: wrapped}), expected=0)
        # Read back also after an own write: what is used must be what every other process will find.
        _, record = await self._read(tenant)
        known = {} if cached is None else cached.wrapped
        newest = max(record.wrapped)
        # The newest is always unwrapped: it shows that the provider still lets us.
        wanted = {version: value for version, value in record.wrapped.items() if version == newest or known.get(version) != value}
        keys = {version: await self.provider.unwrap(value, _context(tenant, version)) for version, value in wanted.items()}
        return self._remember(tenant, keys, record.wrapped, turn)

    async def _read(self, tenant: str) -> tuple[StoredDocument, _Record]:
        document = await self._documents.get_document(TENANT_KEYS_SCOPE, tenant)
        if document is None:
            raise KeyUnavailable(f"tenant {tenant!r} has no key", tenant=tenant, reason="missing")
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

    def _remember(self, tenant: str, keys: dict[int, bytes], wrapped: dict[int, bytes], turn: int) -> TenantKey:
        key = self._alive.get(tenant)
        if key is None:
            key = self._alive[tenant] = TenantKey(tenant, keys)
        else:
            key.learn(keys)
        now = self._clock()
        self._cached[tenant] = _Cached(key, wrapped, turn, now + self._lifetime_s, now + limits.KEY_CACHE_OUTAGE_S)
        self._cached.move_to_end(tenant)
        if len(self._cached) > limits.TENANT_KEYS_CACHED_MAX:
            self._cached.popitem(last=False)
        return key


def _context(tenant: str, version: int) -> bytes:
    return join_fields(b"perdure tenant key", tenant.encode(), version.to_bytes(4, "big"))
