"""Decoded states that a process keeps at hand, bounded by bytes and by number; the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, Generic, Protocol, TypeVar

from perdure import limits
from perdure.projections.cells_codec import Layout
from perdure.projections.contract import Token

__all__ = ["HOT_AGENTS_MAX", "HOT_BYTES_MAX", "HotState", "HotStates"]

HOT_BYTES_MAX: Final = 128 * limits.MIB
"""Bytes of states at hand in one process: of memory where they are read, encoded (in memory about three times as much) where they are folded on."""
HOT_AGENTS_MAX: Final = 20_000


class _Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


State = TypeVar("State", bound=_Sized)


class HotState:
    """A state that is folded on in place. version 0: the agent has no event yet."""

    __slots__ = ("chain", "document", "layout", "size_bytes", "time_us", "token")

    def __init__(self, document: dict[str, Any], token: Token, time_us: int, chain: bytes, layout: Layout, size_bytes: int) -> None:
        self.document = document
        self.token = token
        self.time_us = time_us
        self.chain = chain
        self.layout = layout
        self.size_bytes = size_bytes


class HotStates(Generic[State]):
    """States by (tenant, agent)."""

    def __init__(self, *, bytes_max: int = HOT_BYTES_MAX, agents_max: int = HOT_AGENTS_MAX) -> None:
        self._bytes_max = bytes_max
        self._agents_max = agents_max
        self._states: OrderedDict[tuple[str, str], tuple[State, int]] = OrderedDict()
        self._bytes = 0
        self.evicted = 0
        """States that had to go for others."""

    def __len__(self) -> int:
        return len(self._states)

    @property
    def bytes_max(self) -> int:
        """Bytes that may be held."""
        return self._bytes_max

    @property
    def size_bytes(self) -> int:
        """Bytes held, as the states say they are."""
        return self._bytes

    def get(self, agent: tuple[str, str]) -> State | None:
        """The state, now the most recently used."""
        entry = self._states.get(agent)
        if entry is None:
            return None
        self._states.move_to_end(agent)
        return entry[0]

    def put(self, agent: tuple[str, str], state: State) -> None:
        """Keep a state, also one that has grown since; others may go for it."""
        self.drop(agent)
        self._states[agent] = (state, state.size_bytes)
        self._bytes += state.size_bytes
        self._shrink()

    def resize(self, *, bytes_max: int | None = None, agents_max: int | None = None) -> None:
        """Hold at most so much from now on; None: as before."""
        self._bytes_max = self._bytes_max if bytes_max is None else bytes_max
        self._agents_max = self._agents_max if agents_max is None else agents_max
        self._shrink()

    def _shrink(self) -> None:
        while self._states and (self._bytes > self._bytes_max or len(self._states) > self._agents_max):
            self.drop(next(iter(self._states)))
            self.evicted += 1

    def drop(self, agent: tuple[str, str]) -> None:
        """Forget a state."""
        entry = self._states.pop(agent, None)
        if entry is not None:
            self._bytes -= entry[1]
