"""One end of a transfer: an engine's parts, as this room may see them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from perdure.engine.log.contract import LogStore
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.vault import Vault
from perdure.errors import AgentNotFound
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base
from perdure.projections.reader import StateReader
from perdure.snapshots.shelf import SnapshotShelf

__all__ = ["Side", "row_of"]


class Side(NamedTuple):
    """log, reader, cache: the engine's. shelf: of its snapshots, None where it has no store. address: what clients are told. settle: writes what
    waits of an agent on the fast path of this process."""

    log: EventLog
    reader: StateReader
    cache: StateCache
    shelf: SnapshotShelf | None
    address: str
    settle: Callable[[AgentName], Awaitable[None]]

    @property
    def store(self) -> LogStore:
        """The log's store."""
        return self.log.store

    @property
    def vault(self) -> Vault:
        """Rows and keys."""
        return self.log.vault

    @property
    def base(self) -> Base | None:
        """What is folded on from."""
        return self.shelf.loader.base if self.shelf is not None else None


async def row_of(side: Side, name: AgentName) -> AgentRecord:
    """The agent's row as it is now. Raises AgentNotFound."""
    (record,) = await side.store.agents([name])
    if record is None:
        raise AgentNotFound(f"there is no agent {name.agent!r} of tenant {name.tenant!r}", tenant=name.tenant, agent=name.agent)
    return record
