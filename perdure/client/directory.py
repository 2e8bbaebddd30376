"""The directory of agents, as the client shows it."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.projections.directory import Directory, DirectoryEntry

__all__ = ["AgentDirectory"]


class AgentDirectory(Directory):
    """Agents by tenant, type and label."""

    async def list(
        self, tenant: str, *, type: str | None = None, labels: Mapping[str, str] | None = None, after: str = "", limit: int = 100
    ) -> list[DirectoryEntry]:
        """A page of the tenant's agents in order of their ids, after the id `after`."""
        return (await self.page(tenant, type=type, labels=labels, after=after, limit=limit)).entries
