"""The engine: one open log with its bus, its cache and its keys, and the managers that work on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import AsyncExitStack
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from perdure import config
from perdure.client.agent import Agent
from perdure.client.health import HealthDesk
from perdure.client.importer import CONCURRENCY_DEFAULT, ImportReport, import_conversations
from perdure.client.keys import Keys
from perdure.client.log import Log
from perdure.client.opening import open_bus, open_cache, open_log, open_objects
from perdure.client.parts import Parts
from perdure.client.projections import CurrentProjections
from perdure.client.quarantine import QuarantineDesk
from perdure.client.training import Trained, Trainer, train
from perdure.engine.bus.contract import Bus
from perdure.engine.bus.memory import MemoryBus
from perdure.engine.importing.contract import BrokenRecord, Conversation
from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName, Position
from perdure.engine.relay_partition import SCOPE as RELAY_SCOPE
from perdure.engine.relay_partition import decode_kept
from perdure.engine.vault import Vault
from perdure.errors import InvalidInput
from perdure.limits import PARTITIONS_DEFAULT
from perdure.projections.contract import StateCache
from perdure.projections.lag import PartitionLag, log_lag
from perdure.projections.memory import MemoryCache
from perdure.recovery.backup.restore import check_whole
from perdure.security.dictionaries import DictionaryBook
from perdure.security.keys import open_provider
from perdure.security.ring import KeyRing
from perdure.snapshots.store.contract import SnapshotStore

if TYPE_CHECKING:
    from perdure.client.approvals import Approvals
    from perdure.client.backups import Backups
    from perdure.client.migrations import Migrations
    from perdure.client.rebuilds import Rebuilds
    from perdure.client.recovery import Recovery
    from perdure.client.state_cache import StateCacheManager
    from perdure.client.transfers import Transfers
    from perdure.client.upkeep import Upkeep
    from perdure.client.verify import VerifyReport
    from perdure.client.verify_order import VerifyOrder
    from perdure.projections.projector import Projector
    from perdure.snapshots.cadence import Cadence

__all__ = ["Engine", "Opening", "open_engine"]

TENANT_DEFAULT = "default"


class Engine(Parts):
    """Open it with `perdure.open()`. log: events. states: reads of states. directory: agents. projections: yours. quarantine: what stands still.
    snapshots: of agents' states, where a store is configured. upkeep: of snapshots and logs: retention, compaction, sweep, scrub."""

    def __init__(self, settings: config.Settings, log: Log, bus: Bus, cache: StateCache, objects: SnapshotStore | None = None) -> None:
        super().__init__(settings, log, bus, cache, objects)
        self.schemas = log.schemas
        self.upcasters = log.upcasters
        self.fidelity = log.fidelity
        self.health = HealthDesk(self.states, log)
        self.projections = CurrentProjections(log.store, log.vault, log.upcasters)
        self.quarantine = QuarantineDesk(log.store, cache, log.vault, base=self.snapshots.base)
        self.keys = Keys(log.store, log.vault.ring)

    def __repr__(self) -> str:
        return f"<perdure engine on {config.masked(str(self.settings.log.value))}>"

    # What few processes need is imported where it is first asked for: a command that appends one event shall not load all of recovery.
    @cached_property
    def upkeep(self) -> Upkeep:
        """Retention, compaction, sweep and scrub."""
        from perdure.client.upkeep import Upkeep

        return Upkeep(self.log, self.snapshots)

    @cached_property
    def recovery(self) -> Recovery:
        """Nodes, failures, and what is done about them."""
        from perdure.client.recovery import Recovery

        return Recovery(self)

    @cached_property
    def rebuilds(self) -> Rebuilds:
        """Rebuilds of the cache."""
        from perdure.client.rebuilds import Rebuilds

        return Rebuilds(self)

    @cached_property
    def migrations(self) -> Migrations:
        """Moving agents between nodes."""
        from perdure.client.migrations import Migrations

        return Migrations(self)

    @cached_property
    def transfers(self) -> Transfers:
        """Moving agents to other engines."""
        from perdure.client.transfers import Transfers

        return Transfers(self)

    @cached_property
    def state_cache(self) -> StateCacheManager:
        """The cache of current states: statistics, warm, invalidate, sync."""
        from perdure.client.state_cache import StateCacheManager

        return StateCacheManager(self)

    @cached_property
    def approvals(self) -> Approvals:
        """Safeguards of operations that take something away, and the audit trail."""
        from perdure.client.approvals import Approvals

        return Approvals(self.log, self.states.reader)

    @cached_property
    def backups(self) -> Backups:
        """Backups of the whole log."""
        from perdure.client.backups import Backups

        return Backups(self)

    def agent(self, agent_id: str, *, tenant: str = TENANT_DEFAULT, type: str = "") -> Agent:
        """A handle on one agent; nothing is looked up or made. Raises InvalidInput, LimitExceeded for what is no name.

        type: that a new agent gets with its first event (schemas and fidelity go by it); an agent of another type then refuses the write.
        """
        if not isinstance(agent_id, str) or not isinstance(tenant, str):
            raise InvalidInput(f"tenant {tenant!r:.80} and agent {agent_id!r:.80} are not both texts")
        name = AgentName(tenant, agent_id)
        check_names(name)
        return Agent(self, name, type)

    async def tenants(self) -> list[str]:
        """Every tenant that has agents."""
        return await self.log.store.tenants()

    async def import_conversations(
        self,
        records: Iterable[Conversation | BrokenRecord],
        *,
        tenant: str | None = None,
        concurrency: int = CONCURRENCY_DEFAULT,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImportReport:
        """Append what `read_conversations` yields. tenant: for all of them; None: each record's own. See `perdure.client.importer`."""
        return await import_conversations(
            self.log, self.directory, records, tenant=tenant, concurrency=concurrency, skip_bad=skip_bad, progress=progress
        )

    async def train(self, tenant: str = TENANT_DEFAULT) -> Trained:
        """Learn a compression dictionary from the tenant's own events; later events are written with it."""
        return await train(self.log.vault, tenant)

    async def run(
        self,
        *,
        relay: bool = True,
        projector: bool = True,
        snapshotter: bool | None = None,
        cadence: Cadence | None = None,
        supervisor: bool = False,
        backup: Callable[[asyncio.Event], Coroutine[Any, Any, None]] | None = None,
        until_drained: bool = False,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Publish the log to the bus, project it into the cache and make snapshots of agents that are due, until `stop` is set, or once until
        all have caught up. snapshotter: None for where a store is configured and both others run. cadence: when an agent is due. supervisor:
        watch over nodes too. backup(stop): something that takes backups beside it, see `Backups.keep_taking`."""
        from perdure.engine.relay import Relay
        from perdure.projections.projector import Projector

        stop = stop or asyncio.Event()
        if snapshotter is None:
            snapshotter = relay and projector and self.snapshots.base is not None
        if relay or projector:
            await self.bus.ensure(self.log.store.partitions)
        async with asyncio.TaskGroup() as group:
            if snapshotter:
                making = self.upkeep.snapshotter(cadence)
                group.create_task(making.run(stop))
            if supervisor:
                group.create_task(self.recovery.watch(stop))
            if backup is not None:
                group.create_task(backup(stop))
            if relay:
                publishing = Relay(self.log.store, self.bus)
                running = group.create_task(publishing.run(stop))
                if until_drained:
                    await publishing.drain()
            if projector:
                projecting = Projector(self.log.store, self.bus, self.cache, self.log.vault, base=self.snapshots.base)
                if until_drained:
                    await self._project_all(projecting)
                else:
                    group.create_task(projecting.run(stop))
            if until_drained:
                if snapshotter:
                    await making.drain()
                stop.set()
                if relay:
                    await running

    async def _project_all(self, projector: Projector) -> None:
        try:
            await projector.drain()
        finally:
            await projector.close()

    async def lags(self) -> dict[str, list[PartitionLag]]:
        """How far the relay is behind the log, per partition, in events and seconds."""
        published: dict[int, Position] = {}
        for document in await self.log.store.list_documents(RELAY_SCOPE):
            partition, offset = int(document.name), decode_kept(document.value).offset
            newest = await self.log.store.read(partition, offset - 1, 1, sparse=True) if offset else []
            published[partition] = Position(offset, newest[0].time_us if newest else 0)
        return {"relay": await log_lag(self.log.store, published)}

    async def verify(self, progress: Callable[[int, int], None] | None = None, order: VerifyOrder | None = None) -> VerifyReport:
        """Check every chain, seal and offset; with a Kafka topic and a Redis cache also that they agree with the log; with a store, that every
        snapshot is whole and gives the log's state. order: only a part of it, slower, gone on with. progress(events read, of about so many)."""
        from perdure.client.verify import Verification

        verification = Verification(
            self.log,
            bus=None if isinstance(self.bus, MemoryBus) else self.bus,
            cache=None if isinstance(self.cache, MemoryCache) else self.cache,
            base=self.snapshots.base,
            shelf=None if self.snapshots.base is None else self.snapshots.shelf,
            order=order,
            progress=progress,
        )
        return await verification.run()

    async def close(self) -> None:
        """Write what is queued and leave every server; what fails on the way is raised after all others were left too."""
        async with AsyncExitStack() as stack:
            for each in (self.snapshots, self.cache, self.bus, self.log):  # the last one first
                stack.push_async_callback(each.close)


class Opening:
    """An engine that is being opened: `async with` it, or `await` it and close the engine yourself."""

    def __init__(self, settings: config.Settings, *, partitions: int = PARTITIONS_DEFAULT, create: bool = True) -> None:
        self._settings = settings
        self._partitions = partitions
        self._create = create
        self._engine: Engine | None = None

    def __await__(self) -> Generator[Any, None, Engine]:
        return open_engine(self._settings, partitions=self._partitions, create=self._create).__await__()

    async def __aenter__(self) -> Engine:
        self._engine = await self
        return self._engine

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if self._engine is not None:
            await self._engine.close()

    def __enter__(self) -> NoReturn:
        raise TypeError("write `async with perdure.open()`, or use perdure.sync.open() in code without asyncio")

    def __exit__(self, *problem: object) -> None:
        """Only here so that Python asks `__enter__`, which says what to write."""

    def __repr__(self) -> str:
        return f"<perdure.open of {config.masked(str(self._settings.log.value))}: async with it, or await it>"


async def open_engine(
    settings: config.Settings, *, partitions: int = PARTITIONS_DEFAULT, create: bool = True, whole: bool = True
) -> Engine:
    """Open the log, the bus, the cache and the keys that the settings name. whole: not a log that is being restored or promoted."""
    bus = open_bus(str(settings.bus.value))
    cache = open_cache(str(settings.cache.value))
    provider = open_provider(str(settings.keys.value))
    store = await open_log(settings, partitions, create=create)
    try:
        if whole:
            await check_whole(store)
    except BaseException:
        await store.close()
        raise
    ring = KeyRing(provider, store)
    log = Log(store, Vault(store, ring, DictionaryBook(ring, store)))
    log.trainer = Trainer(log.vault) if settings.training.value == "auto" else None
    return Engine(settings, log, bus, cache, open_objects(settings))
