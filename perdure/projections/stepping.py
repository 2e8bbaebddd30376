"""One agent's step: events folded onto a state at hand, and the cells that this costs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from perdure.engine.cells import count, shape, touched
from perdure.engine.changes import Change
from perdure.engine.event import RecordedEvent
from perdure.engine.fold import apply
from perdure.engine.log.chain import chain_hash
from perdure.engine.log.records import SealedEvent, to_microseconds
from perdure.projections.cells_codec import seal_step, seal_whole
from perdure.projections.contract import CellWrite, Token
from perdure.projections.hot import HotState
from perdure.security.cipher import Cipher

__all__ = ["Follow", "fold_step", "following", "whole_write"]

_CELL_OVERHEAD_BYTES = 64
"""What a cell weighs in memory beside its sealed bytes."""


class Follow(Enum):
    """How delivered events lie to a state: they follow it, there is a gap, or they come from another history."""

    FOLLOWS = "follows"
    GAP = "gap"
    FORK = "fork"


class Step(NamedTuple):
    """A write, and the warnings of the fold."""

    write: CellWrite
    warnings: list[str]


def following(state: HotState, events: Sequence[SealedEvent]) -> tuple[Follow, list[SealedEvent]]:
    """The events that are newer than the state, without repeats, when they follow it without a gap and their hash chain holds."""
    version, chain = state.token.version, state.chain
    news: list[SealedEvent] = []
    for event in events:
        if event.version <= version:
            # A restored log may have written another event under a version that was seen already.
            if event.version == version and event.chain != chain:
                return Follow.FORK, []
            continue
        if event.version != version + 1:
            return Follow.GAP, []
        expected = chain_hash(chain, event.tenant, event.agent, event.version, event.epoch, event.time_us, event)
        if expected != event.chain:
            return Follow.FORK, []
        version, chain = event.version, expected
        news.append(event)
    return Follow.FOLLOWS, news


def fold_step(cipher: Cipher, state: HotState, events: Sequence[RecordedEvent]) -> Step:
    """Fold events onto a state, in place, and return the one write that leads there. After an exception the state is undefined."""
    changes: list[Change] = [change for event in events for change in event.changes]
    last = events[-1]
    before_version = state.token.version
    before = shape(state.document, changes)
    state.document, warnings = apply(state.document, changes, own=True)
    put, remove = touched(changes, before, state.document)
    state.token = Token(state.token.generation, last.epoch, last.version)
    state.time_us, state.chain = to_microseconds(last.time), last.chain
    if before_version == 0 or state.layout.worn(count(state.document)):
        write = whole_write(cipher, state)
    else:
        write = seal_step(cipher, before_version, state.token, state.time_us, state.chain, state.layout, put, remove)
        state.size_bytes += write_size(write)
    return Step(write, warnings)


def whole_write(cipher: Cipher, state: HotState) -> CellWrite:
    """The write that replaces whatever is older by this state; it also measures the state."""
    write, state.layout = seal_whole(cipher, state.token, state.time_us, state.chain, state.document)
    state.size_bytes = write_size(write)
    return write


def write_size(write: CellWrite) -> int:
    """About how many bytes of memory the cells of a write stand for."""
    return cells_size(write.put)


def cells_size(cells: Any) -> int:
    """About how many bytes of memory sealed cells stand for."""
    return sum(map(len, cells.values())) + _CELL_OVERHEAD_BYTES * len(cells)
