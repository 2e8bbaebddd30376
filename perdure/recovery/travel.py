"""Time travel: the state of an agent at a version or a moment, to look at, as a new agent, or as an event that leads back.

A fork shares its parent's history (`perdure.recovery.forks`); only from a version whose event was removed, and that a snapshot still has, it
begins with one event that sets the state.

A moment is resolved by the log's own times; of events at the same microsecond the last counts. The answer always names the version that was
chosen. Nothing of the past is rewritten, and no sink is told: a replay is a read.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from perdure.engine.digest import digest
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, rfc3339, to_microseconds
from perdure.engine.replay import Folded
from perdure.errors import Compacted, InvalidInput, VersionNotFound
from perdure.projections.fill import Base
from perdure.projections.reader import StateReader
from perdure.recovery import forks
from perdure.recovery.forks import Forked
from perdure.snapshots.undertaken import Origin, fork, rollback

__all__ = ["Arrived", "Into", "Traveller", "check_moment"]

Into = Literal["view", "fork", "rollback"]


class Arrived(msgspec.Struct, frozen=True):
    """Where a journey ended. version, time: that were chosen. target, appended: the agent and version of the event that was appended, if any."""

    tenant: str
    agent: str
    version: int
    time: datetime | None
    digest: str
    document: dict[str, Any]
    into: Into
    target: str = ""
    appended: int = 0


def check_moment(time: datetime) -> datetime:
    """The time, when a journey can go there. Raises InvalidInput: it has no zone, or is still to come."""
    if time.tzinfo is None:
        raise InvalidInput("the time has no zone", hint="give an aware datetime, e.g. in UTC")
    if time > datetime.now(UTC):
        raise InvalidInput(f"{rfc3339(time)} is still to come")
    return time


class Traveller:
    """Goes to the past of one log's agents."""

    def __init__(self, log: EventLog, reader: StateReader, base: Base | None) -> None:
        self._log = log
        self._reader = reader
        self._base = base

    async def _resolve(self, record: AgentRecord, version: int | None, time: datetime | None) -> int:
        """The version that is meant; whether there is such a one is found when it is read. Raises VersionNotFound (none yet at that time),
        InvalidInput."""
        if (version is None) == (time is None):
            raise InvalidInput("where to?", hint="name a version, or a time")
        if time is not None:
            found = await self._log.store.version_at(record, to_microseconds(check_moment(time)))
            if found == 0:
                message = f"agent {record.agent!r} had no event yet at {rfc3339(time)}"
                raise VersionNotFound(message, tenant=record.tenant, agent=record.agent)
            return found
        assert version is not None
        return version

    async def go(
        self,
        name: AgentName,
        *,
        version: int | None = None,
        time: datetime | None = None,
        into: Into = "view",
        new_agent: str | None = None,
        actor: str = "",
        reason: str = "",
        epoch: int | None = None,
    ) -> Arrived:
        """Go there. fork: `new_agent` begins with the state; rollback: an event leads the agent back (epoch: the ownership that is held).

        Raises AgentNotFound, VersionNotFound (none such, or none yet at that time), InvalidInput; AlreadyExists (the new agent is there),
        Conflict, Fenced. Nothing is appended then.
        """
        if (into == "fork") != (new_agent is not None):
            raise InvalidInput("a fork, and only a fork, has a new agent", hint="name the agent that is to be made")
        record = await self._log.vault.served(*name)
        chosen = await self._resolve(record, version, time)
        read = await self._reader.state_at_version(*name, chosen)
        target, appended = "", 0
        if new_agent is not None:
            made = await self._fork(record, chosen, new_agent, actor, reason)
            target, appended = made.target, made.appended
        elif into == "rollback":
            origin = Origin(record, await self._folded(record, read.document, chosen, read.epoch, read.time))
            done = await rollback(self._log, origin, self._base, actor=actor, reason=reason, epoch=epoch)
            target, appended = done.agent, done.version
        return Arrived(name.tenant, name.agent, chosen, read.time, digest(read.document).hex(), read.document, into, target, appended)

    async def fork(
        self,
        name: AgentName,
        new_agent: str,
        *,
        version: int | None = None,
        time: datetime | None = None,
        actor: str = "",
        reason: str = "",
    ) -> Forked:
        """Make a new agent that goes on from a version or a moment, the newest version where none is named; no state is read for it.

        Raises as `go`, and LimitExceeded (a fork of forks too deep).
        """
        record = await self._log.vault.served(*name)
        newest = version is None and time is None
        return await self._fork(record, None if newest else await self._resolve(record, version, time), new_agent, actor, reason)

    async def _fork(self, record: AgentRecord, version: int | None, new_agent: str, actor: str, reason: str) -> Forked:
        try:
            return await forks.fork(self._log, record, version, new_agent, actor=actor, reason=reason)
        except Compacted:
            if version is None:
                raise
            read = await self._reader.state_at_version(record.tenant, record.agent, version)
        origin = Origin(record, await self._folded(record, read.document, version, read.epoch, read.time))
        done = await fork(self._log, origin, new_agent, actor=actor, reason=reason)
        return Forked(record.tenant, record.agent, version, read.time, done.agent, done.version)

    async def _folded(self, record: AgentRecord, document: dict[str, Any], version: int, epoch: int, time: datetime | None) -> Folded:
        """The state with the chain hash of its version, where the log has it, which the event that is appended names."""
        try:
            events = await self._log.store.read_agent(record, EventFilter(from_version=version, to_version=version), 1) if version else []
        except Compacted:
            events = []
        chain = events[0].chain if events else bytes(32)
        return Folded(document, version, epoch, to_microseconds(time) if time else 0, chain, [])
