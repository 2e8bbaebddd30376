"""Forks by reference: a new agent that goes on from another one's version, in constant time.

What always holds: the new agent's versions up to that one are the parent's events, by reference (`perdure.engine.log.fork_rows`); its own first
event, `forked`, says from where, who and why, and carries no state. Nothing of the parent changes. Row and event are two steps: whoever is
stopped between them leaves an agent with the right history and no event of its own, and the same call again goes on there.

Steps for fault tests: fork.row, fork.event.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.fork_rows import begins_at
from perdure.engine.log.log import EventLog
from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, SealedEvent, from_microseconds
from perdure.engine.log.versions import no_version
from perdure.engine.steps import reach
from perdure.errors import AlreadyExists, Compacted, Conflict, IntegrityError, KeyUnavailable
from perdure.snapshots.undertaken import FORKED

__all__ = ["FORKS_PAGE", "Fork", "Forked", "Origin", "fork", "list_forks", "origin_of"]

FORKS_PAGE: Final = 100


class Forked(msgspec.Struct, frozen=True):
    """A fork that was made: version, time: of `agent`, that were chosen. target, appended: the new agent, and the version of its `forked` event."""

    tenant: str
    agent: str
    version: int
    time: datetime | None
    target: str
    appended: int


class Fork(msgspec.Struct, frozen=True):
    """An agent that goes on from another one. version: of its parent. time, actor, reason: of its `forked` event; where that was removed, cannot be
    opened or is not there yet, only the time at which the agent was made is known."""

    agent: str
    version: int
    time: datetime
    actor: str = ""
    reason: str = ""


class Origin(msgspec.Struct, frozen=True):
    """What an agent goes on from. time: of that version, None for version 0."""

    agent: str
    version: int
    time: datetime | None


async def fork(log: EventLog, parent: AgentRecord, version: int | None, new_agent: str, *, actor: str = "", reason: str = "") -> Forked:
    """Make the agent; None: from the newest version. Raises VersionNotFound, Compacted (the event at that version was removed), AlreadyExists,
    LimitExceeded."""
    name = AgentName(parent.tenant, new_agent)
    check_names(name)
    cause = await _event(log, parent, version)
    version = cause.version if cause is not None else 0
    made = await log.vault.fork(parent, version, new_agent)
    stood = made.parent
    if stood is None or (stood.agent, stood.version) != (parent.agent, version):
        raise _taken(made)
    reach("fork.row")
    facts = {"agent": parent.agent, "version": version, "chain": stood.chain.hex(), "shared": True}
    event = Event(FORKED, data={"from": facts, "reason": reason}, actor=actor, causation_id=cause.id if cause is not None else None)
    try:
        # Straight into the log: the event changes nothing, so neither schemas nor the parent's state are asked.
        done = await log.append_new(name, event, expected=version)
    except Conflict as problem:
        raise _taken(made) from problem
    reach("fork.event")
    return Forked(parent.tenant, parent.agent, version, from_microseconds(stood.time_us) if version else None, new_agent, done.version)


async def _event(log: EventLog, parent: AgentRecord, version: int | None) -> SealedEvent | None:
    """The event that the fork goes on from; None for version 0."""
    if version is None:
        if own := await log.store.read_agent(parent, EventFilter(from_version=begins_at(parent) + 1), 1, descending=True):
            return own[0]
        version = begins_at(parent)
    if version == 0:
        return None
    events = await log.store.read_agent(parent, EventFilter(from_version=version, to_version=version), 1) if version > 0 else []
    if not events:
        (head,) = await log.store.heads([parent])
        raise no_version(parent, version, head.version)
    return events[0]


def _taken(standing: AgentRecord) -> AlreadyExists:
    return AlreadyExists(
        f"there is an agent {standing.agent!r} already", hint="choose another name", tenant=standing.tenant, agent=standing.agent
    )


async def list_forks(log: EventLog, agent: AgentRecord, *, after: str = "", limit: int = FORKS_PAGE) -> list[Fork]:
    """A page of the agents that were forked from this one, in order of their names."""
    return [await _described(log, child) for child in await log.store.list_forks(agent, after=after, limit=limit)]


async def _described(log: EventLog, child: AgentRecord) -> Fork:
    made = Fork(child.agent, begins_at(child), from_microseconds(child.created_us))
    event = await _first(log, child)
    if event is None or event.type != FORKED or not isinstance(event.data, dict):
        return made
    return msgspec.structs.replace(made, time=event.time, actor=event.actor, reason=str(event.data.get("reason", "")))


async def _first(log: EventLog, child: AgentRecord) -> RecordedEvent | None:
    """The first own event, where it can be had."""
    first = begins_at(child) + 1
    try:
        found = await log.vault.open_all(await log.store.read_agent(child, EventFilter(from_version=first, to_version=first), 1))
    except (Compacted, KeyUnavailable, IntegrityError):
        return None
    return found[0] if found else None


def origin_of(agent: AgentRecord) -> Origin | None:
    """What an agent goes on from; None where it began by itself."""
    parent = agent.parent
    if parent is None:
        return None
    return Origin(parent.agent, parent.version, from_microseconds(parent.time_us) if parent.version else None)
