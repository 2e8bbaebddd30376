"""Repair, as people hold it: find what does not hold, and put it right from a copy that fits."""

from __future__ import annotations

from contextlib import AsyncExitStack

from perdure.client.backups import vessel_of
from perdure.client.parts import Parts
from perdure.engine.bus.memory import MemoryBus
from perdure.engine.log.records import AgentName
from perdure.engine.topic_check import check_topic
from perdure.projections.cache_check import check_cache
from perdure.projections.memory import MemoryCache
from perdure.recovery.backup.catalog import Catalog
from perdure.recovery.backup.source import BackupSource
from perdure.recovery.repair import EventSource, Progress, Repairer, RepairReport, TopicSource
from perdure.security.keys import open_provider

__all__ = ["repair"]


async def repair(engine: Parts, *, backups: str | None = None, dry_run: bool = False, progress: Progress | None = None) -> RepairReport:
    """Mend the log from topic and backups, then cache, topic and snapshots from the log. backups: URL of their store.

    dry_run: only say what would be done. What a dry run tells of cache and topic is as the log stands now.
    """
    bus = None if isinstance(engine.bus, MemoryBus) else engine.bus
    cache = None if isinstance(engine.cache, MemoryCache) else engine.cache
    async with AsyncExitStack() as stack:
        sources: list[EventSource] = [TopicSource(bus)] if bus is not None else []
        if backups is not None:
            provider = open_provider(str(engine.settings.keys.value))
            vessel = await stack.enter_async_context(vessel_of(backups, provider))
            newest = await Catalog(vessel).newest()
            if newest is not None:
                sources.append(BackupSource(vessel, newest))
        repairer = Repairer(engine.log.store, engine.log.vault, sources, dry_run=dry_run, progress=progress)
        await repairer.log()
        if bus is not None:
            await repairer.topic(bus, await check_topic(engine.log.store, bus))
        if cache is not None:
            found = await check_cache(engine.log.store, cache, engine.log.vault, base=engine.snapshots.base)

            async def refill(tenant: str, agent: str) -> None:
                await engine.states.get_current_state(AgentName(tenant, agent))

            await repairer.cache(cache, found, refill)
        return repairer.report
