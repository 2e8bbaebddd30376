"""States from snapshots: the newest that is whole, at or before a version.

What always holds: a state that is returned has been authenticated, its digest is the one that was written, and the log, where it still has
the event at that version, says the same chain hash. Everything else is a step down: to the next older snapshot, and from the last one to the log
alone. A step down costs time; it is never an error where the log can serve. What was found damaged is marked in the registry and not read again.
A fork's states before its own first event are its past's, and so are the snapshots that they come from.
A store that does not answer is waited for a short time, once, and then left alone for a while: reads go on from the log at its own speed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, NamedTuple

import msgspec

from perdure import limits
from perdure.engine.log.contract import LogStore
from perdure.engine.log.floor_rows import NO_FLOOR
from perdure.engine.log.fork_rows import line
from perdure.engine.log.records import AgentRecord, EventFilter
from perdure.engine.log.snapshot_rows import SnapshotMark, SnapshotRow
from perdure.engine.replay import Folded
from perdure.errors import (
    Compacted,
    Denied,
    DictionaryNotFound,
    IntegrityError,
    LimitExceeded,
    MissingDependency,
    ObjectNotFound,
    PerdureError,
    Unavailable,
)
from perdure.snapshots.contents import Contents
from perdure.snapshots.manifest import Manifest

__all__ = ["DAMAGE", "Loaded", "LoaderStatus", "SnapshotLoader"]

LADDER_MAX: Final = 8
"""Snapshots that one load tries before it leaves the state to the log."""
ANSWER_S: Final = 3.0
"""How long a load waits for a manifest. A store that does not answer in time counts as away."""
AWAY_S: Final = 5.0
"""So long a store that was away is not asked again by loads that the log can serve."""
DAMAGE_LENGTH_MAX: Final = 500
"""Characters of what was wrong that stay with a snapshot."""
DAMAGE: Final = (IntegrityError, ObjectNotFound, LimitExceeded)
"""What reading a damaged snapshot raises: it was changed, it is gone, or there is more of it than was written."""
_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A state, the row it was found by, its manifest."""

    folded: Folded
    row: SnapshotRow
    manifest: Manifest


class LoaderStatus(msgspec.Struct):
    """What a loader has done: loads from a snapshot, loads left to the log alone, steps down, of which by damage. problem: the newest reason."""

    loads: int = 0
    misses: int = 0
    steps_down: int = 0
    damaged: int = 0
    problem: str = ""


class SnapshotLoader:
    """Loads states of one log's agents."""

    def __init__(self, store: LogStore, contents: Contents) -> None:
        self._store = store
        self._contents = contents
        self._away_until_s = 0.0
        self._places = asyncio.Semaphore(limits.SNAPSHOT_LOADS_MAX)
        self.status = LoaderStatus()

    async def base(self, agent: AgentRecord, to_version: int | None) -> Folded | None:
        """A state to fold on from, as `perdure.projections.fill.Base` wants it."""
        loaded = await self.start(agent, to_version)
        return loaded.folded if loaded is not None else None

    async def start(self, agent: AgentRecord, to_version: int | None = None, *, skipped: list[str] | None = None) -> Loaded | None:
        """As `load`, for a state that is to be folded on. Where no snapshot can be used and the log cannot serve either, because its first
        events were removed, what is wrong with the newest snapshot is raised."""
        loaded, problem = await self._load(agent, to_version, [] if skipped is None else skipped)
        if problem is not None and not await self._log_can_serve(agent):
            raise problem
        return loaded

    async def load(self, agent: AgentRecord, to_version: int | None = None, *, skipped: list[str] | None = None) -> Loaded | None:
        """The newest state at or before a version (None: the newest there is); None: the log has to serve. skipped: gets a line for each
        newer snapshot that was stepped over."""
        return (await self._load(agent, to_version, [] if skipped is None else skipped))[0]

    async def _load(self, agent: AgentRecord, to_version: int | None, skipped: list[str]) -> tuple[Loaded | None, PerdureError | None]:
        problem: PerdureError | None = None
        for row in await self._rows(agent, to_version):
            try:
                loaded = await self._try(agent, row)
            except Unavailable as away:
                self._step_down(row, away, skipped)
                problem = problem or away
                break  # older ones are in the same store
            except DAMAGE as damage:
                self._step_down(row, damage, skipped)
                await self.report(row, damage)
                problem = problem or damage
            except (Denied, DictionaryNotFound, MissingDependency) as closed:
                self._step_down(row, closed, skipped)
                problem = problem or closed
            else:
                self.status.loads += 1
                return loaded, None
        self.status.misses += 1
        return None, problem

    async def _rows(self, agent: AgentRecord, to_version: int | None) -> list[SnapshotRow]:
        """The newest sound snapshots at or before a version: the agent's own, and those of its past, whose states were its own."""
        rows: list[SnapshotRow] = []
        for record, _, last in line(agent):
            until = min((version for version in (to_version, last) if version is not None), default=None)
            rows += await self._store.snapshots(record, to_version=until, limit=LADDER_MAX, good=True)
        return sorted(rows, key=lambda row: -row.version)[:LADDER_MAX] if agent.past else rows

    async def _try(self, agent: AgentRecord, row: SnapshotRow) -> Loaded:
        if time.monotonic() < self._away_until_s and await self._log_can_serve(agent):
            raise Unavailable("the store of snapshots did not answer a moment ago")
        await self.check_log(agent, row)
        # The time to answer counts from when it is this load's turn: a queue of our own is no store that is away.
        async with self._places:
            try:
                opened = await self._contents.read(row, answer_s=ANSWER_S)
            except Unavailable:
                self._away_until_s = time.monotonic() + AWAY_S
                raise
        return Loaded(opened.folded, row, opened.manifest)

    async def _log_can_serve(self, agent: AgentRecord) -> bool:
        """Whether the log has all of the agent's events."""
        (floor,) = await self._store.floors([agent])
        return floor == NO_FLOOR

    async def check_log(self, agent: AgentRecord, row: SnapshotRow) -> None:
        """Compare a snapshot with the event that it was made at. Raises `OtherHistory` where they differ: a snapshot of another history, or
        an event that was changed. Where the log no longer has the event there is its floor to compare with, or nothing."""
        chain = await self._chain(agent, row.version)
        if chain is not None and chain != row.chain:
            raise OtherHistory(
                f"snapshot {row.id} and the log hold different histories at version {row.version}",
                hint="run `perdure verify`: it tells which of them was changed",
                tenant=row.tenant,
                agent=row.agent,
                version=row.version,
            )

    async def _chain(self, agent: AgentRecord, version: int) -> bytes | None:
        try:
            events = await self._store.read_agent(agent, EventFilter(from_version=version, to_version=version), 1)
        except Compacted:
            (floor,) = await self._store.floors([agent])
            return floor.chain if floor.version == version + 1 else None
        return events[0].chain if events else None

    async def report(self, row: SnapshotRow, problem: PerdureError) -> None:
        """Mark a snapshot as damaged, unless it is no snapshot any more or the fault may be the log's own."""
        if isinstance(problem, OtherHistory):
            return
        try:
            if await self._store.mark_snapshot(row, SnapshotMark(damage=problem.message[:DAMAGE_LENGTH_MAX])) is None:
                return  # deleted while it was read: whatever it lacked was no damage
        except Unavailable as away:
            _log.warning("damage of snapshot %s could not be noted: %s", row.id, away)
        self.status.damaged += 1

    def _step_down(self, row: SnapshotRow, problem: PerdureError, skipped: list[str]) -> None:
        self.status.steps_down += 1
        self.status.problem = f"{row.tenant}/{row.agent} snapshot {row.id} at version {row.version}: {problem}"
        skipped.append(f"snapshot at version {row.version} not used: {problem}")
        _log.warning("%s", self.status.problem)


class OtherHistory(IntegrityError):
    """A snapshot and the log hold different histories."""
