"""Does the log hold? One agent's chain and seals, one partition's offsets and times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from perdure.client.verify_problems import Problems
from perdure.engine.log.chain import check_chain
from perdure.engine.log.contract import LogStore
from perdure.engine.log.fork_rows import begins_at, owner_of
from perdure.engine.log.log import read_pages
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, Position
from perdure.engine.moves import arrived
from perdure.engine.vault import Vault
from perdure.errors import IntegrityError, KeyUnavailable, NotFound, PerdureError

__all__ = ["LogReport", "Read", "check_agent", "check_offsets"]

MISSING_KEYS_KEPT_MAX = 100

Read = Callable[[int], Awaitable[None]]
"""Told how many events were read."""


class LogReport(Problems):
    """agents, events: looked at. agents_unread: of these, those whose key is missing: their chains were checked, which needs no key, their seals
    were not; missing_keys says why, each reason once. problems: of chains, seals and offsets."""

    agents: int = 0
    events: int = 0
    agents_unread: int = 0
    missing_keys: list[str] = msgspec.field(default_factory=list)

    def unread(self, tenant: str, reason: str) -> None:
        """An agent could not be opened."""
        self.agents_unread += 1
        line = f"{tenant}: {reason}"
        if line not in self.missing_keys and len(self.missing_keys) < MISSING_KEYS_KEPT_MAX:
            self.missing_keys.append(line)


async def check_agent(store: LogStore, vault: Vault, record: AgentRecord, report: LogReport, read: Read) -> bool:
    """Its chain, and what its events say where they can be opened; whether they can."""
    report.agents += 1
    opens = await _opens(vault, record, report)
    (floor,) = await store.floors([record])
    version, chain = floor.version - 1, floor.chain
    if version:
        anchor = await store.snapshots(owner_of(record, version), to_version=version, limit=1, good=True)
        if not anchor or (anchor[0].version, anchor[0].chain) != (version, chain):
            report.note(f"{record.tenant}/{record.agent} version {version}: no whole snapshot stands for the events that were removed")
    try:
        async for page in read_pages(store, record, EventFilter(from_version=floor.version)):
            version, chain = check_chain(page, version=version, chain=chain)
            if opens:  # else the chain tells, which needs no key
                await vault.open_all(page)
            # What a fork shares is counted with the agents that wrote it.
            report.events += sum(event.version > begins_at(record) for event in page)
            await read(len(page))
    except PerdureError as problem:
        if problem.retryable:
            raise
        report.note(f"{record.tenant}/{record.agent} version {problem.version}: {problem.message}")
    return opens


async def _opens(vault: Vault, record: AgentRecord, report: LogReport) -> bool:
    """Whether the agent's key is there. One that is missing is told; one that was destroyed on purpose is not."""
    if not record.data_key:
        return False
    try:
        await vault.cipher(record.tenant, record.agent)
    except KeyUnavailable as problem:
        if problem.details.get("reason") != "destroyed":
            report.unread(record.tenant, problem.message)
        return False
    except (IntegrityError, NotFound):
        return True  # told with its events
    return True


async def check_offsets(store: LogStore, partition: int, report: LogReport, read: Read) -> int:
    """How many events a partition holds, each after the one before it."""
    counted = after = time_us = 0
    floor = (await store.partition_floors())[partition]
    end = (await store.positions()).get(partition, Position(0, 0))
    arrivals = await arrived(store)
    while after < end.offset and (page := await store.read(partition, after, 1_000, sparse=after < floor)):
        for event in page:
            # Up to the floor offsets may have been removed.
            if event.offset <= after or (event.offset != after + 1 and event.offset > floor + 1):
                report.note(f"partition {partition}: offset {event.offset} follows offset {after}")
            # An agent that came from another engine brought its times along.
            came = bool(arrivals) and AgentName(event.tenant, event.agent) in arrivals
            if event.time_us < time_us and not came:
                report.note(f"partition {partition}: time goes back at offset {event.offset}")
            after, time_us = event.offset, time_us if came else event.time_us
        counted += len(page)
        await read(len(page))
    return counted
