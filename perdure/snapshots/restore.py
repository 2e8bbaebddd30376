"""Restoring: a verified state of the past, as a view, as a new agent, or as an event that leads the agent back.

What always holds: nothing is appended before the state has been read as a whole and verified; nothing of the past is rewritten. A restore that
may choose its snapshot steps down to older ones and to the log, with a warning for each step; one that names a snapshot uses that one or fails.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple
from uuid import UUID

from perdure.engine.changes import Change
from perdure.engine.diff import diff
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.fold import apply
from perdure.engine.log.contract import AgentName, AgentRecord, EventFilter
from perdure.engine.log.expected import NO_STREAM
from perdure.engine.log.log import EventLog
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.engine.replay import Folded, fold_log
from perdure.errors import AlreadyExists, Compacted, Conflict, IntegrityError, InvalidInput, VersionNotFound
from perdure.snapshots.contents import Contents
from perdure.snapshots.holds import keep_version
from perdure.snapshots.loader import DAMAGE, SnapshotLoader

__all__ = ["FORKED", "ROLLED_BACK", "Into", "RestoredState", "Restorer", "Undertaken", "check_into"]

Into = Literal["view", "fork", "rollback"]
FORKED: Final = "forked"
"""Type of the first event of an agent that was made from another one's state."""
ROLLED_BACK: Final = "rolled_back"
"""Type of the event that leads an agent back to an earlier state."""
ROLLBACK_ATTEMPTS_MAX: Final = 5


class RestoredState(NamedTuple):
    """A verified state. snapshot: that it comes from, None where the log alone gave it. warnings: of the fold, and of every step down."""

    agent: AgentRecord
    folded: Folded
    snapshot: SnapshotRow | None
    warnings: tuple[str, ...]


class Undertaken(NamedTuple):
    """What was appended: to which agent, and the version of the event. changes: that lead there."""

    agent: str
    version: int
    changes: tuple[Change, ...]


class Restorer:
    """Restores states of one log's agents."""

    def __init__(self, log: EventLog, contents: Contents, loader: SnapshotLoader) -> None:
        self._log = log
        self._contents = contents
        self._loader = loader

    async def state(self, name: AgentName, *, version: int | None = None) -> RestoredState:
        """The state at a version, from the newest whole snapshot at or before it and the log. None: at the newest snapshot's own version.

        Raises AgentNotFound, VersionNotFound, ChainBroken, KeyUnavailable, Unavailable (the log is away).
        """
        agent = await self._log.vault.record(*name)
        (head,) = await self._log.store.heads([agent])
        if version is not None and not 0 <= version <= head.version:
            message = f"agent {name.agent!r} has no version {version}"
            raise VersionNotFound(
                message, hint=f"its versions are 0 to {head.version}", tenant=name.tenant, agent=name.agent, version=version
            )
        skipped: list[str] = []
        loaded = await self._loader.load(agent, version, skipped=skipped)
        if loaded is None:
            folded = await fold_log(self._log.store, self._log.vault, agent, to_version=version)
            return RestoredState(agent, folded, None, (*skipped, "no snapshot was used: the log was replayed", *folded.warnings))
        folded = loaded.folded
        if version is not None:
            folded = await fold_log(self._log.store, self._log.vault, agent, start=folded, to_version=version)
        return RestoredState(agent, folded, loaded.row, (*skipped, *folded.warnings))

    async def snapshot(self, row: SnapshotRow) -> RestoredState:
        """The state of one snapshot. Raises IntegrityError, SealBroken, ObjectNotFound (marked as damaged then), Unavailable, KeyUnavailable."""
        if row.damage:
            hint = "restore an older one, or name a version instead of a snapshot"
            message = f"snapshot {row.id} is damaged: {row.damage}"
            raise IntegrityError(message, hint=hint, tenant=row.tenant, agent=row.agent, version=row.version)
        agent = await self._log.vault.record(row.tenant, row.agent)
        try:
            await self._loader.check_log(agent, row)
            opened = await self._contents.read(row)
        except DAMAGE as problem:
            await self._loader.report(row, problem)
            raise
        return RestoredState(agent, opened.folded, row, tuple(opened.folded.warnings))

    async def fork(self, restored: RestoredState, new_agent: str, *, actor: str = "", reason: str = "") -> Undertaken:
        """Make a new agent of the same tenant whose first event sets the whole state. The version that it was made from stays within reach.

        Raises AlreadyExists, LimitExceeded.
        """
        source, target = restored.agent, AgentName(restored.agent.tenant, new_agent)
        changes = diff({}, restored.folded.document) or (Change("set", (), {}),)
        event = Event(
            FORKED,
            changes=changes,
            data={"from": _facts(restored), "reason": reason},
            actor=actor,
            causation_id=await self._cause(restored),
        )
        try:
            done = await self._log.append_events(target, [event], expected=NO_STREAM)
        except Conflict as problem:
            message = f"there is an agent {new_agent!r} already"
            raise AlreadyExists(message, hint="choose another name", tenant=target.tenant, agent=new_agent) from problem
        await keep_version(self._log.store, source, restored.folded.version, f"fork {new_agent}")
        record, _ = await self._log.vault.obtain(target)
        await self._log.store.describe_agent(record, type=source.type, labels=source.labels)
        self._log.vault.forget(target)
        return Undertaken(new_agent, done.version, changes)

    async def rollback(self, restored: RestoredState, *, actor: str = "", reason: str = "", epoch: int | None = None) -> Undertaken:
        """Append the event whose changes lead from the newest state back to this one. Raises Conflict, Fenced, LimitExceeded."""
        name = AgentName(restored.agent.tenant, restored.agent.agent)
        target, wanted = restored.folded.document, digest(restored.folded.document)
        cause = await self._cause(restored)
        for _ in range(ROLLBACK_ATTEMPTS_MAX):
            now = await self._now(restored.agent)
            changes = diff(now.document, target)
            after, _warnings = apply(now.document, changes)
            if digest(after) != wanted:
                raise IntegrityError("the changes do not lead back to the state", tenant=name.tenant, agent=name.agent, version=now.version)
            data = {"to": _facts(restored), "reason": reason}
            event = Event(ROLLED_BACK, changes=changes, data=data, actor=actor, causation_id=cause)
            try:
                done = await self._log.append_events(name, [event], expected=now.version, epoch=epoch)
            except Conflict as problem:
                if type(problem) is not Conflict:
                    raise
                continue
            return Undertaken(name.agent, done.version, changes)
        raise Conflict("others change this agent all the time", tenant=name.tenant, agent=name.agent)

    async def _now(self, agent: AgentRecord) -> Folded:
        start = await self._loader.base(agent, None)
        return await fold_log(self._log.store, self._log.vault, agent, start=start)

    async def _cause(self, restored: RestoredState) -> UUID | None:
        """The id of the event that led to the state, where the log still has it."""
        version = restored.folded.version
        try:
            events = await self._log.store.read_agent(restored.agent, EventFilter(from_version=version, to_version=version), 1)
        except Compacted:
            return None
        return events[0].id if events else None


def check_into(into: str, new_agent: str | None) -> None:
    """Raises InvalidInput for a way of restoring that is not known or lacks its agent."""
    if into not in ("view", "fork", "rollback"):
        raise InvalidInput(f"{into!r} is no way to restore", hint="view, fork or rollback")
    if (into == "fork") != (new_agent is not None):
        raise InvalidInput("a fork, and only a fork, has a new agent", hint="name the agent that is to be made")


def _facts(restored: RestoredState) -> dict[str, str | int | None]:
    folded = restored.folded
    return {
        "agent": restored.agent.agent,
        "version": folded.version,
        "chain": folded.chain.hex(),
        "snapshot": str(restored.snapshot.id) if restored.snapshot else None,
    }
