"""Opening what the settings name: the log, the bus, the cache, the store of snapshots."""

from __future__ import annotations

from pathlib import Path

from perdure import config
from perdure.engine.bus.contract import Bus
from perdure.engine.bus.memory import MemoryBus
from perdure.engine.log.contract import LogStore
from perdure.errors import MissingDependency, Unavailable
from perdure.projections.contract import StateCache
from perdure.projections.memory import MemoryCache
from perdure.snapshots.store.contract import SnapshotStore

__all__ = ["open_bus", "open_cache", "open_log", "open_objects"]


async def open_log(settings: config.Settings, partitions: int, *, create: bool) -> LogStore:
    """The store of the log. Raises ConfigurationError, UnsafeSettings, Unavailable, MissingDependency."""
    url = str(settings.log.value)
    if settings.embedded:
        from perdure.engine.log.sqlite import SqliteStore

        return await SqliteStore.open(Path(settings.folder), partitions=partitions, create=create)
    try:
        from perdure.engine.log.postgres import PostgresStore
    except ImportError as problem:
        raise _missing("postgres", problem) from problem
    try:
        return await PostgresStore.open(url, partitions=partitions, create=create)
    except Unavailable as problem:
        problem.hint = "is it up, and is the URL of the log right (perdure config show)? On this machine: perdure services up"
        raise


def open_objects(settings: config.Settings) -> SnapshotStore | None:
    """The store of snapshots; None where none is configured."""
    if settings.store.value is None:
        return None
    from perdure.snapshots.store import open_store

    return open_store(settings.store.value)


def open_bus(url: str) -> Bus:
    """The bus; nothing is asked of a server yet."""
    if url.startswith("memory:"):
        return MemoryBus()
    try:
        from perdure.engine.bus.kafka import KafkaBus
    except ImportError as problem:
        raise _missing("kafka", problem) from problem
    return KafkaBus(url)


def open_cache(url: str) -> StateCache:
    """The cache; nothing is asked of a server yet."""
    if url.startswith("memory:"):
        return MemoryCache()
    try:
        from perdure.projections.redis import RedisCache
    except ImportError as problem:
        raise _missing("redis", problem) from problem
    return RedisCache(url)


def _missing(extra: str, problem: ImportError) -> MissingDependency:
    return MissingDependency(f"{problem.name} is not installed", hint=f"pip install 'perdure[{extra}]'")
