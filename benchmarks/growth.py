"""Appends and loads as a log grows, and with a thousand segments: runs on the grown log alternate with runs on one that stayed small."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import cycle
from typing import Any

import perdure
from benchmarks.measuring import closed_load, median
from benchmarks.peers.catalogue import SIDES
from benchmarks.report import machine, note, shape
from benchmarks.servers import fresh_database, postgres_url
from benchmarks.settings import Settings
from benchmarks.sides import Beside, Pairs, Side, rounds, sides
from perdure import Event, append
from perdure.client.engine import Engine
from perdure.engine.log import postgres_segments
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.records import AgentName
from perdure.limits import PARTITIONS_DEFAULT, SEGMENT_OFFSETS
from perdure.projections.hot import HotStates
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader

__all__ = ["KEYS", "measure"]

KEYS = (
    *("ratios.append_at_end", "ratios.append_at_end_to_few", "ratios.load_at_end", "ratios.eventsourcing_at_end"),
    *("ratios.append_at_1000_segments", "ratios.append_at_1000_young_segments"),
    *("figures.append_start_per_s", "figures.append_end_per_s", "figures.load_end_ms", "figures.events", "figures.segments"),
)
START = 10_000
SEGMENTS = 1_000
SEGMENT_EVENTS = 250
"""Offsets of one segment where there are to be a thousand."""
SPARE_SEGMENTS = 24
"""Made before they are measured, in each partition: in use one is made once in 100 000 events, and their number is what is asked here."""
CALLERS = 256
PEER_CALLERS = 32
PAIRS = 3
PAIRS_OF_SIZES = 7
SMALL_LOGS = 3
PROBE_MESSAGES = 50
LOADS = 20
PEER = SIDES["eventsourcing"]
_FILL_AGENTS, _FILL_EVENTS = 512, 10


class _Agent:
    """An agent as its caller has it: who it is, and at which version it stands."""

    __slots__ = ("name", "version")

    def __init__(self, number: int) -> None:
        self.name = AgentName("grown", f"agent-{number}")
        self.version = 0


class _Log:
    """A log that grows, and its agents."""

    def __init__(self, engine: Engine, messages: list[dict[str, Any]], agents_max: int) -> None:
        self._engine = engine
        self._messages = cycle(messages)
        self._agents_max = agents_max
        self._next = 0
        self._chance = random.Random(1)
        self.agents: list[_Agent] = []
        self.events = 0

    def _event(self) -> Event:
        return Event("message_added", changes=(append("/messages", next(self._messages)),))

    async def grow(self, events: int) -> None:
        """Write until it holds so many: new agents up to the most, then all in turns."""
        while self.events < events:
            first = self._next % self._agents_max
            after = min(first + _FILL_AGENTS, self._agents_max)
            self.agents += map(_Agent, range(len(self.agents), after))
            await asyncio.gather(*map(self._fill, self.agents[first:after]))
            self._next = after

    async def _fill(self, agent: _Agent) -> None:
        agent.version = (await self._engine.log.append_events(agent.name, [self._event() for _ in range(_FILL_EVENTS)])).version
        self.events += _FILL_EVENTS

    async def spare(self, segments: int) -> None:
        """Make so many segments of each partition ahead of need."""
        store: Any = self._engine.log.store
        for partition in range(store.partitions):
            await store._segments.ensure(store._pool, partition, store._segments.newest(partition) + segments)

    async def probe(self) -> None:
        """An agent that stays as it is while others grow."""
        events = [self._event() for _ in range(PROBE_MESSAGES)]
        await self._engine.agent("probe", tenant="grown").append(events)

    async def load_s(self) -> float:
        """Median time of the probe's state out of the log, with nothing at hand."""
        took = []
        for _ in range(LOADS):
            reader = StateReader(self._engine.log.store, MemoryCache(), self._engine.log.vault, kept=HotStates(agents_max=0))
            before = time.perf_counter()
            state = await reader.state("grown", "probe")
            took.append(time.perf_counter() - before)
            assert state.version == PROBE_MESSAGES
        return median(took)

    async def rate(self, duration_s: float, callers: int = CALLERS, agents_max: int | None = None) -> float:
        """Appends per second of callers at agents taken by chance, at the versions these have. agents_max: only the first ones, else all."""
        agents = self.agents[:agents_max]
        callers = min(callers, len(agents))

        async def step(caller: int) -> None:
            # A caller has its own share of the agents: no two append to one at once.
            agent = agents[self._chance.randrange(len(agents) // callers) * callers + caller]
            agent.version = (await self._engine.log.append_event(agent.name, self._event(), expected=agent.version)).version
            self.events += 1

        return (await closed_load(callers, duration_s, step))[0]


@asynccontextmanager
async def _log(beside: Beside, agents_max: int, segment_offsets: int = SEGMENT_OFFSETS) -> AsyncIterator[_Log]:
    with fresh_database(beside.postgres_url) as url:
        # The size of a segment is settled when the log is made.
        await (await PostgresStore.open(url, segment_offsets=segment_offsets)).close()
        async with perdure.open(url, bus="memory://", cache="memory://", keys=f"file://{beside.folder}/root.key") as engine:
            yield _Log(engine, _messages(beside), agents_max)


def _messages(beside: Beside) -> list[dict[str, Any]]:
    """Real messages, as they come."""
    return [message for conversation in beside.conversations for message in conversation]


async def measure(settings: Settings) -> dict[str, Any]:
    """All figures of growth."""
    server = await postgres_url(settings.root)
    sizes = [settings.count(START, START, least=500), settings.count(250_000, 1_000_000, least=1_500)]
    sizes += [] if settings.quick else [settings.count(0, 10_000_000)]
    async with sides(settings, server) as beside:
        agents = settings.count(25_000, 100_000, least=100)
        details: dict[str, Any] = {}
        async with _log(beside, agents) as small:
            await small.grow(sizes[0])
            await small.probe()
            await small.rate(settings.seconds(0.3, 2))
            curve = await _grown(beside, small, agents, sizes, details)
            await _segments(beside, small)
        details |= {"curve": {"perdure": curve}, "agents": agents}
        await beside.peers([PEER], lambda peer: _peer(beside, peer, details))
    return shape(beside.found, KEYS, details, machine(server), beside)


async def _grown(beside: Beside, small: _Log, agents: int, sizes: list[int], details: dict[str, Any]) -> list[tuple[int, float]]:
    """The rate at each size, beside that of a log of the first size in the same seconds."""
    duration_s = beside.settings.seconds(0.7, 5)
    curve: list[tuple[int, float]] = []
    async with AsyncExitStack() as stack:
        large = await stack.enter_async_context(_log(beside, agents))
        await large.probe()
        for size in sizes[1:]:
            note(f"growth: {size} events")
            await large.grow(size)
            at_start = await _starts(stack, beside, agents, sizes[0], duration_s)
            await large.rate(duration_s)
            pairs = await rounds(PAIRS_OF_SIZES, lambda: large.rate(duration_s), at_start)
            curve = [*(curve or [(sizes[0], pairs.theirs)]), (size, pairs.ours)]
        # What comes of the events alone: the same log, but as few agents are at work as in the small one.
        at_start = await _starts(stack, beside, agents, sizes[0], duration_s)
        details |= {"small_events": small.events, "small_agents": len(small.agents)}
        await large.rate(duration_s, agents_max=len(small.agents))
        few = await rounds(PAIRS_OF_SIZES, lambda: large.rate(duration_s, agents_max=len(small.agents)), at_start)
        loads = Pairs.of([(await large.load_s(), await small.load_s()) for _ in range(PAIRS)])
        beside.found |= {"ratios.append_at_end": pairs.ratio, "ratios.load_at_end": loads.ratio, "figures.events": large.events}
        beside.found |= {"figures.append_start_per_s": pairs.theirs, "figures.append_end_per_s": pairs.ours}
        beside.found |= {"ratios.append_at_end_to_few": few.ratio, "figures.load_end_ms": loads.ours * 1000}
    return [(size, float(f"{rate:.4g}")) for size, rate in curve]


async def _starts(stack: AsyncExitStack, beside: Beside, agents: int, size: int, duration_s: float) -> Callable[[], Awaitable[float]]:
    """Measures a small log, one of a few in turns: one that is measured again and again is not small any more.

    All are made before the first is measured, and dropped at the end: each making and dropping of a database is a checkpoint, after which
    the server writes every page that the large log touches once more as a whole.
    """
    logs = [await stack.enter_async_context(_log(beside, agents)) for _ in range(SMALL_LOGS)]
    for log in logs:
        await log.grow(size)
        await log.rate(duration_s / 4)
    turns = cycle(logs)
    return lambda: next(turns).rate(duration_s)


async def _segments(beside: Beside, small: _Log) -> None:
    """As many events as fill a thousand small segments."""
    segments = beside.settings.count(SEGMENTS, SEGMENTS, least=PARTITIONS_DEFAULT)
    note(f"growth: {segments} segments")
    duration_s = beside.settings.seconds(1, 10)
    async with _log(beside, 25_000, SEGMENT_EVENTS) as many:
        await many.grow(segments * SEGMENT_EVENTS)
        await many.spare(beside.settings.count(SPARE_SEGMENTS, 10 * SPARE_SEGMENTS, least=1))
        await many.rate(duration_s / 2)
        young = await rounds(PAIRS, lambda: many.rate(duration_s), lambda: small.rate(duration_s))
        with _no_longer_young():
            # One row an append: few of them meet the border of two segments, where all ids are looked up, too.
            old = await rounds(PAIRS, lambda: many.rate(duration_s, 1), lambda: small.rate(duration_s, 1))
    beside.found |= {"ratios.append_at_1000_segments": old.ratio, "ratios.append_at_1000_young_segments": young.ratio}
    beside.found["figures.segments"] = segments


@contextmanager
def _no_longer_young() -> Iterator[None]:
    """As if every segment had begun long ago.

    For twelve seconds after a segment has begun, ids are looked up in those that others, too, wrote to shortly before: in use that is one more
    segment for twelve seconds of 100 000 events. Who writes alone, as here, looks for none but those older than what it last wrote.
    """
    before = postgres_segments.SURE_AFTER_MS
    postgres_segments.SURE_AFTER_MS = 0
    try:
        yield
    finally:
        postgres_segments.SURE_AFTER_MS = before


async def _peer(beside: Beside, large: Side, details: dict[str, Any]) -> None:
    """The same of one peer: its rate with many events by its rate with few."""
    size = beside.settings.count(50_000, 1_000_000, least=START)
    duration_s = beside.settings.seconds(1, 10)
    async with beside.side(PEER) as small:
        for side, events in ((small, START), (large, size)):
            await side.ask("streams", callers=PEER_CALLERS)
            for number in range(events // 100):
                await side.ask("fill", stream=f"filled-{number}", count=100)

        async def rate(side: Side) -> float:
            return (await side.append(PEER_CALLERS, duration_s, "real")).per_s

        pairs = await rounds(PAIRS, lambda: rate(large), lambda: rate(small))
    beside.found[f"ratios.{PEER.name}_at_end"] = pairs.ratio
    details["curve"][PEER.title] = [(START, round(pairs.theirs, 1)), (size, round(pairs.ours, 1))]
