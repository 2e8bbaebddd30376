"""Copying one agent's history, page by page: read ahead, check, put in.

Invariant: nothing is put in that was not checked here, on this side of the wire, against the hash that the target has: a page that was altered
on its way is refused whole (`ChainBroken`), and what stood before it stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.chain import check_chain
from perdure.engine.log.log import read_pages
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, SealedEvent
from perdure.errors import IntegrityError
from perdure.migration.transfer.inheritance import carry_large
from perdure.migration.transfer.sides import Side

__all__ = ["Copying"]

EVENTS_AT_ONCE = 1_000
"""Are checked until others on the loop have their turn. A thread would take the interpreter's lock anew for each event, which costs more than it
gives."""
FIRST_PAGE_EVENTS = 256
"""How large an agent's events are is not known before the first ones are seen. Most agents are copied whole by this."""


class Copying:
    """The copy of one agent. version, chain, time_us: where the target stands, 0 where nothing was copied yet. large: whether the tenant has values
    that stand outside of events."""

    def __init__(
        self, source: Side, target: Side, row: AgentRecord, heir: AgentRecord, version: int, chain: bytes, *, owner: str, large: bool
    ) -> None:
        self._source = source
        self._target = target
        self._row = row
        self.heir = heir
        self._owner = owner
        self._large = large
        self._page_events = FIRST_PAGE_EVENTS
        self._first = version + 1
        self._moved = asyncio.Event()
        self.version = version
        self.chain = chain
        self.time_us = 0
        self.events = 0
        self.bytes = 0

    async def to(self, version: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy up to a version. progress: (events, bytes) of each page. Raises ChainBroken, Conflict (the target's row is not the transfer's any
        more), Unavailable."""
        ahead = asyncio.create_task(self._read(self.version, version))
        try:
            while self.version < version:
                page = await ahead
                if not page:
                    self._check_end(version)
                # The page after is read while this one is checked and written.
                ahead = asyncio.create_task(self._read(page[-1].version, version))
                await self._put(page)
                if progress is not None:
                    progress(len(page), sum(len(event.payload) for event in page))
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def beyond(self, version: int) -> None:
        """Wait until the target has more than this. One waits at a time."""
        while self.version <= version:
            self._moved.clear()
            await self._moved.wait()

    async def rest(self, version: int, last: SealedEvent | None, progress: Callable[[int, int], None] | None = None) -> list[SealedEvent]:
        """Copy towards a version, but for the last page, which is checked and given back: the commit puts it in. Empty where the target has all
        of it. last: the event at this version, where it is known. Raises as `to`."""
        page = [last] if last is not None and last.version == self.version + 1 else await self._read(self.version, version)
        while page and page[-1].version < version:
            await self._put(page)
            if progress is not None:
                progress(len(page), sum(len(event.payload) for event in page))
            page = await self._read(self.version, version)
        if not page:
            self._check_end(version)
            return []
        await self._check(page)
        return page

    async def carry_large_now(self, version: int) -> None:
        """The tenant has large values since: carry those of the events up to a version that were put in without a look."""
        if not self._large:
            self._large = True
            where = EventFilter(from_version=self._first, to_version=version)
            async for page in read_pages(self._source.store, self._row, where):
                await carry_large(self._source, self._target, AgentName(self._row.tenant, self._row.agent), page)

    def took(self, page: Sequence[SealedEvent]) -> None:
        """The target has these."""
        self.version, self.chain, self.time_us = page[-1].version, page[-1].chain, page[-1].time_us
        self.events += len(page)
        self.bytes += sum(len(event.payload) for event in page)
        self._moved.set()

    async def _read(self, after: int, to: int) -> list[SealedEvent]:
        if after >= to:
            return []
        where = EventFilter(from_version=after + 1, to_version=to)
        page = await self._source.store.read_agent(self._row, where, self._page_events)
        size = sum(len(event.payload) for event in page)
        if page:
            fitting = limits.TRANSFER_PAGE_BYTES * len(page) // max(1, size)
            # It grows by steps: one page of small events says little of the next.
            self._page_events = max(1, min(fitting, 8 * self._page_events, limits.TRANSFER_PAGE_EVENTS_MAX))
        return page

    async def _put(self, page: list[SealedEvent]) -> None:
        await self._check(page)
        await self._target.store.receive_events([self.heir], page, owner=self._owner)
        self.took(page)
        steps.reach("transfer.page")

    async def _check(self, page: list[SealedEvent]) -> None:
        """Against what the target has; and what the events refer to is there when this returns."""
        version, chain = self.version, self.chain
        for start in range(0, len(page), EVENTS_AT_ONCE):
            version, chain = check_chain(page[start : start + EVENTS_AT_ONCE], version=version, chain=chain)
            await asyncio.sleep(0)
        if self._large:
            await carry_large(self._source, self._target, AgentName(self._row.tenant, self._row.agent), page)

    def _check_end(self, version: int) -> None:
        if self.version < version:
            raise IntegrityError(f"the source has no version {self.version + 1} of agent {self._row.agent!r}", agent=self._row.agent)
