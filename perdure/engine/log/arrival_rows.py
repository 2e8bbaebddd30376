"""Putting an agent's history into a log that others are written to: what a move from another engine needs of a store.

- **Versions, times, ids, epochs and chain hashes stay; the place is this log's own.** Events get the next offsets of the agent's partition
  here, under its lock, so offsets are dense whoever else appends. Within a partition times then go back where such events stand; within an
  agent they never do.
- **Only into a row that is marked.** Every call names the owner that must stand in the agents' rows (`perdure.engine.log.marks`), and looks
  in the same transaction that writes: who was overtaken, by an abort or by another coordinator, writes nothing.
- **In order.** An agent's events follow what it has here, without a hole; what does not is refused, and nothing of the call is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from perdure.engine.log.records import AgentRecord, SealedEvent
from perdure.errors import Conflict, IntegrityError

__all__ = ["ARRIVALS", "HAS_ARRIVALS", "ArrivalRows", "Room", "Settling", "Swap", "check_runs", "other_owner", "placed"]

ARRIVALS: Final = "transfers/in"
"""Scope of the documents about agents that came, or are coming, from other logs; one an agent."""
HAS_ARRIVALS: Final = f"SELECT 1 FROM documents WHERE scope = '{ARRIVALS}' LIMIT 1"  # noqa: S608 - a constant
"""Valid in SQLite and in Postgres. Where it finds nothing, times never go back within a partition."""


class Settling(NamedTuple):
    """What an agent's row becomes with its last events: the move's commit."""

    owner: str
    epoch: int


class Room(NamedTuple):
    """bytes: that the log takes where it is kept. free_bytes: that are left there, None where the store cannot tell."""

    bytes: int
    free_bytes: int | None


class Swap(NamedTuple):
    """An owner that shall be another one."""

    agent: AgentRecord
    before: str
    owner: str


class ArrivalRows(Protocol):
    """The part of `LogStore` that takes agents in. All methods may raise `Unavailable`."""

    async def clock_us(self) -> int:
        """The store's clock, unix microseconds."""
        ...

    async def room(self) -> Room:
        """How large the log is, and may become."""
        ...

    async def receive_events(
        self, agents: Sequence[AgentRecord], events: Sequence[SealedEvent], *, owner: str, settle: Settling | None = None
    ) -> None:
        """Put in events of these agents, all of one partition: each agent's in order of version, after what it has here, or after its floor. Whose
        they are is told by tenant and agent; the keys that they had where they come from are replaced by those of the rows, and so is the offset.

        owner: that all of the rows must have. settle: the row's owner and epoch from then on, in the same step; None: the owner stays, and the
        epoch is that of the newest event. Raises Conflict (another owner) and IntegrityError (they do not follow), with nothing written."""
        ...

    async def swap_owners(self, swaps: Sequence[Swap]) -> list[bool]:
        """Give rows of different agents another owner where they still have the one before; whether each had."""
        ...

    async def swap_owner(self, agent: AgentRecord, before: str, owner: str) -> bool:
        """As `swap_owners`, of one agent."""
        ...


def placed(agents: Sequence[AgentRecord], events: Sequence[SealedEvent], offset: int) -> list[SealedEvent]:
    """The events as rows of this log: of these agents, behind an offset of their partition."""
    keys = {
        (agent.tenant, agent.agent): {"tenant_key": agent.tenant_key, "agent_key": agent.agent_key, "partition": agent.partition}
        for agent in agents
    }
    return [replace(event, offset=offset + number, **keys[event.tenant, event.agent]) for number, event in enumerate(events, 1)]


def check_runs(events: Sequence[SealedEvent], newest: Mapping[int, int]) -> None:
    """Raise IntegrityError unless each agent's events follow the newest version that it has (by agent key)."""
    stands = dict(newest)
    for event in events:
        version = stands.get(event.agent_key, 0)
        if event.version != version + 1:
            raise IntegrityError(
                f"version {event.version} does not follow version {version}", tenant=event.tenant, agent=event.agent, version=event.version
            )
        stands[event.agent_key] = event.version


def other_owner(owner: str) -> Conflict:
    """The rows are not, or no longer, what the caller takes them for."""
    return Conflict(f"an agent is not marked {owner!r} any more", hint="the transfer was broken off, or somebody else has finished it")
