"""The directory of agents, as the client shows it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from perdure.engine.log.contract import LogStore, from_microseconds
from perdure.projections.directory import Directory, DirectoryEntry

__all__ = ["AgentDirectory", "ListedAgent"]


class ListedAgent(msgspec.Struct, frozen=True):
    """One agent of the directory."""

    agent: str
    type: str
    labels: dict[str, str]
    version: int
    status: str
    owner: str
    epoch: int
    created: datetime


class AgentDirectory:
    """Agents by tenant, type and label."""

    def __init__(self, store: LogStore) -> None:
        self._directory = Directory(store)

    async def list(
        self, tenant: str, *, type: str | None = None, labels: Mapping[str, str] | None = None, after: str = "", limit: int = 100
    ) -> list[ListedAgent]:
        """A page of the tenant's agents in order of their ids, after the id `after`."""
        page = await self._directory.page(tenant, type=type, labels=labels, after=after, limit=limit)
        return [_listed(entry) for entry in page.entries]


def _listed(entry: DirectoryEntry) -> ListedAgent:
    # The row's wrapped key stays inside.
    row = entry.record
    created = from_microseconds(row.created_us)
    return ListedAgent(row.agent, row.type, row.labels, entry.version, str(entry.status), row.owner, row.epoch, created)
