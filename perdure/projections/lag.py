"""How far behind the log something is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Position

__all__ = ["PartitionLag", "lag_behind", "log_lag"]


class PartitionLag(NamedTuple):
    """lag_events: events of the partition not yet handled. lag_s: how old the newest handled event is next to the newest event of the log."""

    partition: int
    lag_events: int
    lag_s: float


async def log_lag(store: LogStore, handled: Mapping[int, Position]) -> list[PartitionLag]:
    """Per partition, how far what was handled lies behind the log."""
    return lag_behind(await store.positions(), handled, time.time_ns() // 1_000)


def lag_behind(log: Mapping[int, Position], handled: Mapping[int, Position], now_us: int) -> list[PartitionLag]:
    """Pure: as `log_lag`. Before a partition's first handled event its lag in seconds counts from the newest event of the log to now."""
    lags = []
    for partition, newest in sorted(log.items()):
        done = handled.get(partition, Position(0, 0))
        behind = max(0, newest.offset - done.offset)
        since_us = newest.time_us - done.time_us if done.offset else now_us - newest.time_us
        lags.append(PartitionLag(partition, behind, max(0, since_us) / 1e6 if behind else 0.0))
    return lags
