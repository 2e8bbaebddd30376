"""A state at hand: what a process keeps of a read for the next one."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, NamedTuple, Self

from perdure.engine.log.records import Head, from_microseconds
from perdure.engine.readonly import Freezing, footprint
from perdure.engine.replay import Folded
from perdure.projections.contract import Token

__all__ = ["KeptState", "ReadState"]

MEASURED_AGAIN: Final = 1.5
"""A state is measured anew when folding on has made it look so many times as large as it was measured."""

NEAR_EVENTS: Final = 256
"""Folding so many events takes no longer than opening a cached state of middling size."""


class ReadState(NamedTuple):
    """A state as it was read. The document is read-only and others may hold it, too. time: of its newest event (None before the first)."""

    document: dict[str, Any]
    version: int
    epoch: int
    time: datetime | None


class KeptState:
    """A state at hand. Its document is decoded once and read-only: all who read it share it, and what is folded on from it shares with it whatever
    is as it was.

    size_bytes: what the document takes in memory, never less. after: the state that it was folded on from: what came since is added to its size,
    what went is not taken away, until it is measured anew.
    """

    __slots__ = ("chain", "document", "measured_bytes", "size_bytes", "time_us", "token")

    def __init__(self, document: dict[str, Any], token: Token, time_us: int, chain: bytes, *, after: Self | None = None) -> None:
        freezing = Freezing()
        self.document: dict[str, Any] = freezing.value(document)
        self.size_bytes = self.measured_bytes = freezing.size_bytes
        if after is not None:
            self.size_bytes, self.measured_bytes = after.size_bytes + freezing.size_bytes, after.measured_bytes
        if self.size_bytes > MEASURED_AGAIN * self.measured_bytes or (after is None and freezing.shared):
            self.size_bytes = self.measured_bytes = footprint(self.document)
        self.token = token
        self.time_us = time_us
        self.chain = chain

    @classmethod
    def of(cls, folded: Folded, generation: int, *, after: Self | None = None) -> Self:
        """What was folded from a log of this generation, on from `after`."""
        return cls(folded.document, Token(generation, folded.epoch, folded.version), folded.time_us, folded.chain, after=after)

    def stands(self, head: Head, generation: int) -> bool:
        """Whether it is the newest state."""
        return self.token.generation == generation and self.token.version == head.version and self.chain == head.chain

    def near(self, head: Head, generation: int) -> bool:
        """Whether the newest state is so few events away that it is folded on from here, and nobody else is asked for a later one."""
        return self.token.generation == generation and self.token.version < head.version <= self.token.version + NEAR_EVENTS

    def folded(self) -> Folded:
        """The state to be folded on."""
        return Folded(self.document, self.token.version, self.token.epoch, self.time_us, self.chain, [])

    def read(self) -> ReadState:
        """The state as a caller gets it."""
        return ReadState(self.document, self.token.version, self.token.epoch, from_microseconds(self.time_us) if self.time_us else None)
