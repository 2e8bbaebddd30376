"""What follows from a state of the past: a new agent that begins with it, or an event that leads its agent back. Nothing is rewritten."""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

from perdure.engine.changes import Change
from perdure.engine.diff import diff
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.fold import apply
from perdure.engine.log.expected import NO_STREAM
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter
from perdure.engine.replay import Folded, fold_log
from perdure.errors import AlreadyExists, Compacted, Conflict, IntegrityError
from perdure.projections.fill import Base
from perdure.snapshots.holds import keep_version

__all__ = ["FORKED", "ROLLED_BACK", "Origin", "Undertaken", "fork", "rollback"]

FORKED: Final = "forked"
"""Type of the first own event of an agent that was made from another one: it sets the whole state, or shares the history and has no changes."""
ROLLED_BACK: Final = "rolled_back"
"""Type of the event that leads an agent back to an earlier state."""
ROLLBACK_ATTEMPTS_MAX: Final = 5


class Origin(NamedTuple):
    """A verified state of an agent. snapshot: that it comes from, None where the log alone gave it."""

    agent: AgentRecord
    folded: Folded
    snapshot: UUID | None = None


class Undertaken(NamedTuple):
    """What was appended: to which agent, and the version of the event. changes: that lead there."""

    agent: str
    version: int
    changes: tuple[Change, ...]


async def fork(log: EventLog, origin: Origin, new_agent: str, *, actor: str = "", reason: str = "") -> Undertaken:
    """Make a new agent of the same tenant whose first event sets the whole state. The version that it was made from stays within reach.

    Raises AlreadyExists, LimitExceeded.
    """
    source, target = origin.agent, AgentName(origin.agent.tenant, new_agent)
    changes = diff({}, origin.folded.document) or (Change("set", (), {}),)
    event = Event(
        FORKED,
        changes=changes,
        data={"from": _facts(origin), "reason": reason},
        actor=actor,
        causation_id=await _cause(log, origin),
    )
    try:
        done = await log.append_events(target, [event], expected=NO_STREAM)
    except Conflict as problem:
        message = f"there is an agent {new_agent!r} already"
        raise AlreadyExists(message, hint="choose another name", tenant=target.tenant, agent=new_agent) from problem
    await keep_version(log.store, source, origin.folded.version, f"fork {new_agent}")
    record, _ = await log.vault.obtain(target)
    await log.store.describe_agent(record, type=source.type, labels=source.labels)
    log.vault.forget(target)
    return Undertaken(new_agent, done.version, changes)


async def rollback(
    log: EventLog, origin: Origin, base: Base | None = None, *, actor: str = "", reason: str = "", epoch: int | None = None
) -> Undertaken:
    """Append the event whose changes lead from the newest state back to this one. Raises Conflict, Fenced, LimitExceeded."""
    name = AgentName(origin.agent.tenant, origin.agent.agent)
    target, wanted = origin.folded.document, digest(origin.folded.document)
    cause = await _cause(log, origin)
    for _ in range(ROLLBACK_ATTEMPTS_MAX):
        now = await _now(log, origin.agent, base)
        changes = diff(now.document, target)
        after, _warnings = apply(now.document, changes)
        if digest(after) != wanted:
            raise IntegrityError("the changes do not lead back to the state", tenant=name.tenant, agent=name.agent, version=now.version)
        data = {"to": _facts(origin), "reason": reason}
        event = Event(ROLLED_BACK, changes=changes, data=data, actor=actor, causation_id=cause)
        try:
            done = await log.append_events(name, [event], expected=now.version, epoch=epoch)
        except Conflict as problem:
            if type(problem) is not Conflict:
                raise
            continue
        return Undertaken(name.agent, done.version, changes)
    raise Conflict("others change this agent all the time", tenant=name.tenant, agent=name.agent)


async def _now(log: EventLog, agent: AgentRecord, base: Base | None) -> Folded:
    start = await base(agent, None) if base else None
    return await fold_log(log.store, log.vault, agent, start=start)


async def _cause(log: EventLog, origin: Origin) -> UUID | None:
    """The id of the event that led to the state, where the log still has it."""
    version = origin.folded.version
    try:
        events = await log.store.read_agent(origin.agent, EventFilter(from_version=version, to_version=version), 1)
    except Compacted:
        return None
    return events[0].id if events else None


def _facts(origin: Origin) -> dict[str, str | int | None]:
    folded = origin.folded
    return {
        "agent": origin.agent.agent,
        "version": folded.version,
        "chain": folded.chain.hex(),
        "snapshot": str(origin.snapshot) if origin.snapshot else None,
    }
