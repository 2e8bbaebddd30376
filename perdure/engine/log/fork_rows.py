"""Agents that go on from another one's version: what a store of the log keeps of them, and what it promises.

- **Shared, not copied.** The versions 1 … v of a fork are events of its past, as they stand: their names, keys and chain hashes are those of the
  agents that wrote them. Its own begin at v + 1, and its chain goes on from the hash at v.
- **One owner each.** A fork's row names the agent whose *own* event v is. So of agents in a line the versions of later ones follow those of earlier
  ones without a gap, and whoever keeps an agent's events in reach asks only for forks that begin right at them.
- **From birth.** A row is a fork or none when it is made, and stays so: what is remembered of an agent is never wrong about its past.
- **Kept.** An agent's floor does not rise above a version that a fork begins from, until that fork's own floor has. The row of a fork and a floor
  that would be in its way are decided one after the other.
- **An end of its own.** A fork's own floor begins behind its first own event; from then on nothing of its past is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from perdure.engine.log.floor_rows import NO_FLOOR, Floor
from perdure.engine.log.records import AgentRecord, EventFilter, Parent, Past
from perdure.errors import Conflict, LimitExceeded
from perdure.limits import FORK_DEPTH_MAX, ID_CLOCK_MARGIN_S

__all__ = [
    "NOTHING_SHARED",
    "ForkRows",
    "begins_at",
    "check_depth",
    "floor_of_line",
    "has_own_floor",
    "ids_known_before_ms",
    "line",
    "line_from",
    "needed_by_a_fork",
    "owner_of",
    "pieces",
    "shared_beginning",
]

_PATIENCE_MS = 2_000
"""How far an event's id may be ahead of its time besides the margin: what a store allows a writer's clock."""


NOTHING_SHARED: Final = Parent("", 0, -1, 0, 0, 0, bytes(32))
"""Of a fork from version 0."""


class ForkRows(Protocol):
    """The part of `LogStore` that makes forks. All methods may raise `Unavailable`."""

    async def create_fork(self, record: AgentRecord, parent: AgentRecord, version: int) -> AgentRecord:
        """Insert a row (keys 0: the store gives them) of the parent's tenant that goes on from the parent's version, under the epoch of that
        event; the row that then stands: one that was there already stays as it is.

        With nothing done raises VersionNotFound, Compacted (the event was removed), LimitExceeded (forks of forks too deep)."""
        ...

    async def load_forks(self, records: Sequence[AgentRecord]) -> list[AgentRecord]:
        """As `create_agents`, of forks that come from elsewhere: parents and past are known by their names, and are there."""
        ...

    async def list_forks(self, agent: AgentRecord, *, after: str = "", limit: int = 100) -> list[AgentRecord]:
        """A page of the agents that were forked from this one, in order of their ids, after the id `after`."""
        ...

    async def first_forked(self, agent: AgentRecord) -> int | None:
        """The lowest version of the agent's own that a fork begins from and still needs; None where there is none."""
        ...


def pieces(agent: AgentRecord, where: EventFilter, *, descending: bool = False) -> list[tuple[AgentRecord, EventFilter]]:
    """Whose own events, filtered how, are those that the filter wants of an agent, in their order."""
    found = []
    for record, first, last in line(agent):
        since = max(where.from_version, first)
        until = min((end for end in (where.to_version, last) if end is not None), default=None)
        if until is None or since <= until:
            found.append((record, msgspec.structs.replace(where, from_version=since, to_version=until)))
    return found[::-1] if descending else found


def line(agent: AgentRecord) -> Iterator[tuple[AgentRecord, int, int | None]]:
    """(agent, first, last own version that counts), oldest first. The last is the agent itself, without an end."""
    first = 1
    for past in reversed(agent.past):
        yield _alone(agent, past), first, past.version
        first = past.version + 1
    yield agent, first, None


def _alone(agent: AgentRecord, past: Past) -> AgentRecord:
    """One of the past, as a row that has none: enough to read its own events by."""
    return msgspec.structs.replace(
        agent, agent=past.agent, agent_key=past.agent_key, partition=past.partition, data_key=b"", parent=None, past=()
    )


def owner_of(agent: AgentRecord, version: int) -> AgentRecord:
    """Of an agent's line the one whose own event this version is."""
    return next(record for record, _, last in line(agent) if last is None or version <= last)


def begins_at(agent: AgentRecord) -> int:
    """The version that an agent's own events follow; 0 but for forks."""
    return agent.parent.version if agent.parent is not None else 0


def line_from(parent: AgentRecord, version: int) -> tuple[Past, ...]:
    """The past of a fork from this version: whose own event it is, and what comes before that. Empty for version 0."""
    own = Past(parent.agent, parent.agent_key, parent.partition, version)
    line = [own, *parent.past]
    while len(line) > 1 and version <= line[1].version:
        del line[0]
    return (msgspec.structs.replace(line[0], version=version), *line[1:]) if version else ()


def check_depth(parent: AgentRecord, past: Sequence[Past]) -> None:
    """Raise LimitExceeded for a line that is too long."""
    if len(past) > FORK_DEPTH_MAX:
        raise LimitExceeded(
            f"agent {parent.agent!r} is a fork of a fork {len(parent.past)} times over, the limit is {FORK_DEPTH_MAX}",
            hint="replay it into a new agent from a snapshot: `perdure restore AGENT --into fork`",
            tenant=parent.tenant,
            agent=parent.agent,
        )


def floor_of_line(agent: AgentRecord, floors: Mapping[int, Floor]) -> Floor:
    """Where an agent's events begin, by the floors of all in its line: an agent's own hides what is before it, else its past's is its own."""
    for agent_key in (agent.agent_key, *(past.agent_key for past in agent.past)):
        if agent_key in floors:
            return floors[agent_key]
    return NO_FLOOR


def has_own_floor(agent: AgentRecord, floor: Floor) -> bool:
    """Whether it is the agent's own, not one of its past."""
    return floor.version > begins_at(agent) + 1


def ids_known_before_ms(agent: AgentRecord) -> int:
    """The unix milliseconds from which on a UUIDv7 cannot be the id of an event of the agent's past; 0 where it has none."""
    if agent.parent is None or not agent.past:
        return 0
    return agent.parent.time_us // 1000 + int(ID_CLOCK_MARGIN_S * 1000) + _PATIENCE_MS


def needed_by_a_fork(agent: AgentRecord, version: int, forked: int) -> Conflict:
    """The error of a floor that would take a fork's past away."""
    return Conflict(
        f"a fork begins from version {forked} of agent {agent.agent!r} and needs its events",
        hint=f"keep them from version {forked} on, or compact the fork beyond its own first event before",
        tenant=agent.tenant,
        agent=agent.agent,
        version=version,
    )


def shared_beginning(agent: AgentRecord, version: int) -> Conflict:
    """The error of a floor of a fork that is not behind its first own event."""
    return Conflict(
        f"the versions of agent {agent.agent!r} up to {begins_at(agent)} are those of its past, they are not its own to remove",
        tenant=agent.tenant,
        agent=agent.agent,
        version=version,
    )
