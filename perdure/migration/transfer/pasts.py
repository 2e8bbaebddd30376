"""Forks between engines: their first versions are events of other agents, by reference, and stay so.

A fork needs at the target what it refers to: its parent's events up to the version that it begins at, under the parent's name, because they are
sealed and chained under that name. Where the target has the parent with this history, whoever serves it, the fork refers to it. Where it does
not, the beginning is put into a row that nobody serves (the mark `past`), which the parent's own transfer goes on from when it comes later.

Invariant: a fork's row at the target is made only where the event that it begins at stands, with the source's chain hash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from perdure.engine import steps
from perdure.engine.log.fork_rows import has_own_floor, line_from
from perdure.engine.log.marks import LEFT_OVER, PAST, STAGED, mark_of, owner_of
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, Past
from perdure.errors import AlreadyExists, Compacted, Conflict, KeyUnavailable
from perdure.identifiers import partition_of
from perdure.migration.transfer.anchors import carry_floor, carry_snapshots, check_same, standing_of
from perdure.migration.transfer.copying import Copying
from perdure.migration.transfer.inheritance import Inheritance
from perdure.migration.transfer.records import TransferRecord
from perdure.migration.transfer.sides import Side, row_of

__all__ = ["Pasts", "in_order", "line_of"]

Progress = Callable[[int, int], None]


class Pasts:
    """Of one run: forks of one parent wait for each other while its beginning is put in."""

    def __init__(self, source: Side, target: Side, keys: Inheritance) -> None:
        self._source = source
        self._target = target
        self._keys = keys
        self._turns: dict[AgentName, asyncio.Lock] = {}

    async def problem(self, row: AgentRecord, coming: Collection[AgentName]) -> str:
        """Why what the fork begins with cannot be had at the target, empty where it can. coming: agents that go there before it."""
        for past in await self._wanted(row):
            name = AgentName(row.tenant, past.agent)
            if name in coming:
                continue
            theirs = await row_of(self._source, name)
            if not theirs.data_key:
                return f"its past is agent {name.agent!r}, whose key was destroyed"
            (heir,) = await self._target.store.agents([name])
            if heir is not None and (problem := await self._against(theirs, heir, past.version)):
                return problem
        return ""

    async def _against(self, row: AgentRecord, heir: AgentRecord, version: int) -> str:
        mark = mark_of(heir.owner)
        if mark is not None and mark.kind == STAGED:
            return f"its past is agent {row.agent!r}, which is in transfer {mark.transfer} at the target"
        try:
            stands, _ = await standing_of(self._target, heir)
            if stands >= version:
                await self._check_at(row, heir, version)
            elif not _extensible(heir):
                return f"its past is agent {row.agent!r}, of which the target has {stands} versions, not {version}: move that agent, too"
        except (AlreadyExists, Compacted) as problem:
            return problem.message
        return ""

    async def carry(self, row: AgentRecord, record: TransferRecord, progress: Progress | None) -> AgentRecord | None:
        """Put what the fork begins with into the target, where it is not there; the agent that it goes on from there. None: nothing of its past
        is needed, because it begins at version 0, or its own floor is behind its first event.

        Raises AlreadyExists, Compacted, Conflict, KeyUnavailable, ChainBroken, Unavailable."""
        heir: AgentRecord | None = None
        for past in reversed(await self._wanted(row)):
            name = AgentName(row.tenant, past.agent)
            async with self._turns.setdefault(name, asyncio.Lock()):
                heir = await self._member(name, past.version, heir, record, progress)
                steps.reach("transfer.past")
        return heir if heir is None else await self._named(row, heir)

    async def _wanted(self, row: AgentRecord) -> Sequence[Past]:
        """Of the agents in a fork's line those whose events it still reads, the nearest first."""
        if row.parent is None:
            return ()
        (floor,) = await self._source.store.floors([row])
        if has_own_floor(row, floor):
            return ()
        # Whoever of the line has a floor needs nothing before it, and no floor is above a version that a fork begins at.
        return [past for past in row.past if past.version >= floor.version]

    async def _named(self, row: AgentRecord, heir: AgentRecord) -> AgentRecord:
        """The agent that it was forked from, where the target has that and its history is the same; else the one whose event it begins at."""
        assert row.parent is not None, "a fork has a parent"
        if row.parent.agent == heir.agent:
            return heir
        (named,) = await self._target.store.agents([AgentName(row.tenant, row.parent.agent)])
        nearest = line_from(named, row.parent.version)[:1] if named is not None else ()
        return named if named is not None and nearest and nearest[0].agent_key == heir.agent_key else heir

    async def _member(
        self, name: AgentName, version: int, before: AgentRecord | None, record: TransferRecord, progress: Progress | None
    ) -> AgentRecord:
        """One agent of the line at the target, with its versions up to this one."""
        row = await row_of(self._source, name)
        (heir,) = await self._target.store.agents([name])
        if heir is None:
            heir = await self._make(row, before, record)
        stands, _ = await standing_of(self._target, heir)
        if _extensible(heir):
            heir = await self._extend(row, heir, version, record, progress)
        elif stands < version:
            message = f"the target has {stands} versions of agent {name.agent!r}, and the fork begins at {version}"
            raise Conflict(message, hint="move that agent, too", tenant=name.tenant, agent=name.agent)
        await self._check_at(row, heir, version)
        if not heir.data_key:
            if mark_of(heir.owner) is None:
                message = f"the key of agent {name.agent!r} was destroyed at the target"
                raise KeyUnavailable(message, tenant=name.tenant, agent=name.agent)
            heir = await self._keys.hand(row, anew=True)  # it went from there, and was erased
        return heir

    async def _make(self, row: AgentRecord, before: AgentRecord | None, record: TransferRecord) -> AgentRecord:
        place = {"tenant_key": 0, "agent_key": 0, "partition": partition_of(row.tenant, row.agent, self._target.store.partitions)}
        wrapped = await self._keys.give(row, None)
        owner = owner_of(PAST, record.id)
        wanted = msgspec.structs.replace(row, **place, owner=owner, epoch=0, data_key=wrapped, parent=None, past=())
        if before is not None and row.parent is not None:
            return await self._target.store.create_fork(wanted, before, row.parent.version)
        return (await self._target.store.create_agents([wanted]))[0]

    async def _extend(
        self, row: AgentRecord, heir: AgentRecord, version: int, record: TransferRecord, progress: Progress | None
    ) -> AgentRecord:
        """Put in more of it, under our own mark: another transfer that does the same is told so."""
        mark = owner_of(PAST, record.id)
        if heir.owner != mark and not await self._target.store.swap_owner(heir, heir.owner, mark):
            message = f"agent {row.agent!r}, which the fork begins with, is being moved by somebody else"
            raise Conflict(message, hint="try again", tenant=row.tenant, agent=row.agent)
        heir = await self._keys.hand(row, anew=True, again=True)
        (floor,) = await self._source.store.floors([row])
        floored = await carry_floor(self._source, self._target, row, heir, floor)
        stands, chain = await standing_of(self._target, heir)
        await check_same(self._source, row, stands, chain)
        large = await self._keys.large(row.tenant, now=True)
        copying = Copying(self._source, self._target, row, heir, stands, chain, owner=mark, large=large)
        await copying.to(version, progress)
        if floored:
            await carry_snapshots(self._source, self._target, row, heir)
        return heir

    async def _check_at(self, row: AgentRecord, heir: AgentRecord, version: int) -> None:
        """Both ends must have the same history up to there."""
        where = EventFilter(from_version=version, to_version=version)
        here = await self._source.store.read_agent(row, where, 1)
        there = await self._target.store.read_agent(heir, where, 1)
        if not here or not there or here[0].chain != there[0].chain:
            message = f"the target has another agent {row.agent!r}, which is not the one that the fork begins with"
            raise AlreadyExists(message, hint="give one of the two another name", tenant=row.tenant, agent=row.agent, version=version)


def _extensible(heir: AgentRecord) -> bool:
    """Whether nobody serves the agent, or has served it."""
    mark = mark_of(heir.owner)
    return mark is not None and mark.kind in (PAST, LEFT_OVER)


def line_of(row: AgentRecord) -> set[AgentName]:
    """The agents that should be at the target before this one: what it was forked from, and whose events it begins with."""
    names = {past.agent for past in row.past} | ({row.parent.agent} if row.parent is not None else set())
    return {AgentName(row.tenant, name) for name in names}


def in_order(rows: Iterable[AgentRecord]) -> list[AgentName]:
    """The agents' names, each after those of its line. An agent's line never changes and never comes back to itself."""
    waiting = {AgentName(row.tenant, row.agent): row for row in rows}
    ordered: list[AgentName] = []
    while waiting:
        ready = [name for name, row in waiting.items() if not line_of(row) & waiting.keys()]
        ordered += ready
        for name in ready or list(waiting):
            del waiting[name]
    return ordered
