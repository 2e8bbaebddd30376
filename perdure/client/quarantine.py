"""What an operator does about agents whose projection stands still."""

from __future__ import annotations

from perdure.engine.log.contract import LogStore
from perdure.engine.vault import Vault
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base
from perdure.projections.quarantine import Quarantine, QuarantineEntry

__all__ = ["QuarantineDesk"]


class QuarantineDesk:
    """`engine.quarantine`: the agents whose projection is halted, and their return once the cause is gone."""

    def __init__(self, store: LogStore, cache: StateCache, vault: Vault, *, base: Base | None = None) -> None:
        self._quarantine = Quarantine(store)
        self._base = base
        self._cache = cache
        self._vault = vault

    async def list(self, tenant: str | None = None) -> list[QuarantineEntry]:
        """The agents that stand still, of one tenant or of all."""
        return await self._quarantine.list(tenant)

    async def resolve(self, tenant: str, agent: str) -> int:
        """Fold the agent from the log again and let it go on; the version reached. Raises what still stands against it."""
        return await self._quarantine.retry(self._cache, self._vault, tenant, agent, base=self._base)
