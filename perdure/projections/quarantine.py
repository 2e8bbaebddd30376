"""The quarantine: agents whose projection stands still, and why. It is kept in the log's store, so every process sees it."""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import quote

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.vault import Vault
from perdure.errors import NotFound, PerdureError
from perdure.projections.cells_codec import seal_whole
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base, fold_state

__all__ = ["Quarantine", "QuarantineEntry"]

_SCOPE: Final = "quarantine"
REASON_LENGTH_MAX: Final = 500
"""Characters of a reason that are kept."""


class QuarantineEntry(msgspec.Struct, frozen=True):
    """One agent in quarantine.

    version: the last one that its projection holds; code: of the error (`perdure.errors`); time_us: when, unix microseconds.
    """

    tenant: str
    agent: str
    version: int
    code: str
    reason: str
    time_us: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(QuarantineEntry).decode


class Quarantine:
    """Puts agents aside, lists them and takes them back."""

    def __init__(self, store: LogStore) -> None:
        self._store = store

    async def put(self, tenant: str, agent: str, version: int, problem: Exception) -> QuarantineEntry:
        """Put an agent aside; when it is there already, the first reason stands."""
        code = problem.code if isinstance(problem, PerdureError) else "error"
        reason = f"{type(problem).__name__}: {problem}"[:REASON_LENGTH_MAX]
        entry = QuarantineEntry(tenant, agent, version, code, reason, time.time_ns() // 1_000)
        if await self._store.put_document(_SCOPE, _name(tenant, agent), _encode(entry), expected=0) is not None:
            return entry
        return await self.get(tenant, agent) or entry

    async def get(self, tenant: str, agent: str) -> QuarantineEntry | None:
        """The agent's entry, or None."""
        document = await self._store.get_document(_SCOPE, _name(tenant, agent))
        return _decode(document.value) if document else None

    async def list(self, tenant: str | None = None) -> list[QuarantineEntry]:
        """All entries, or those of one tenant."""
        entries = [_decode(document.value) for document in await self._store.list_documents(_SCOPE)]
        return [entry for entry in entries if tenant is None or entry.tenant == tenant]

    async def clear(self, tenant: str, agent: str) -> None:
        """Take the entry away; the next event of the agent is projected again. Raises NotFound."""
        if await self.get(tenant, agent) is None:
            raise NotFound(f"agent {agent!r} is not in quarantine", tenant=tenant, agent=agent)
        await self._store.delete_document(_SCOPE, _name(tenant, agent))

    async def retry(self, cache: StateCache, vault: Vault, tenant: str, agent: str, *, base: Base | None = None) -> int:
        """Fold the agent from the log again; when that holds, write it, clear the entry and return the version.

        Raises what still stands against it."""
        state = await fold_state(self._store, vault, await vault.record(tenant, agent), base)
        cipher = await vault.cipher(tenant, agent)
        await cache.remove([(tenant, agent)])
        if state.token.version:
            await cache.apply([seal_whole(cipher, state.token, state.time_us, state.chain, state.document)[0]])
        await self.clear(tenant, agent)
        return state.token.version


def _name(tenant: str, agent: str) -> str:
    return f"{quote(tenant, safe='')}/{quote(agent, safe='')}"
