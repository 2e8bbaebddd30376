"""What the log kit writes with: a log under test, and a writer that puts rows straight into a store, below all rules of the log."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import msgspec

from perdure.engine.log.contract import LogStore, Proposal
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord, Position, SealedEvent, TailEvent
from perdure.engine.vault import Vault
from perdure.identifiers import partition_of, uuid7
from perdure.security.dictionaries import DictionaryBook
from perdure.security.keys import EnvironmentKeyProvider
from perdure.security.ring import KeyRing
from perdure.testing.log_surroundings import Opener, Surroundings

__all__ = ["LogUnderTest", "RawWriter", "agent_of", "log_under_test", "read_all", "row"]

CASE_TIMEOUT_S = 60.0
ROOT_KEY = base64.b64encode(bytes(range(32))).decode()
"""Of logs that live as long as a test."""


class LogUnderTest:
    """One new log that may be opened several times, as by several processes.

    surroundings: only the cases of `TAIL_CASES` ask for them.
    """

    def __init__(self, opener: Opener, surroundings: Surroundings | None = None) -> None:
        self.opener = opener
        self._surroundings = surroundings
        self._opened: list[LogStore | EventLog] = []

    async def open(self) -> LogStore:
        """The log, opened once more; closed with the case."""
        store = await self.opener()
        self._opened.append(store)
        return store

    async def open_log(self) -> EventLog:
        """The log with its rules and keys, opened once more; closed with the case. All openings share one root key."""
        store = await self.opener()
        ring = KeyRing(EnvironmentKeyProvider("KEY", {"KEY": ROOT_KEY}), store)
        log = EventLog(store, Vault(store, ring, DictionaryBook(ring, store)))
        self._opened.append(log)
        return log

    @property
    def surroundings(self) -> Surroundings:
        """What can be done around the log."""
        assert self._surroundings is not None, "this case needs surroundings: log_under_test(opener, surroundings)"
        return self._surroundings

    async def close(self) -> None:
        """Close whatever the case opened."""
        while self._opened:
            await self._opened.pop().close()


@asynccontextmanager
async def log_under_test(opener: Opener, surroundings: Surroundings | None = None) -> Any:
    """A log for one case, closed afterwards; a case that hangs fails."""
    log = LogUnderTest(opener, surroundings)
    try:
        async with asyncio.timeout(CASE_TIMEOUT_S):
            yield log
    finally:
        await log.close()


async def agent_of(store: LogStore, agent: str = "", tenant: str = "", **facts: Any) -> AgentRecord:
    """An agent's row, made when it is missing; names that are not given are new ones."""
    tenant, agent = tenant or f"tenant-{uuid4().hex}", agent or f"agent-{uuid4().hex}"
    partition = partition_of(tenant, agent, store.partitions)
    fields = {"owner": "", "epoch": 0, "type": "", "labels": {}, "data_key": b"key", "created_us": 1_700_000_000_000_000, **facts}
    (record,) = await store.create_agents([AgentRecord(tenant, agent, 0, 0, partition, **fields)])
    return record


def row(record: AgentRecord, position: Position, version: int, now_us: int, **fields: Any) -> SealedEvent:
    """The event that follows `position`, with a random payload where none is given."""
    event = SealedEvent(
        tenant=record.tenant,
        agent=record.agent,
        tenant_key=record.tenant_key,
        agent_key=record.agent_key,
        partition=record.partition,
        offset=position.offset + 1,
        version=version,
        epoch=record.epoch,
        id=uuid7(),
        type="noted",
        time_us=max(now_us, position.time_us),
        causation_id=None,
        correlation_id=None,
        trace_id=None,
        project=None,
        module=None,
        chain=os.urandom(32),
        payload=os.urandom(48),
    )
    return msgspec.structs.replace(event, **fields)


class RawWriter:
    """Puts rows into a store as the log's writer does (positions first, then heads, then the tail), without its rules."""

    def __init__(self, store: LogStore) -> None:
        self.store = store
        self.known: dict[int, Position] = {}
        self.versions: dict[int, int] = {}
        self.proposals = 0
        self.tails: list[list[TailEvent]] = []

    async def append(self, *items: tuple[AgentRecord, Sequence[Mapping[str, Any]]]) -> list[SealedEvent]:
        """Append, in one commit, for each agent events with the given fields."""
        records = [record for record, _ in items]
        await self._learn(records)
        proposed: list[Proposal] = []

        def propose(now_us: int, tail: Sequence[TailEvent], _: Mapping[tuple[int, UUID], int]) -> Proposal:
            self.proposals += 1
            self.tails.append(list(tail))
            for event in tail:
                self.known[event.partition] = Position(event.offset, event.time_us)
                self.versions[event.agent_key] = max(event.version, self.versions.get(event.agent_key, 0))
            proposed[:] = [Proposal(self._rows(now_us, items), [], [])]
            return proposed[0]

        after = await self.store.append({record.partition: self.known[record.partition] for record in records}, propose)
        self.known.update(after)
        committed = proposed[0]
        if committed.behind:
            self.tails.append(list(committed.behind))
        self.versions |= {event.agent_key: event.version for event in committed.behind}
        self.versions |= {event.agent_key: event.version for event in committed.rows}
        return committed.rows

    async def add(self, record: AgentRecord, count: int = 1, **fields: Any) -> list[SealedEvent]:
        """Append `count` events to one agent, each with the same fields."""
        return await self.append((record, [fields] * count))

    async def _learn(self, records: Sequence[AgentRecord]) -> None:
        if any(record.partition not in self.known for record in records):
            for partition, position in (await self.store.positions()).items():
                self.known.setdefault(partition, position)
        strange = [record for record in records if record.agent_key not in self.versions]
        for record, head in zip(strange, await self.store.heads(strange), strict=True):
            self.versions[record.agent_key] = head.version

    def _rows(self, now_us: int, items: Sequence[tuple[AgentRecord, Sequence[Mapping[str, Any]]]]) -> list[SealedEvent]:
        positions, versions, rows = dict(self.known), dict(self.versions), []
        for record, events in items:
            for fields in events:
                versions[record.agent_key] += 1
                rows.append(row(record, positions[record.partition], versions[record.agent_key], now_us, **fields))
                positions[record.partition] = Position(rows[-1].offset, rows[-1].time_us)
        return rows


async def read_all(store: LogStore, partition: int, *, page: int = 500) -> list[SealedEvent]:
    """A whole partition, page by page; its offsets are checked."""
    events: list[SealedEvent] = []
    while batch := await store.read(partition, len(events), page):
        assert [event.offset for event in batch] == list(range(len(events) + 1, len(events) + len(batch) + 1))
        events += batch
    return events


def agent_name(record: AgentRecord) -> AgentName:
    """The key of a row."""
    return AgentName(record.tenant, record.agent)
