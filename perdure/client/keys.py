"""Keys under the engine: a tenant's own, their rotation, and the root key's.

What a rotation changes, and what it does not: from its moment on everything new of the tenant is sealed under the new version of its key, in
this process at once, in others within `limits.KEY_CACHE_LIFETIME_S`. The agents' data keys are wrapped anew. No event, snapshot or large value
is rewritten: what is there stays readable under the versions that sealed it, which are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.contract import LogStore
from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.errors import ConfigurationError, KeyUnavailable, PerdureError, SealBroken
from perdure.security.keys import KeyProvider
from perdure.security.ring import KeyRing

__all__ = ["KeyFacts", "Keys", "RootRotation", "Rotation"]

Progress = Callable[[int, int], None]


class KeyFacts(msgspec.Struct, frozen=True):
    """What there is to say of a tenant's key. version: the newest. root_keys: version → id of the root key that wraps it.

    state: `ok`, or the code of the error that stands in the way, with its message as `reason`.
    """

    tenant: str
    version: int
    root_keys: dict[int, str]
    state: str = "ok"
    reason: str = ""


class Rotation(msgspec.Struct, frozen=True):
    """A rotation that was done. rewrapped: agents whose data keys are wrapped anew. left: whose keys could not be, with the reason."""

    tenant: str
    previous: int
    version: int
    rewrapped: int
    left: dict[str, str]


class RootRotation(msgspec.Struct, frozen=True):
    """The root key that now wraps, and the tenants whose keys it wraps; left: those that could not be wrapped anew, with the reason."""

    key_id: str
    tenants: tuple[str, ...]
    left: dict[str, str]


@runtime_checkable
class _Growing(Protocol):
    """A provider that can make its own next root key."""

    async def add_key(self) -> str: ...


class Keys:
    """See the module. store: the log. ring: the tenants' keys."""

    def __init__(self, store: LogStore, ring: KeyRing) -> None:
        self._store = store
        self._ring = ring

    @property
    def root_key_id(self) -> str:
        """The id of the root key that wraps from now on."""
        return self._ring.provider.key_id

    async def ensure_root_key(self) -> str:
        """The id of the root key, which is made where there is none and none is needed yet. Raises KeyUnavailable."""
        await self._ring.check_root_key()
        return self.root_key_id

    async def generate_encryption_key(self, tenant: str) -> KeyFacts:
        """Make the tenant's key, where it has none; what there is then. Raises KeyUnavailable when it was destroyed: it is never made again;
        InvalidInput, LimitExceeded for what is no tenant's name."""
        check_names(AgentName(tenant, "any"))
        await self._ring.tenant_key(tenant, refresh=True)
        return await self._facts(tenant)

    async def list(self, tenant: str | None = None) -> list[KeyFacts]:
        """The keys of all tenants, or of one, each tried: one that cannot be had is listed with the reason."""
        tenants = [tenant] if tenant is not None else await self._ring.tenants()
        turn = asyncio.Semaphore(limits.KEYS_LISTED_AT_ONCE_MAX)

        async def look(name: str) -> KeyFacts:
            async with turn:
                return await self._facts(name)

        return await asyncio.gather(*map(look, tenants))

    async def rotate_encryption_key(self, tenant: str, *, progress: Progress | None = None) -> Rotation:
        """Give the tenant a new key version, and wrap its agents' data keys under it. See the module for what that means.

        May run beside everything else, and beside itself; where it is broken off, `rewrap` goes on. progress: (agents done, agents seen).
        Raises KeyUnavailable, LimitExceeded (`limits.TENANT_KEY_VERSIONS_MAX`), Unavailable.
        """
        previous = (await self._existing(tenant)).version
        version = (await self._ring.rotate_tenant_key(tenant)).version
        steps.reach("keys.version_made")
        rewrapped, left = await self._rewrap_agents(tenant, progress)
        return Rotation(tenant, previous, version, rewrapped, left)

    async def rewrap(self, tenant: str, *, progress: Progress | None = None) -> Rotation:
        """Wrap the data keys that are still under an older version: of a rotation that was broken off, or made by others meanwhile."""
        version = (await self._existing(tenant)).version
        rewrapped, left = await self._rewrap_agents(tenant, progress)
        return Rotation(tenant, version, version, rewrapped, left)

    async def rotate_root_key(self, *, previous: KeyProvider | None = None, progress: Progress | None = None) -> RootRotation:
        """Let the provider make a new root key, where it can, and wrap all tenants' keys under it.

        previous: the provider that wrapped them so far, to move from one to another; the one in use then makes no new key. A root key in the
        environment cannot grow by itself: put the new one first and the old one behind it, then call this. Old root keys are kept by their
        providers: backups of the log need them. Raises ConfigurationError where nothing would change, Unavailable.
        """
        provider = self._ring.provider
        if previous is None and isinstance(provider, _Growing):
            await provider.add_key()
            steps.reach("keys.root_made")
        elif previous is None and await self._all_under(provider.key_id):
            hint = "put a new key before the old one, separated by a comma, restart, and run this again"
            raise ConfigurationError(
                "every tenant's key is under the current root key, and its provider cannot make another one", hint=hint
            )
        done: list[str] = []
        left: dict[str, str] = {}
        tenants = await self._ring.tenants()
        for tenant in tenants:
            try:
                await self._ring.rewrap(tenant, previous=previous)
                done.append(tenant)
                steps.reach("keys.tenant_wrapped")
            except (KeyUnavailable, SealBroken) as problem:
                left[tenant] = problem.message
            if progress is not None:
                progress(len(done) + len(left), len(tenants))
        return RootRotation(provider.key_id, tuple(done), left)

    async def _existing(self, tenant: str) -> KeyFacts:
        """The tenant's key, which must be there: a rotation makes no tenant."""
        await self._ring.root_key_ids(tenant)
        return await self._facts(tenant)

    async def _all_under(self, key_id: str) -> bool:
        return all(key_id == used for facts in await self.list() for used in facts.root_keys.values())

    async def _facts(self, tenant: str) -> KeyFacts:
        version, root_keys = 0, dict[int, str]()
        try:
            root_keys = await self._ring.root_key_ids(tenant)
            version = max(root_keys)
            await self._ring.tenant_key(tenant, refresh=True)
        except PerdureError as problem:
            if problem.retryable:
                raise
            return KeyFacts(tenant, version, root_keys, str(problem.details.get("reason", problem.code)), problem.message)
        return KeyFacts(tenant, version, root_keys)

    async def _rewrap_agents(self, tenant: str, progress: Progress | None) -> tuple[int, dict[str, str]]:
        """Pass over the tenant's agents until a pass finds none to wrap: others may make agents under the old version for a while."""
        total, left = 0, dict[str, str]()
        for _ in range(limits.REWRAP_PASSES_MAX):
            seen = done = 0
            left, after = {}, ""
            while page := await self._store.list_agents(tenant, after=after, limit=limits.REWRAP_PAGE_AGENTS):
                done += await self._rewrap_page(tenant, page, left)
                steps.reach("keys.page_wrapped")
                seen += len(page)
                after = page[-1].agent
                if progress is not None:
                    progress(total + done, seen)
            total += done
            if not done:
                break
        return total, left

    async def _rewrap_page(self, tenant: str, page: Sequence[AgentRecord], left: dict[str, str]) -> int:
        key = await self._ring.tenant_key(tenant)
        old, new = [], []
        for record in page:
            if not record.data_key or key.wrapped_by(record.data_key) == key.version:
                continue  # destroyed on purpose, or done
            try:
                new.append(key.wrap_data_key(record.agent, key.unwrap_material(record.agent, record.data_key)))
                old.append(record)
            except (KeyUnavailable, SealBroken) as problem:
                left[record.agent] = problem.message
        return await self._store.swap_data_keys(old, new) if old else 0
