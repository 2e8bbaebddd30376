"""The contract of a cache of current states.

A state is kept as cells (top-level members; elements of top-level lists and maps), sealed, beside a token (generation, epoch, version) and the
number of cells. A cache may forget an agent at any time, wholly or in part; what it returns is either the whole state at the version it names
or a miss. It never takes an older state over a newer one: every write carries the token that it expects and the one that it leads to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from perdure.projections.statistics import CacheStatistics

__all__ = ["CachedState", "CellWrite", "CutOver", "Outcome", "StateCache", "Token"]


class Token(NamedTuple):
    """How new a state is; compares as a tuple."""

    generation: int
    epoch: int
    version: int


class CachedState(NamedTuple):
    """A whole state: its token and its sealed cells by cell name, which whole write laid them out, and which build put it there."""

    token: Token
    cells: dict[bytes, bytes]
    layout: str = ""
    build: int = 0


class CellWrite(NamedTuple):
    """One step of one agent.

    expected: the version that must stand (None: replace whatever is older, whole). token: what stands then. put, remove: cells by name.
    count: how many cells the whole state then has, so that a partly evicted key is recognised. layout: a name of the whole write (hexadecimal,
    made at random) that a step continues; a step never lands on cells that another whole write laid out.
    """

    tenant: str
    agent: str
    expected: int | None
    token: Token
    put: Mapping[bytes, bytes]
    remove: Sequence[bytes]
    count: int  # type: ignore[assignment]  # tuple.count is never meant here
    layout: str = ""


class Outcome(Enum):
    """What a cut-over of one agent came to. done: the built state is read now. over: a state of this build or a later one is read already.
    behind: what is read is newer than what was built; nothing changed. nothing: nothing was built, and nothing changed."""

    DONE = "done"
    OVER = "over"
    BEHIND = "behind"
    NOTHING = "nothing"


class CutOver(NamedTuple):
    """The outcome, and the token of the state that is read afterwards (None: none)."""

    outcome: Outcome
    token: Token | None


class StateCache(Protocol):
    """A cache of current states: Redis, or in-process."""

    async def token(self, tenant: str, agent: str) -> Token | None:
        """The token that stands, by the cheapest look there is: it tells whether a state at hand is still the newest one. Unlike `tokens` it
        need not notice that cells are gone. None: nothing is there."""
        ...

    async def tokens(self, agents: Sequence[tuple[str, str]]) -> list[Token | None]:
        """The tokens of (tenant, agent) pairs; None: not there, or not whole."""
        ...

    async def get(self, agents: Sequence[tuple[str, str]]) -> list[CachedState | None]: ...

    async def apply(self, writes: Sequence[CellWrite]) -> list[Token | None]:
        """Apply each write by itself, in order; return the token that stands after it: the write's own when it was applied, a newer one when
        it was stale, an older one or None when there is a gap (nothing was changed then)."""
        ...

    async def remove(self, agents: Sequence[tuple[str, str]]) -> None: ...

    async def statistics(self) -> CacheStatistics:
        """What it holds altogether."""
        ...

    # --- a rebuild: states of a numbered build, beside those that are read (docs/adr/0015-rebuild.md) ---
    async def build(self, number: int, writes: Sequence[CellWrite]) -> list[Token | None]:
        """As `apply` of whole writes, into this build; nobody reads it. What is built may be forgotten, too."""
        ...

    async def built(self, number: int, agents: Sequence[tuple[str, str]]) -> list[Token | None]:
        """The tokens of what was built; None: not there, or not whole."""
        ...

    async def cut_over(self, number: int, agents: Sequence[tuple[str, str]]) -> list[CutOver]:
        """Let the built state be the one that is read, each agent in one step: where what is read is of an earlier build and not newer.

        Later writes keep the number of the build, so that an earlier one never comes back while the agent is there."""
        ...

    async def discard(self, number: int, agents: Sequence[tuple[str, str]]) -> None:
        """Remove what was built and not cut over."""
        ...

    async def close(self) -> None: ...
