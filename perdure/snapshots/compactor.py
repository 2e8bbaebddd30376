"""Compaction at work: an agent's first events are removed, after all that stands for them was read and verified.

The order, each step of which may be the last of a process that dies: checkpoints are made; every snapshot that will stand for what goes is read as
a whole; the floor is raised, which the log's database allows only while those snapshots are registered and whole; the rows are removed, some
at a time. Steps for fault tests: compact.checkpointed, .verified, .floor, .removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.fork_rows import begins_at
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, to_microseconds
from perdure.engine.log.snapshot_rows import CHECKPOINT, SnapshotRow
from perdure.engine.relay_partition import SCOPE as RELAY_SCOPE
from perdure.engine.relay_partition import decode_kept
from perdure.engine.steps import reach
from perdure.errors import Conflict, IntegrityError, InvalidInput
from perdure.limits import COMPACTION_PAGE_EVENTS, SNAPSHOTS_PER_AGENT_MAX
from perdure.projections.custom import checkpoints
from perdure.snapshots.compaction import HELD, CompactionPlan, Strategy, plan_compaction
from perdure.snapshots.holds import compacting, held_versions
from perdure.snapshots.order import SnapshotOrder
from perdure.snapshots.shelf import SnapshotShelf

__all__ = ["Compacted", "Compactor", "Keep"]

NOT_FOLLOWED: Final = "events that {who} has not handled yet"
PLANS_MAX: Final = 3
"""Plans of one compaction: a snapshot that turns out to be damaged makes another one necessary."""


class Keep(msgspec.Struct, frozen=True):
    """Which events stay; exactly one is given. last: so many of the newest. since: those at or after a moment (aware). before_version: those
    from this version on. critical_only: none but what the snapshots that must stay need."""

    last: int | None = None
    since: datetime | None = None
    before_version: int | None = None
    critical_only: bool = False

    def __post_init__(self) -> None:
        if sum((self.last is not None, self.since is not None, self.before_version is not None, self.critical_only)) != 1:
            raise InvalidInput(
                "which events shall stay?", hint="the last ones, those since a time, those from a version on, or the critical only"
            )
        if (self.last is not None and self.last < 0) or (self.before_version is not None and self.before_version < 1):
            raise InvalidInput("a number of events below what there can be")
        if self.since is not None and self.since.tzinfo is None:
            raise InvalidInput("the time has no zone", hint="give an aware datetime, e.g. in UTC")


class Compacted(msgspec.Struct, frozen=True):
    """What was done, or in a dry run would be. plan: floor, checkpoints, why it stops short. removed: events whose rows are gone."""

    agent: AgentRecord
    plan: CompactionPlan
    removed: int
    dry_run: bool


class Compactor:
    """Compacts the agents of one log."""

    def __init__(self, log: EventLog, shelf: SnapshotShelf) -> None:
        self._log = log
        self._store: LogStore = log.store
        self._shelf = shelf

    async def compact(
        self,
        name: AgentName,
        keep: Keep,
        *,
        strategy: Strategy = "snapshot",
        step_versions: int | None = None,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Compacted:
        """Remove an agent's first events, as far as the rules of `compaction` allow. progress(removed, to remove).

        Raises AgentNotFound, InvalidInput, Conflict (another process compacts the agent), IntegrityError (what would stand for the events is
        damaged, again and again), Unavailable. Nothing is removed then, unless rows of an earlier compaction were left.
        """
        agent = await self._log.vault.record(*name)
        if dry_run:
            plan = await self._plan(agent, keep, strategy, step_versions)
            return Compacted(agent, plan, 0, dry_run)
        async with compacting(self._store, agent) as turn:
            plan = await self._prepare(agent, keep, strategy, step_versions)
            if plan.events:
                if turn.lost:
                    raise Conflict("this process stood still while it compacted", hint="try again", tenant=agent.tenant, agent=agent.agent)
                await self._store.raise_floor(agent, plan.floor, (await self._rows(agent, [plan.floor - 1]))[0].chain)
                reach("compact.floor")
        return Compacted(agent, plan, await self._remove(agent, plan.events, progress), dry_run)

    async def _prepare(self, agent: AgentRecord, keep: Keep, strategy: Strategy, step_versions: int | None) -> CompactionPlan:
        for _ in range(PLANS_MAX):
            plan = await self._plan(agent, keep, strategy, step_versions)
            if not plan.events:
                return plan
            for version in plan.checkpoints:
                order = SnapshotOrder(kind=CHECKPOINT, creator="compaction", reason="stands for events that were removed")
                await self._shelf.writer.create(AgentName(agent.tenant, agent.agent), order, at_version=version)
            reach("compact.checkpointed")
            verified = [await self._shelf.verifier.verify(row) for row in await self._rows(agent, plan.verify)]
            reach("compact.verified")
            if len(verified) == len(plan.verify) and all(each.ok for each in verified):
                return plan
        raise IntegrityError(
            f"snapshots of agent {agent.agent!r} that would stand for its events are damaged",
            hint="run `perdure scrub`, and see to the store",
            tenant=agent.tenant,
            agent=agent.agent,
        )

    async def _plan(self, agent: AgentRecord, keep: Keep, strategy: Strategy, step_versions: int | None) -> CompactionPlan:
        floor, (head,) = await self._own_floor(agent), await self._store.heads([agent])
        wanted = min(await self._wanted(agent, keep, head.version), max(1, head.version))
        forked, held = await self._store.first_forked(agent), await held_versions(self._store, agent)
        if any(version < floor - 1 for version in held) and floor == begins_at(agent) + 1:
            forked = floor  # of what the agent shares with its past something is being restored now
        followed, who = await self._followed(agent, wanted)
        plan = plan_compaction(
            await self._store.snapshots(agent, limit=SNAPSHOTS_PER_AGENT_MAX, good=True),
            floor=floor,
            head=head.version,
            wanted=min(wanted, followed, wanted if forked is None else forked),
            strategy=strategy,
            held_versions=held,
            step_versions=step_versions,
        )
        if forked is not None and forked < min(wanted, followed):
            return msgspec.structs.replace(plan, limited_by=plan.limited_by or HELD)
        if followed >= wanted:
            return plan
        return msgspec.structs.replace(plan, limited_by=plan.limited_by or NOT_FOLLOWED.format(who=who))

    async def _own_floor(self, agent: AgentRecord) -> int:
        """The first version that is there of the agent's own: what it shares with its past is not its own to remove."""
        (floor,) = await self._store.floors([agent])
        return max(floor.version, begins_at(agent) + 1)

    async def _wanted(self, agent: AgentRecord, keep: Keep, head: int) -> int:
        if keep.last is not None:
            return head - keep.last + 1
        if keep.before_version is not None:
            return keep.before_version
        if keep.since is not None:
            (floor,) = await self._store.floors([agent])
            since_us = to_microseconds(keep.since) - 1
            return floor.version if since_us < floor.time_us else await self._store.version_at(agent, since_us) + 1
        return head

    async def _followed(self, agent: AgentRecord, wanted: int) -> tuple[int, str]:
        """The highest version up to `wanted` before which everybody who follows the log has handled everything, and who has come least far."""
        offset, who = await self._least(agent.partition)
        if offset is None or wanted <= 1:
            return wanted, who
        low = await self._own_floor(agent)
        high = max(wanted, low)
        while low < high:  # the greatest version whose predecessor is handled
            middle = (low + high + 1) // 2
            where = EventFilter(from_version=middle - 1, to_version=middle - 1)
            (event,) = await self._store.read_agent(agent, where, 1)
            low, high = (middle, high) if event.offset <= offset else (low, middle - 1)
        return low, who

    async def _least(self, partition: int) -> tuple[int | None, str]:
        """How far the relay and all projections that have ever handled events of the partition have come; None where there is none."""
        offsets = {f"projection {name!r}": offset for name, offset in (await checkpoints(self._store, partition)).items()}
        relayed = await self._store.get_document(RELAY_SCOPE, str(partition))
        if relayed is not None:
            offsets["the relay"] = decode_kept(relayed.value).offset
        return min(((offset, who) for who, offset in offsets.items()), default=(None, ""))

    async def _rows(self, agent: AgentRecord, versions: Sequence[int]) -> list[SnapshotRow]:
        rows = await self._store.snapshots(agent, limit=SNAPSHOTS_PER_AGENT_MAX, good=True)
        return [row for row in rows if row.version in set(versions)]

    async def _remove(self, agent: AgentRecord, events: int, progress: Callable[[int, int], None] | None) -> int:
        removed = 0
        while count := await self._store.remove_events(agent, COMPACTION_PAGE_EVENTS):
            removed += count
            reach("compact.removed")
            if progress is not None:
                progress(removed, max(events, removed))
        return removed
