"""Restoring: a verified state of the past, as a view, as a new agent, or as an event that leads the agent back.

What always holds: nothing is appended before the state has been read as a whole and verified; nothing of the past is rewritten. A restore that
may choose its snapshot steps down to older ones and to the log, with a warning for each step; one that names a snapshot uses that one or fails.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.engine.log.versions import no_version
from perdure.engine.replay import Folded, fold_log
from perdure.errors import IntegrityError, InvalidInput
from perdure.snapshots.contents import Contents
from perdure.snapshots.loader import DAMAGE, SnapshotLoader
from perdure.snapshots.undertaken import Origin, Undertaken, fork, rollback

__all__ = ["Into", "RestoredState", "Restorer", "check_into"]

Into = Literal["view", "fork", "rollback"]


class RestoredState(NamedTuple):
    """A verified state. snapshot: that it comes from, None where the log alone gave it. warnings: of the fold, and of every step down."""

    agent: AgentRecord
    folded: Folded
    snapshot: SnapshotRow | None
    warnings: tuple[str, ...]

    @property
    def origin(self) -> Origin:
        """What a fork or a rollback starts from."""
        return Origin(self.agent, self.folded, self.snapshot.id if self.snapshot else None)


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
            raise no_version(name, version, head.version)
        skipped: list[str] = []
        loaded = await self._loader.start(agent, version, skipped=skipped)
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
        """See `undertaken.fork`."""
        return await fork(self._log, restored.origin, new_agent, actor=actor, reason=reason)

    async def rollback(self, restored: RestoredState, *, actor: str = "", reason: str = "", epoch: int | None = None) -> Undertaken:
        """See `undertaken.rollback`."""
        return await rollback(self._log, restored.origin, self._loader.base, actor=actor, reason=reason, epoch=epoch)


def check_into(into: str, new_agent: str | None) -> None:
    """Raises InvalidInput for a way of restoring that is not known or lacks its agent."""
    if into not in ("view", "fork", "rollback"):
        raise InvalidInput(f"{into!r} is no way to restore", hint="view, fork or rollback")
    if (into == "fork") != (new_agent is not None):
        raise InvalidInput("a fork, and only a fork, has a new agent", hint="name the agent that is to be made")
