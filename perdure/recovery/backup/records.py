"""Events and the rest, as a backup's objects hold them."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.records import AgentRecord, SealedEvent

__all__ = ["BlobEntry", "DocumentEntry", "FloorEntry", "KeyEntry", "StoredEvent"]


class StoredEvent(NamedTuple):
    """A sealed event without the log's interned keys; the partition is its segment's."""

    tenant: str
    agent: str
    offset: int
    version: int
    epoch: int
    id: UUID
    type: str
    time_us: int
    causation_id: UUID | None
    correlation_id: str | None
    trace_id: str | None
    project: str | None
    module: str | None
    chain: bytes
    payload: bytes

    def sealed(self, agent: AgentRecord) -> SealedEvent:
        """The event under the keys of the log that it is put into."""
        return SealedEvent(
            self.tenant,
            self.agent,
            agent.tenant_key,
            agent.agent_key,
            agent.partition,
            self.offset,
            self.version,
            self.epoch,
            self.id,
            self.type,
            self.time_us,
            self.causation_id,
            self.correlation_id,
            self.trace_id,
            self.project,
            self.module,
            self.chain,
            self.payload,
        )

    @classmethod
    def of(cls, event: SealedEvent) -> StoredEvent:
        """The other way."""
        return cls(
            event.tenant,
            event.agent,
            event.offset,
            event.version,
            event.epoch,
            event.id,
            event.type,
            event.time_us,
            event.causation_id,
            event.correlation_id,
            event.trace_id,
            event.project,
            event.module,
            event.chain,
            event.payload,
        )


class KeyEntry(NamedTuple):
    """An agent's wrapped data key."""

    tenant: str
    agent: str
    data_key: bytes


class DocumentEntry(NamedTuple):
    """A control document."""

    scope: str
    name: str
    value: bytes


class BlobEntry(NamedTuple):
    """A large value; digest: SHA-256 of its sealed bytes."""

    tenant: str
    name: bytes
    digest: bytes


class FloorEntry(NamedTuple):
    """Where an agent's events begin, and the ids of those before."""

    tenant: str
    agent: str
    floor: Floor
    removed: list[tuple[UUID, int]]
