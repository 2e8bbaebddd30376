"""Latencies as counts in buckets whose width grows with the value: percentiles to within 1/128 in bounded memory, and histograms add up.

The idea is Gil Tene's HdrHistogram. `kit.mjs` counts in the same buckets. Of the standard library alone: drivers use it in environments of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Histogram"]

_BITS = 7


class Histogram:
    """Counts of nanoseconds."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def add(self, seconds: float) -> None:
        """Count one latency."""
        bucket = _bucket(int(seconds * 1e9))
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Count what another counted, too."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    @property
    def total(self) -> int:
        """How many were counted."""
        return sum(self.counts.values())

    def percentile(self, share: float) -> float:
        """The latency in seconds that at least `share` (0 … 1) of the counted do not exceed. Raises ValueError when nothing was counted."""
        wanted = max(1.0, share * self.total)
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return _middle(bucket) / 1e9
        raise ValueError("there is nothing to take a percentile of")

    def percentiles_ms(self, shares: Iterable[float] = (0.5, 0.9, 0.99, 0.999, 1.0)) -> dict[str, float]:
        """Milliseconds by the names p50, p99.9, max, as a table shows them."""
        return {_name(share): float(f"{self.percentile(share) * 1000:.4g}") for share in shares}

    def encoded(self) -> dict[str, int]:
        """As JSON holds it."""
        return {str(bucket): count for bucket, count in self.counts.items()}

    @classmethod
    def decode(cls, encoded: Mapping[str, int]) -> Histogram:
        """What `encoded` gave."""
        return cls({int(bucket): count for bucket, count in encoded.items()})


def _bucket(nanoseconds: int) -> int:
    shift = max(0, nanoseconds.bit_length() - _BITS - 1)
    return (shift << _BITS) + (max(0, nanoseconds) >> shift)


def _middle(bucket: int) -> float:
    shift = max(0, (bucket >> _BITS) - 1)
    return ((bucket - (shift << _BITS)) + 0.5) * (1 << shift)


def _name(share: float) -> str:
    return "max" if share >= 1 else f"p{share * 100:g}"
