"""All agents of a log, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentRecord

__all__ = ["PAGE_AGENTS", "agent_pages"]

PAGE_AGENTS: Final = 200


async def agent_pages(store: LogStore, *, limit: int = PAGE_AGENTS) -> AsyncIterator[list[AgentRecord]]:
    """Pages of at most `limit` agents of one tenant each, in order of their names; those that are made meanwhile may be missing."""
    for tenant in await store.tenants():
        after = ""
        while page := await store.list_agents(tenant, after=after, limit=limit):
            after = page[-1].agent
            yield page
