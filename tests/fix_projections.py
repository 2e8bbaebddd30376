"""A log, a bus and a cache as projections need them: SQLite in a folder, both others in process, and a hand-driven relay."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.engine.bus.memory import MemoryBus
from perdure.engine.changes import Change, append, set_value
from perdure.engine.event import Event
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, SealedEvent
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.vault import Vault
from perdure.projections.contract import StateCache
from perdure.projections.memory import MemoryCache
from perdure.projections.projector import Projector
from perdure.projections.reader import StateReader
from perdure.security.dictionaries import DictionaryBook
from perdure.security.keys import EnvironmentKeyProvider
from perdure.security.ring import KeyRing

PARTITIONS = 2


class World:
    """Everything of one small installation. `publish` does the relay's work when the test wants it."""

    def __init__(self, store: SqliteStore, cache: StateCache) -> None:
        self.store = store
        self.cache = cache
        self.bus = MemoryBus()
        self.vault = self.new_vault()
        self.log = EventLog(store, self.vault)
        self.published: dict[int, int] = dict.fromkeys(range(PARTITIONS), 0)
        self.tamper: Callable[[SealedEvent], SealedEvent] = lambda event: event

    def new_vault(self) -> Vault:
        """A vault as another process would have it."""
        keys = EnvironmentKeyProvider("KEYS", {"KEYS": base64.b64encode(bytes(range(32))).decode()})
        ring = KeyRing(keys, self.store)
        return Vault(self.store, ring, DictionaryBook(ring, self.store))

    def projector(self) -> Projector:
        return Projector(self.store, self.bus, self.cache, self.vault)

    def reader(self) -> StateReader:
        return StateReader(self.store, self.cache, self.vault)

    async def add(self, agent: str, *changes: Change, tenant: str = "t") -> int:
        """Append one event; its version."""
        return (await self.log.append_event(AgentName(tenant, agent), Event("noted", changes=changes))).version

    async def talk(self, agent: str, count: int, *, tenant: str = "t") -> None:
        """Append so many events that each add a message and set the count."""
        events = [
            Event("said", changes=(append("/messages", {"role": "user", "content": f"{agent} {i}"}), set_value("/count", i)))
            for i in range(count)
        ]
        await self.log.append_events(AgentName(tenant, agent), events)

    async def publish(self) -> int:
        """Publish what the log holds and the bus does not; how many events."""
        sent = 0
        for partition in self.published:
            while events := await self.store.read(partition, self.published[partition], 500):
                await self.bus.publish(partition, [self.tamper(event) for event in events])
                self.published[partition] = events[-1].offset
                sent += len(events)
        return sent

    async def close(self) -> None:
        await self.bus.close()
        await self.log.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Any]:
    """A `World` whose cache is in process."""
    world = World(await SqliteStore.open(tmp_path / "log", partitions=PARTITIONS), MemoryCache())
    await world.bus.ensure(PARTITIONS)
    yield world
    await world.close()
