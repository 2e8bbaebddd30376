"""How long to measure, and beside whom."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["Settings"]


class Settings(msgspec.Struct, frozen=True):
    """How long to measure. root: of the servers. scale: a factor on every duration. peers: whether other products are measured, too."""

    quick: bool = False
    root: Path | None = None
    scale: float = 1.0
    peers: bool = True

    def seconds(self, quick: float, full: float) -> float:
        """One measurement's duration."""
        return (quick if self.quick else full) * self.scale

    def count(self, quick: int, full: int, least: int = 1) -> int:
        """How many of something, at least `least`."""
        return max(least, int((quick if self.quick else full) * min(1.0, self.scale)))
