"""The directory: which agents there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from perdure.engine.log.contract import LogStore
from perdure.engine.log.marks import HIDDEN, MOVED, mark_of
from perdure.engine.log.records import AgentRecord
from perdure.errors import InvalidInput

__all__ = ["PAGE_AGENTS_DEFAULT", "PAGE_AGENTS_MAX", "Directory", "DirectoryEntry", "DirectoryPage", "Status"]

Status = Literal["empty", "active", "fenced", "erased", "moved"]
"""empty: no event yet; active: may be appended to; fenced: waits for ownership to be settled; erased: its key was destroyed; moved: it went
to another engine."""
PAGE_AGENTS_DEFAULT: Final = 100
PAGE_AGENTS_MAX: Final = 1_000
_SCANS_PER_PAGE_MAX: Final = 20
"""Store pages that one page with a status looks through; what is left comes with the next."""


class DirectoryEntry(NamedTuple):
    """An agent, where it stands, and its status."""

    record: AgentRecord
    version: int
    status: Status


class DirectoryPage(NamedTuple):
    """Entries in order of their ids. after: give it to go on; None: this was the last page."""

    entries: list[DirectoryEntry]
    after: str | None


class Directory:
    """Lists the agents of a tenant."""

    def __init__(self, store: LogStore) -> None:
        self._store = store

    async def page(
        self,
        tenant: str,
        *,
        type: str | None = None,
        labels: Mapping[str, str] | None = None,
        status: Status | None = None,
        after: str = "",
        limit: int = PAGE_AGENTS_DEFAULT,
    ) -> DirectoryPage:
        """A page of at most `limit` agents after the id `after`. With a status a page may be short, and still not be the last."""
        if not 1 <= limit <= PAGE_AGENTS_MAX:
            raise InvalidInput(f"limit is {limit}", hint=f"1 to {PAGE_AGENTS_MAX}")
        entries: list[DirectoryEntry] = []
        for _ in range(_SCANS_PER_PAGE_MAX):
            wanted = limit - len(entries)
            records = await self._store.list_agents(tenant, type=type, labels=labels, after=after, limit=wanted)
            shown = [record for record in records if not _hidden(record)]
            entries += [entry for entry in await self._describe(shown) if status is None or entry.status == status]
            if len(records) < wanted:
                return DirectoryPage(entries, None)
            after = records[-1].agent
            if len(entries) >= limit:
                break
        return DirectoryPage(entries, after)

    async def all(
        self, tenant: str, *, type: str | None = None, labels: Mapping[str, str] | None = None, status: Status | None = None
    ) -> AsyncIterator[DirectoryEntry]:
        """Every agent, page by page."""
        after: str | None = ""
        while after is not None:
            entries, after = await self.page(tenant, type=type, labels=labels, status=status, after=after, limit=PAGE_AGENTS_MAX)
            for entry in entries:
                yield entry

    async def _describe(self, records: Sequence[AgentRecord]) -> list[DirectoryEntry]:
        heads = await self._store.heads(records) if records else []
        return [
            DirectoryEntry(record, head.version, _status(record, head.version, head.fenced))
            for record, head in zip(records, heads, strict=True)
        ]


def _hidden(record: AgentRecord) -> bool:
    """Whether it is only being put in, by a move from another engine."""
    mark = mark_of(record.owner)
    return mark is not None and mark.kind in HIDDEN


def _status(record: AgentRecord, version: int, fenced: bool) -> Status:
    if not record.data_key:
        return "erased"
    mark = mark_of(record.owner)
    if mark is not None and mark.kind == MOVED:
        return "moved"
    if fenced:
        return "fenced"
    return "active" if version else "empty"
