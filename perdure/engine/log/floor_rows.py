"""Where an agent's events begin: what a store of the log keeps of it, and what it promises once events were removed.

- **A floor is committed before anything goes.** From then on the versions below it count as removed, whether their rows are gone yet or not;
  `remove_events` takes the rows away, a bounded number at a time, and may be repeated or left off at any moment.
- **No hole.** All of an agent's versions from its floor on are there; a floor only rises, and never above the agent's newest version.
- **Anchored.** The floor keeps the chain hash, epoch and time of the version before it, which were the log's own when it was committed, and a
  good snapshot of that version is registered: `delete_snapshots` does not take it. So are at least three, and all events after the oldest of
  the newest three are there.
- **Not again.** The ids of removed events stay known: appending one of them again is answered as if it were there.
- **A hole in the offsets is told.** Where events of a partition were removed, `read` of offsets at or below them raises `Compacted` naming the
  first offset from which on all are there, but for readers that say that they take what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from perdure.engine.log.records import AgentRecord, EventFilter
from perdure.errors import Compacted, Conflict, IntegrityError

__all__ = ["NO_FLOOR", "Floor", "FloorRows", "Written", "broken_anchor", "check_floor", "compacted", "compacted_offsets", "no_anchor"]


class Floor(NamedTuple):
    """version: the first that is there. chain, epoch, time_us: of the one before it. offset: of that one in its partition."""

    version: int
    chain: bytes
    epoch: int
    time_us: int
    offset: int


NO_FLOOR: Final = Floor(1, bytes(32), 0, 0, 0)
"""Nothing was removed."""


class Written(NamedTuple):
    """What an agent wrote in a range of offsets: its newest version there, how many events, and the bytes of their payloads."""

    tenant: str
    agent: str
    agent_key: int
    version: int
    events: int
    bytes: int


class FloorRows(Protocol):
    """The part of `LogStore` that removes events, and that tells how much was written. All methods may raise `Unavailable`."""

    async def written(self, partition: int, after: int, limit: int) -> list[Written]:
        """Who wrote in the offsets after+1 … after+limit of a partition, and how much of it is there. No payload is read."""
        ...

    async def floors(self, agents: Sequence[AgentRecord]) -> list[Floor]:
        """Where these agents' events begin, in order; of a fork without a floor of its own, where its past's do."""
        ...

    async def raise_floor(self, agent: AgentRecord, version: int, chain: bytes) -> Floor:
        """Let the agent's events begin at `version`; the floor that then stands, which is a higher one where somebody else was ahead.

        chain: what the caller holds to be the chain hash of version - 1. With nothing done raises IntegrityError when the log's is another,
        VersionNotFound when the agent has no event `version`, and Conflict when the snapshots are not there that must be, when a fork needs
        what would go, and for a fork's floor that is not behind its own first event."""
        ...

    async def remove_events(self, agent: AgentRecord, limit: int) -> int:
        """Take away at most `limit` events below the agent's floor, oldest first; how many. 0: none is left."""
        ...

    async def partition_floors(self) -> dict[int, int]:
        """Per partition, the newest offset that was removed (0: none). All offsets after it are there."""
        ...


def check_floor(agent: AgentRecord, where: EventFilter, floor: Floor) -> None:
    """Raise Compacted when a filter asks for versions that were removed."""
    if where.from_version < floor.version and (where.to_version is None or where.to_version >= where.from_version):
        raise compacted(agent, where.from_version, floor)


def compacted(agent: AgentRecord, version: int, floor: Floor) -> Compacted:
    """The error of a read that begins below the floor."""
    return Compacted(
        f"the events of agent {agent.agent!r} before version {floor.version} were removed",
        hint=f"read from version {floor.version} on, or restore a snapshot that is older",
        tenant=agent.tenant,
        agent=agent.agent,
        version=version,
        first_version=floor.version,
    )


def compacted_offsets(partition: int, after: int, floor: int) -> Compacted:
    """The error of a reader of a partition that comes too late."""
    return Compacted(
        f"events of partition {partition} after offset {after} were removed, up to offset {floor}",
        hint=f"begin after offset {floor}, with the agents' states as they are there",
        partition=partition,
        first_offset=floor + 1,
    )


def no_anchor(agent: AgentRecord, version: int) -> Conflict:
    """Snapshots that the floor would need are gone, or were found damaged."""
    return Conflict(
        f"the snapshots that would stand for the events before version {version} are not there",
        hint="make snapshots of the agent first",
        tenant=agent.tenant,
        agent=agent.agent,
        version=version,
    )


def broken_anchor(agent: AgentRecord, version: int) -> IntegrityError:
    """The log has another history than whoever wants to shorten it."""
    return IntegrityError(
        f"the chain hash at version {version} is not the snapshot's", hint="run `perdure verify`", tenant=agent.tenant, agent=agent.agent
    )
