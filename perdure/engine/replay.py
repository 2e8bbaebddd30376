"""Folding the log: an agent's state at a version, from its events alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from perdure import limits
from perdure.engine.cells import shape, touched
from perdure.engine.event import RecordedEvent
from perdure.engine.fold import fold_into
from perdure.engine.log.chain import EMPTY_CHAIN, check_chain
from perdure.engine.log.codec import Effect
from perdure.engine.log.contract import LogStore
from perdure.engine.log.log import read_pages
from perdure.engine.log.records import AgentRecord, EventFilter, SealedEvent
from perdure.engine.vault import Vault

__all__ = ["Folded", "fold_log", "fold_page"]

WARNINGS_KEPT_MAX = 100


class Folded(NamedTuple):
    """A state and where it stands. time_us: of the last event, 0 without one. chain: hash at the version. warnings: the first ones."""

    document: dict[str, Any]
    version: int
    epoch: int
    time_us: int
    chain: bytes
    warnings: list[str]


async def fold_log(
    store: LogStore,
    vault: Vault,
    record: AgentRecord,
    *,
    start: Folded | None = None,
    to_version: int | None = None,
    cells: set[bytes] | None = None,
    page_events: int = limits.READ_PAGE_EVENTS,
    rests: bool = False,
) -> Folded:
    """Fold the events after `start` (the empty state) up to a version (the newest), checking the hash chain on the way.

    The document of `start` is given away: it is changed in place. cells: gets the names of all cells that were put or removed on the way.
    page_events: for how many events others on this event loop may have to wait. rests: between two pages they get as much time as a page took:
    whatever else is done in several steps would wait for a page at each of them.
    Raises ChainBroken, SealBroken, KeyUnavailable, Compacted.
    """
    folded = start or Folded({}, 0, 0, 0, EMPTY_CHAIN, [])
    where = EventFilter(from_version=folded.version + 1, to_version=to_version)
    if to_version is not None and to_version <= folded.version:
        return folded
    async for page in read_pages(store, record, where, page_events):
        began_at = time.monotonic()
        folded = await fold_page(vault, folded, page, cells=cells)
        if rests and len(page) == page_events:
            await asyncio.sleep(time.monotonic() - began_at)
    return folded


async def fold_page(vault: Vault, start: Folded, page: Sequence[SealedEvent], *, cells: set[bytes] | None = None) -> Folded:
    """Fold the events that follow `start`, one or more, checking the hash chain; the document of `start` is given away.

    Raises ChainBroken, SealBroken, KeyUnavailable."""
    version, chain = check_chain(page, version=start.version, chain=start.chain)
    warnings = list(start.warnings)
    document = _fold_page(start.document, page, await vault.open_effects(page), cells, warnings)
    return Folded(document, version, page[-1].epoch, page[-1].time_us, chain, warnings)


def _fold_page(
    document: dict[str, Any],
    page: Sequence[SealedEvent],
    effects: Sequence[Effect | RecordedEvent],
    cells: set[bytes] | None,
    warnings: list[str],
) -> dict[str, Any]:
    """The document, in place, after what a page of events does."""
    surprises: list[str] = []
    for at, effect in enumerate(effects):
        changes = effect.changes
        before = None if cells is None else shape(document, changes)
        document = fold_into(document, changes, None, surprises)
        if cells is not None and before is not None:
            cells.update(*touched(changes, before, document))
        if surprises:
            room = WARNINGS_KEPT_MAX - len(warnings)
            warnings += [f"version {page[at].version}: {surprise}" for surprise in surprises[:room]]
            surprises.clear()
    return document
