"""How reads were served, and what a cache holds."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

__all__ = ["CacheStatistics", "ReadStatistics"]


class CacheStatistics(NamedTuple):
    """What a cache says of itself, of everything that it holds. entries: states (of a shared server: keys, whoever they belong to); bytes: that
    they take; bytes_max: None without a bound; evicted: states that had to go for others; expired: whose time was over."""

    entries: int
    bytes: int
    bytes_max: int | None
    evicted: int
    expired: int


class ReadStatistics(msgspec.Struct):
    """Reads of newest states in this process since it began, or since `reset`.

    at_hand: served from this process's memory; cached: from the cache; caught_up: from either, and the newest events from the log; folded:
    from snapshot and log (a miss). damaged: of the folded, those whose cached state could not be used. seconds, slowest_s: of all reads
    together, and of the slowest.
    """

    at_hand: int = 0
    cached: int = 0
    caught_up: int = 0
    folded: int = 0
    damaged: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0

    @property
    def reads(self) -> int:
        """All of them."""
        return self.at_hand + self.cached + self.caught_up + self.folded

    @property
    def hit_ratio(self) -> float:
        """The part that needed no fold of the past: at hand, cached or caught up. 1.0 before the first read."""
        return 1.0 - self.folded / self.reads if self.reads else 1.0

    @property
    def mean_s(self) -> float:
        """Of one read, on average."""
        return self.seconds / self.reads if self.reads else 0.0

    def took(self, seconds: float) -> None:
        """A read has taken so long."""
        self.seconds += seconds
        self.slowest_s = max(self.slowest_s, seconds)
