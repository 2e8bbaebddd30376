"""The projector: from the bus to the cache of current states (docs/adr/0005-projector.md).

Per batch: deliveries are grouped by agent; each agent's events are checked against the state at hand (version = seen + 1, and the hash
chain), opened, folded, and become one write; all writes go out pipelined; then the bus positions are committed. So a crash at any moment
repeats work and loses none. Whatever does not fit (a gap, another history, a bus message that cannot be opened) is settled by the log; what
the log itself cannot settle puts that one agent into quarantine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import msgspec

from perdure.engine.bus.contract import Bus, Consumer, Delivery
from perdure.engine.log.contract import LogStore
from perdure.engine.steps import reach
from perdure.engine.stopping import rest
from perdure.engine.vault import Vault
from perdure.errors import Unavailable
from perdure.projections.batch import BatchWork
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base
from perdure.projections.hot import HotState, HotStates
from perdure.projections.quarantine import Quarantine

__all__ = ["BATCH_DURATION_S", "BATCH_MESSAGES_MAX", "Projector", "ProjectorStatus"]

BATCH_MESSAGES_MAX: Final = 2_000
"""Messages that one batch takes from the bus: the more, the more often do several events of an agent cost one write."""
BATCH_DURATION_S: Final = 5.0
"""How long a batch waits for its first message."""
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 5.0
QUARANTINE_REFRESH_S: Final = 5.0
"""How soon a projector sees that an agent's quarantine was cleared elsewhere."""
ASSIGNMENT_TIMEOUT_S: Final = 30.0
"""How long `drain` waits for the group to assign partitions."""
_DRAIN_POLL_S: Final = 0.2

_log = logging.getLogger(__name__)


class ProjectorStatus(msgspec.Struct):
    """What a projector has done since it started. retries: batches repeated because a server was away; problem: the newest reason, or ''."""

    messages: int = 0
    applied_agents: int = 0
    rebuilt_agents: int = 0
    warnings: int = 0
    unreadable_messages: int = 0
    quarantined_agents: int = 0
    retries: int = 0
    problem: str = ""


class Projector:
    """Keeps a cache of current states up to date from a bus.

    group: the consumer group; members of one group share the partitions. base: gives snapshots to fold on from. hot: states at hand, bounded.
    """

    def __init__(
        self,
        store: LogStore,
        bus: Bus,
        cache: StateCache,
        vault: Vault,
        *,
        group: str = "state",
        base: Base | None = None,
        hot: HotStates[HotState] | None = None,
    ) -> None:
        self._store = store
        self._bus = bus
        self._cache = cache
        self._vault = vault
        self._group = group
        self._base = base
        self._hot: HotStates[HotState] = HotStates() if hot is None else hot
        self._consumer: Consumer | None = None
        self._offsets: dict[int, int] = {}
        self._aside: set[tuple[str, str]] = set()
        self._aside_until = 0.0
        self.quarantine = Quarantine(store)
        self.status = ProjectorStatus()

    async def run(self, stop: asyncio.Event) -> None:
        """Project until `stop` is set. Servers that are away are waited for; any other error of the projector itself raises."""
        try:
            while not stop.is_set():
                await self._turn(stop, BATCH_DURATION_S)
        finally:
            await self.close()

    async def drain(self) -> int:
        """Project what the bus holds for this group, and return the number of messages. Raises Unavailable when a server is away."""
        consumer = await self._connect()
        before = self.status.messages
        assigned_until = time.monotonic() + ASSIGNMENT_TIMEOUT_S
        full = False
        while full or not await self._through(consumer, assigned_until):
            deliveries = await consumer.receive(BATCH_MESSAGES_MAX, _DRAIN_POLL_S)
            if deliveries:
                await self._project(consumer, deliveries)
            full = len(deliveries) == BATCH_MESSAGES_MAX
        return self.status.messages - before

    async def _through(self, consumer: Consumer, assigned_until: float) -> bool:
        lag = await consumer.lag()
        # No partition at all: the group has not given this member its partitions yet, or has none to give.
        return not any(lag.values()) and (bool(lag) or time.monotonic() > assigned_until)

    async def lag(self) -> dict[int, int]:
        """Per partition of this member, messages published and not yet projected."""
        return await (await self._connect()).lag()

    async def close(self) -> None:
        """Leave the group; the states at hand are forgotten."""
        consumer, self._consumer = self._consumer, None
        self._hot = HotStates()
        self._offsets = {}
        if consumer is not None:
            await consumer.close()

    async def _connect(self) -> Consumer:
        if self._consumer is None:
            self._consumer = await self._bus.consumer(self._group)
        return self._consumer

    async def _turn(self, stop: asyncio.Event, timeout_s: float) -> None:
        """One batch, repeated until it is through or the projector shall stop; the next one is not received before."""
        deliveries: list[Delivery] | None = None
        delay_s = RETRY_FIRST_S
        while not stop.is_set():
            try:
                consumer = await self._connect()
                if deliveries is None:
                    deliveries = await _unless(stop, consumer.receive(BATCH_MESSAGES_MAX, timeout_s))
                if deliveries:
                    await self._project(consumer, deliveries)
                return
            except Unavailable as problem:
                if self.status.problem != str(problem):
                    _log.warning("projecting waits: %s", problem)
                self.status.retries += 1
                self.status.problem = str(problem)
                await rest(stop, delay_s)
                delay_s = min(2 * delay_s, RETRY_MAX_S)

    async def _project(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        await self._refresh_quarantine()
        reach("projector.received")
        work = BatchWork(self._store, self._cache, self._vault, self._hot, self._base, self._aside)
        try:
            await work.run(await self._readable(deliveries))
        except BaseException:
            # The states were folded on in place and may be ahead of the cache by now.
            work.forget()
            raise
        reach("projector.applied")
        for (tenant, agent), (version, problem) in work.broken.items():
            await self._put_aside(tenant, agent, version, problem)
        positions: dict[int, int] = {}
        for delivery in deliveries:
            positions[delivery.partition] = delivery.bus_offset + 1
        await consumer.commit(positions)
        reach("projector.committed")
        self.status.messages += len(deliveries)
        self.status.applied_agents += work.applied
        self.status.rebuilt_agents += work.rebuilt
        self.status.warnings += work.warnings

    async def _readable(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The deliveries, with the log's own event in place of a message that is not readable."""
        readable = []
        for delivery in deliveries:
            partition, event = delivery.partition, delivery.event
            if event is None:
                self.status.unreadable_messages += 1
                self.status.problem = f"message {delivery.bus_offset} of partition {partition} is not readable: {delivery.problem}"
                after = self._offsets.get(partition)
                # Without an offset before it the event is unknown; the agent's next event shows the gap, and strong reads do not need it.
                found = await self._store.read(partition, after, 1) if after is not None else []
                if not found:
                    continue
                event = found[0]
            self._offsets[partition] = event.offset
            readable.append(Delivery(partition, delivery.bus_offset, event))
        return readable

    async def _put_aside(self, tenant: str, agent: str, version: int, problem: Exception) -> None:
        await self.quarantine.put(tenant, agent, version, problem)
        self._aside.add((tenant, agent))
        self.status.quarantined_agents += 1
        self.status.problem = f"{tenant}/{agent}: {problem}"

    async def _refresh_quarantine(self) -> None:
        if time.monotonic() >= self._aside_until:
            self._aside = {(entry.tenant, entry.agent) for entry in await self.quarantine.list()}
            self._aside_until = time.monotonic() + QUARANTINE_REFRESH_S


async def _unless(stop: asyncio.Event, receiving: Coroutine[Any, Any, list[Delivery]]) -> list[Delivery]:
    """What is received, or nothing when the projector shall stop first."""
    receive = asyncio.create_task(receiving)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((receive, stopping), return_when=asyncio.FIRST_COMPLETED)
        return receive.result() if receive.done() else []
    finally:
        for task in (receive, stopping):
            task.cancel()
        await asyncio.gather(receive, stopping, return_exceptions=True)
