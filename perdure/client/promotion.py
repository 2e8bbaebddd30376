"""Promotion, as people hold it: an older copy of the log's database goes on as the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.client.approvals import acting
from perdure.client.audit import AuditTrail
from perdure.client.engine import open_engine
from perdure.engine.bus.memory import MemoryBus
from perdure.identifiers import uuid7
from perdure.projections.memory import MemoryCache
from perdure.recovery.journal import Journal
from perdure.recovery.promotion import Progress, Promoter, Promotion

if TYPE_CHECKING:
    from perdure import config

__all__ = ["promote"]


async def promote(settings: config.Settings, *, dry_run: bool = False, progress: Progress | None = None) -> Promotion:
    """Begin a new generation of the log that the settings name, with what the topic has more than it; one that was interrupted goes on.

    dry_run: only say what would come of it. Raises Conflict while processes are at work on the log, LimitExceeded, Unavailable.
    """
    who = acting()
    engine = await open_engine(settings, create=False, whole=False)
    try:
        bus = None if isinstance(engine.bus, MemoryBus) else engine.bus
        cache = None if isinstance(engine.cache, MemoryCache) else engine.cache
        done = await Promoter(engine.log, bus, cache, progress=progress).run(dry_run=dry_run)
        if not dry_run:
            # Written afterwards: an entry before would stand where the topic's next event belongs.
            id = uuid7().hex
            facts = {"actor": who, "generation": done.generation, "brought": done.brought, "lost_events": done.lost_events}
            await Journal(engine.log, engine.states.reader).ended(id, "promoted", facts)
            await AuditTrail(engine.log, engine.states.reader).tell("operation_completed", id, {"operation": "log.promote", **facts})
        return done
    finally:
        await engine.close()
