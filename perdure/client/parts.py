"""What an open engine is made of: the parts that its managers work with, so that none of them needs the engine itself."""

from __future__ import annotations

from perdure import config
from perdure.client.directory import AgentDirectory
from perdure.client.log import Log
from perdure.client.snapshots import Snapshots
from perdure.client.states import States
from perdure.engine.bus.contract import Bus
from perdure.projections.contract import StateCache
from perdure.projections.reader import StateReader
from perdure.snapshots.store.contract import SnapshotStore

__all__ = ["Parts"]


class Parts:
    """The log and what is read, kept and found beside it. log: events. states: reads of states. directory: agents. snapshots: of agents' states,
    where a store is configured."""

    def __init__(self, settings: config.Settings, log: Log, bus: Bus, cache: StateCache, objects: SnapshotStore | None = None) -> None:
        self.settings = settings
        self.log = log
        self.bus = bus
        self.cache = cache
        self.snapshots = Snapshots(log, objects, learns=settings.training.value == "auto")
        reader = StateReader(log.store, cache, log.vault, base=self.snapshots.base)
        log.read_with(reader)
        self.states = States(reader, log)
        self.directory = AgentDirectory(log.vault, log.schemas)
