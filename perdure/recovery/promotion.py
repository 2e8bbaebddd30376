"""Promotion: an older copy of the log's database was put in the place of the live one, and the world goes on from it.

Whatever was committed after the copy is not in this log. Three things remember it: the topic (the events themselves, with their chain hashes),
the cache (tokens), and processes that still run. So a promotion begins a new generation, which makes tokens of the old world stale and ends the
sessions of its processes; takes from the topic what follows the log by hash; and says of every agent which versions are lost.

Order, so that it may be interrupted anywhere and done again: a mark (the log does not open any more), the generation, the events, the owners,
the relay's positions; the mark goes last. Nothing is guessed: an event that does not fit its agent's history, or that cannot be opened here,
is told and left out, and with it what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from perdure.engine import steps
from perdure.engine.bus.contract import TOPIC_MISSING, Bus
from perdure.engine.log.chain import placed_hash
from perdure.engine.log.contract import LogStore
from perdure.engine.log.log import EventLog
from perdure.engine.log.paging import agent_pages
from perdure.engine.log.records import AgentName, AgentRecord, Head, SealedEvent
from perdure.engine.relay_partition import SCOPE as RELAY_SCOPE
from perdure.engine.relay_partition import decode_kept
from perdure.engine.topic_check import check_topic
from perdure.errors import Conflict, IntegrityError, LimitExceeded, NotFound, PerdureError, Unavailable
from perdure.limits import PROMOTION_EVENTS_MAX
from perdure.projections.contract import StateCache
from perdure.recovery.backup.export import BACKUP_SCOPE, LOG_ID
from perdure.recovery.backup.restore import PROMOTION_MARK, RESTORE_SCOPE

__all__ = ["Lost", "Promoter", "Promotion", "ahead_of_log"]

READ: Final = 1_000
LOAD: Final = 500
LOST_LISTED_MAX: Final = 1_000

Progress = Callable[[int, int], None]


class Lost(msgspec.Struct, frozen=True):
    """Versions of an agent that were acknowledged and are not in the log. reason: why they could not be had."""

    tenant: str
    agent: str
    first_version: int
    last_version: int
    reason: str


class Promotion(msgspec.Struct, frozen=True):
    """What was done, or in a dry run would be. brought: events that the topic had. lost: the first LOST_LISTED_MAX agents; lost_events: of all of
    them. topic_sound: whether the topic says nothing but what the log has now; where not, it has to be replaced by a new one."""

    generation: int
    dry_run: bool
    brought: int
    agents: int
    lost_events: int
    lost: tuple[Lost, ...]
    topic_sound: bool


async def ahead_of_log(store: LogStore, bus: Bus) -> dict[int, int]:
    """By partition, how far the newest message on the topic is behind the log's end, where it is: the log then lacks so many events at least."""
    newest: dict[int, int] = {}
    for partition in range(store.partitions):
        mark = await bus.mark(partition)
        for delivery in await bus.read(partition, mark.end - 1, 1) if mark.end else ():
            if delivery.event is not None:
                newest[partition] = delivery.event.offset
    positions = await store.positions()  # afterwards: a topic is never ahead of a log that is whole
    return {partition: offset - positions[partition].offset for partition, offset in newest.items() if offset > positions[partition].offset}


class Promoter:
    """Promotes one log. bus, cache: where they are servers of their own; what is in this process remembers nothing."""

    def __init__(self, log: EventLog, bus: Bus | None, cache: StateCache | None, *, progress: Progress | None = None) -> None:
        self._log = log
        self._store = log.store
        self._vault = log.vault
        self._bus = bus
        self._cache = cache
        self._progress = progress
        self._heads: dict[AgentName, tuple[AgentRecord, Head]] = {}
        self._raised: dict[AgentName, int] = {}
        self._gone: dict[AgentName, Lost] = {}
        self._brought = 0
        self._brought_agents: set[AgentName] = set()

    async def run(self, *, dry_run: bool) -> Promotion:
        """Raises Conflict while processes are at work on this log, LimitExceeded, Unavailable."""
        # The same copy may have been promoted before: its generation then is in the cache already.
        seen = await self._compare_cache(None)
        next_one = max(self._store.generation, seen) + 1
        generation = next_one if dry_run else await self._begin(next_one)
        for partition in range(self._store.partitions):
            await self._partition(partition, dry_run=dry_run)
        await self._compare_cache(generation)
        sound = not self._gone if dry_run else await self._settle()
        lost = sorted(self._gone.values(), key=lambda each: (each.tenant, each.agent))
        return Promotion(
            generation,
            dry_run,
            self._brought,
            len(self._brought_agents),
            sum(each.last_version - each.first_version + 1 for each in lost),
            tuple(lost[:LOST_LISTED_MAX]),
            sound,
        )

    async def _begin(self, generation: int) -> int:
        """Nobody else is at work from here on; the new generation. One that was interrupted keeps the number that it had begun."""
        mark = await self._store.get_document(RESTORE_SCOPE, PROMOTION_MARK)
        if mark is None:
            held = [lease.name for lease in await self._store.list_leases("")]
            if held:
                raise Conflict(
                    f"processes are at work on this log ({', '.join(held[:3])})",
                    hint="stop them; what was copied with the log runs out by itself within seconds",
                )
            value = msgspec.msgpack.encode(generation)
            mark = await self._store.put_document(RESTORE_SCOPE, PROMOTION_MARK, value, expected=0)
            if mark is None:
                raise Conflict("another promotion has just begun", hint="wait for it")
            steps.reach("promotion.marked")
        generation = msgspec.msgpack.decode(mark.value, type=int)
        if self._store.generation < generation:
            await self._store.set_generation(generation)
        steps.reach("promotion.generation")
        return generation

    # --- what the topic has ---
    async def _partition(self, partition: int, *, dry_run: bool) -> None:
        position = (await self._store.positions())[partition]
        found = await self._after(partition, position.offset)
        fitting: list[SealedEvent] = []
        offset, time_us = position
        for candidates in (found[key] for key in sorted(found)):
            event = await self._fit(candidates, time_us)
            if event is not None:
                # Dense, as the log is: behind one that was left out the offsets are others than on the topic.
                offset, time_us = offset + 1, event.time_us
                fitting.append(msgspec.structs.replace(event, offset=offset))
        for start in range(0, len(fitting), LOAD):
            if not dry_run:
                await self._store.load_events(partition, fitting[start : start + LOAD])
                steps.reach("promotion.loaded")
        self._brought += len(fitting)
        if self._progress is not None:
            self._progress(partition + 1, self._store.partitions)

    async def _after(self, partition: int, offset: int) -> dict[int, list[SealedEvent]]:
        """Messages about events behind the log's end, by their offset; of several at one offset the first that was published comes first."""
        if self._bus is None:
            return {}
        try:
            mark = await self._bus.mark(partition)
        except Unavailable as problem:
            if problem.details.get("reason") == TOPIC_MISSING:
                return {}
            raise
        # What the relay had published when the copy was made is in the copy.
        kept = await self._store.get_document(RELAY_SCOPE, str(partition))
        known = decode_kept(kept.value) if kept is not None else None
        after = known.end if known is not None and known.incarnation == mark.incarnation else 0
        found: dict[int, list[SealedEvent]] = {}
        while page := await self._bus.read(partition, after, READ):
            after = page[-1].bus_offset + 1
            for event in [delivery.event for delivery in page]:
                if event is not None and event.offset > offset:
                    same = found.setdefault(event.offset, [])
                    if all(other.chain != event.chain for other in same):
                        same.append(event)
            if len(found) > PROMOTION_EVENTS_MAX:
                raise LimitExceeded(
                    f"the topic holds more than {PROMOTION_EVENTS_MAX} events that partition {partition} of the log lacks",
                    hint="restore a newer backup: `perdure backup restore`",
                )
        return found

    async def _fit(self, candidates: Iterable[SealedEvent], time_us: int) -> SealedEvent | None:
        """The candidate that goes on from where its agent stands; None: none does, which is noted."""
        for event in candidates:
            name = AgentName(event.tenant, event.agent)
            record, head = await self._stands(name)
            if record is None:
                self._miss(name, event.version, "the agent was made after the copy, and its key with it")
                continue
            if event.version <= head.version:
                continue  # it is there
            keyed = msgspec.structs.replace(event, tenant_key=record.tenant_key, agent_key=record.agent_key)
            if event.version != head.version + 1 or placed_hash(head.chain, event) != event.chain or event.time_us < time_us:
                self._miss(name, event.version, "what the topic has does not follow what the log has")
                continue
            try:
                await self._vault.open(keyed)
            except (IntegrityError, NotFound, PerdureError) as problem:
                if problem.retryable:
                    raise
                self._miss(name, event.version, f"it cannot be opened: {problem.message}")
                continue
            if event.epoch != head.epoch:
                self._raised[name] = event.epoch
            self._heads[name] = (record, Head(event.version, event.epoch, event.chain))
            self._brought_agents.add(name)
            return keyed
        return None

    async def _stands(self, name: AgentName) -> tuple[AgentRecord | None, Head]:
        known = self._heads.get(name)
        if known is not None:
            return known
        (record,) = await self._store.agents([name])
        if record is None:
            return None, Head(0, 0, b"")
        (head,) = await self._store.heads([record])
        self._heads[name] = (record, head)
        return record, head

    def _miss(self, name: AgentName, version: int, reason: str) -> None:
        before = self._gone.get(name)
        first = version if before is None else min(before.first_version, version)
        last = version if before is None else max(before.last_version, version)
        self._gone[name] = Lost(name.tenant, name.agent, first, last, reason if before is None else before.reason)

    # --- what the cache has seen ---
    async def _compare_cache(self, generation: int | None) -> int:
        """Note versions that the cache has seen in an older generation than this one, and that neither the log nor the topic has; None: note none.
        The newest generation that the cache has seen."""
        newest = 0
        if self._cache is None:
            return newest
        async for page in agent_pages(self._store):
            names = [AgentName(agent.tenant, agent.agent) for agent in page]
            heads = await self._store.heads(page)
            for name, token, head in zip(names, await self._cache.tokens(names), heads, strict=True):
                if token is None:
                    continue
                newest = max(newest, token.generation)
                version = self._heads[name][1].version if name in self._heads else head.version
                if generation is not None and token.generation < generation and token.version > version:
                    self._miss(name, version + 1, "only the cache has seen it")
                    self._miss(name, token.version, "only the cache has seen it")
        return newest

    # --- the end ---
    async def _settle(self) -> bool:
        """Owners, relay, mark; whether the topic says nothing but what the log has."""
        for name in self._raised:
            # Rows say who owned it at the copy; whoever owned it last has lost his sessions and owns nothing here.
            self._vault.forget(name)
            await self._log.take_ownership(name, "")
        steps.reach("promotion.owners")
        sound = self._bus is None or (await check_topic(self._store, self._bus)).sound
        if not sound:
            # Whatever topic there is then gets the whole log from its beginning; consumers drop what they know.
            for document in await self._store.list_documents(RELAY_SCOPE):
                await self._store.delete_document(RELAY_SCOPE, document.name)
        # Backups of the log that this one was must not be gone on with, whatever its generation was called.
        await self._store.delete_document(BACKUP_SCOPE, LOG_ID)
        await self._store.delete_document(RESTORE_SCOPE, PROMOTION_MARK)
        return sound
