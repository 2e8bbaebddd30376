"""Repair: what was damaged is put right from a copy that fits, and nothing is guessed.

A row of the log is replaced only by an event whose chain hash fits between the one before it and, where there is one, the one after it: looked
for on the topic, then in a backup. Without one the agent is quarantined, with what is known. Cache and topic are put right from the log, after
it. Snapshots are the scrub's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Protocol

import msgspec

from perdure.engine.bus.contract import Bus
from perdure.engine.log.chain import placed_hash
from perdure.engine.log.contract import LogStore
from perdure.engine.log.fork_rows import has_own_floor
from perdure.engine.log.paging import agent_pages
from perdure.engine.log.records import AgentRecord, EventFilter, SealedEvent
from perdure.engine.topic_check import TopicReport
from perdure.engine.vault import Vault
from perdure.errors import ChainBroken, IntegrityError
from perdure.projections.cache_check import CacheReport
from perdure.projections.contract import StateCache
from perdure.projections.quarantine import Quarantine

__all__ = ["Action", "EventSource", "RepairReport", "Repairer", "TopicSource"]

PAGE: Final = 500
REPUBLISH: Final = 500

Progress = Callable[[int, int], None]


class Action(msgspec.Struct, frozen=True):
    """One thing that was done, or in a dry run would be. what: event, cache, topic, quarantine. source: where the good copy is from."""

    what: str
    tenant: str
    agent: str
    detail: str
    source: str = ""


class RepairReport(msgspec.Struct):
    """ok: nothing is left that does not hold, as far as repair can tell. unresolved: what is left, one line each."""

    dry_run: bool
    agents: int = 0
    actions: list[Action] = msgspec.field(default_factory=list)
    unresolved: list[str] = msgspec.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was found could be put right."""
        return not self.unresolved


class EventSource(Protocol):
    """Where copies of events are looked for. name: for the report."""

    name: str

    async def find(self, agent: AgentRecord, version: int, offset: int | None) -> list[SealedEvent]:
        """Copies of the agent's event at a version, under the log's own keys; offset: in its partition, where that is known."""
        ...


class TopicSource:
    """The topic: each message is an event with its chain hash. Its partition is read through once for an agent, which is then kept."""

    name = "topic"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._kept: tuple[int, dict[int, list[SealedEvent]]] = (0, {})

    async def find(self, agent: AgentRecord, version: int, offset: int | None) -> list[SealedEvent]:
        del offset  # duplicates and rewinds let the two offsets drift apart
        if self._kept[0] != agent.agent_key:
            self._kept = (agent.agent_key, await self._copies(agent))
        return self._kept[1].get(version, [])

    async def _copies(self, agent: AgentRecord) -> dict[int, list[SealedEvent]]:
        """All of the agent's messages, by version."""
        found: dict[int, list[SealedEvent]] = {}
        after = 0
        while page := await self._bus.read(agent.partition, after, PAGE):
            after = page[-1].bus_offset + 1
            for event in [delivery.event for delivery in page]:
                if event is not None and (event.tenant, event.agent) == (agent.tenant, agent.agent):
                    found.setdefault(event.version, []).append(_keyed(event, agent))
        return found


class Repairer:
    """One run over the log, or over some of its agents."""

    def __init__(
        self,
        store: LogStore,
        vault: Vault,
        sources: list[EventSource],
        *,
        dry_run: bool,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._vault = vault
        self._sources = sources
        self._progress = progress
        self._quarantine = Quarantine(store)
        self._broken: dict[int, int] = {}
        self._still_wrong: set[tuple[str, str] | int] = set()
        """In a dry run: agents, and partitions of the log, that an event would be put right in. What topic and cache have is the good copy there,
        and whether it agrees is seen when the log is right."""
        self.report = RepairReport(dry_run)

    async def log(self) -> None:
        """Every agent's chain; what does not hold is replaced or quarantined, with the forks that share it."""
        async for agent in self._agents():
            await self._agent(agent)
            self.report.agents += 1
            if self._progress is not None:
                self._progress(self.report.agents, len(self.report.actions))
        if self._broken:
            async for agent in self._agents():
                await self._shared(agent)

    async def _agents(self) -> AsyncIterator[AgentRecord]:
        async for page in agent_pages(self._store):
            for agent in page:
                yield agent

    async def _shared(self, agent: AgentRecord) -> None:
        """Put an agent aside that goes on from a version which could not be put right."""
        for past in agent.past:
            version = self._broken.get(past.agent_key, past.version + 1)
            if version <= past.version and not has_own_floor(agent, (await self._store.floors([agent]))[0]):
                await self._give_up(
                    agent, version, f"version {version}, which it shares with {past.agent}, is not the event that was written"
                )
                return

    async def cache(self, cache: StateCache, found: CacheReport, refill: Callable[[str, str], object]) -> None:
        """Wrong states are removed, and read anew from the log. refill(tenant, agent): a coroutine that does. What an agent without a whole
        log has in the cache stays: it may be the last good copy."""
        damaged = {(action.tenant, action.agent) for action in self.report.actions if action.what == "quarantine"}
        for problem in found.problems:
            if (problem.tenant, problem.agent) in damaged | self._still_wrong:
                continue
            self._note("cache", problem.tenant, problem.agent, problem.reason, "log")
            if not self.report.dry_run:
                await cache.remove([(problem.tenant, problem.agent)])
                await refill(problem.tenant, problem.agent)  # type: ignore[misc]

    async def topic(self, bus: Bus, found: TopicReport) -> None:
        """What the topic lacks is published again; consumers drop what they have seen. What is wrong on it cannot be taken off it."""
        for partition in found.partitions:
            if partition.partition in self._still_wrong:
                continue
            for first, last in partition.missing:
                self._note("topic", "", "", f"partition {partition.partition}, offsets {first} to {last}", "log")
                if not self.report.dry_run:
                    await self._publish(bus, partition.partition, first, last)
            wrong = partition.extra + partition.altered + partition.unreadable
            if wrong:
                self.report.unresolved.append(
                    f"partition {partition.partition} of the topic holds {wrong} messages that are not the log's: delete the topic, the relay "
                    "fills a new one"
                )

    async def _publish(self, bus: Bus, partition: int, first: int, last: int) -> None:
        after = first - 1
        while after < last:
            page = [event for event in await self._store.read(partition, after, REPUBLISH, sparse=True) if event.offset <= last]
            if not page:
                return
            await bus.publish(partition, page)
            after = page[-1].offset

    # --- events ---
    async def _agent(self, agent: AgentRecord) -> None:
        (floor,) = await self._store.floors([agent])
        version, chain = floor.version - 1, floor.chain
        if agent.parent is not None and not has_own_floor(agent, floor):
            # What it shares is put right with the agents that wrote it; its own follows what its row says.
            version, chain = agent.parent.version, agent.parent.chain
        before: SealedEvent | None = None
        while True:
            page = await self._store.read_agent(agent, EventFilter(from_version=version + 1), PAGE)
            for number, event in enumerate(page):
                if self._fits(event, version, chain) and await self._opens(event):
                    before, version, chain = event, event.version, event.chain
                    continue
                later = {each.version: each for each in page[number:]}
                mended = await self._mend(agent, version + 1, chain, later, before)
                if mended is None:
                    return
                before, version, chain = mended, mended.version, mended.chain
                break  # read again from there: the row may have been missing
            else:
                if len(page) < PAGE:
                    return

    def _fits(self, event: SealedEvent, version: int, chain: bytes) -> bool:
        return event.version == version + 1 and placed_hash(chain, event) == event.chain

    async def _opens(self, event: SealedEvent) -> bool:
        """Whether its seal holds. Raises KeyUnavailable: a missing key is not damage, and nothing can be told without it."""
        try:
            await self._vault.open(event)
        except IntegrityError:
            return False
        return True

    async def _mend(
        self, agent: AgentRecord, version: int, chain: bytes, later: Mapping[int, SealedEvent], before: SealedEvent | None
    ) -> SealedEvent | None:
        """Find the event that fits and put it in; None: there is none, the agent is quarantined. later: rows from here on, by version."""
        offset = later[version].offset if version in later else None
        for source in self._sources:
            for candidate in await source.find(agent, version, offset):
                if not self._fits(candidate, version - 1, chain) or (before is not None and candidate.offset <= before.offset):
                    continue
                if not await self._leads_on(agent, source, candidate, later):
                    continue
                self._note("event", agent.tenant, agent.agent, f"version {version}", source.name)
                if self.report.dry_run:
                    self._still_wrong |= {(agent.tenant, agent.agent), agent.partition}
                else:
                    await self._store.mend_event(candidate)
                return candidate
        self._broken[agent.agent_key] = version
        await self._give_up(agent, version, f"version {version} is not the event that was written, and no copy that fits was found")
        return None

    async def _give_up(self, agent: AgentRecord, version: int, problem: str) -> None:
        self.report.unresolved.append(f"{agent.tenant}/{agent.agent}: {problem}")
        self._note("quarantine", agent.tenant, agent.agent, problem)
        if not self.report.dry_run:
            broken = ChainBroken(problem, tenant=agent.tenant, agent=agent.agent, version=version)
            await self._quarantine.put(agent.tenant, agent.agent, version - 1, broken)

    async def _leads_on(self, agent: AgentRecord, source: EventSource, candidate: SealedEvent, later: Mapping[int, SealedEvent]) -> bool:
        """Whether the history goes on from the candidate: to a row that fits, over further copies where rows beside it are damaged too."""
        newest = max(later, default=0)
        while candidate.version < newest:
            row = later.get(candidate.version + 1)
            if row is not None and self._fits(row, candidate.version, candidate.chain):
                return True
            copies = await source.find(agent, candidate.version + 1, None if row is None else row.offset)
            following = next((copy for copy in copies if self._fits(copy, candidate.version, candidate.chain)), None)
            if following is None:
                return False
            candidate = following
        return True

    def _note(self, what: str, tenant: str, agent: str, detail: str, source: str = "") -> None:
        self.report.actions.append(Action(what, tenant, agent, detail, source))


def _keyed(event: SealedEvent, agent: AgentRecord) -> SealedEvent:
    return msgspec.structs.replace(event, tenant_key=agent.tenant_key, agent_key=agent.agent_key, partition=agent.partition)
