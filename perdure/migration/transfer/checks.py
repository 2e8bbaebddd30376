"""What a run looks at before it begins anything: both ends, each agent, and whether there is room."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from perdure import limits
from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.fork_rows import begins_at
from perdure.engine.log.marks import LEAVING, LEFT_OVER, MOVED, PAST, STAGED, mark_of
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.errors import ConfigurationError, KeyUnavailable, PerdureError, SealBroken
from perdure.migration.transfer.pasts import Pasts
from perdure.migration.transfer.records import identity
from perdure.migration.transfer.sides import Side

__all__ = ["Checks", "Plan"]


_ELSEWHERE: Final = {
    STAGED: "it is coming here, in transfer {transfer}",
    LEAVING: "it is leaving in transfer {transfer}, which `perdure transfer resume` goes on with",
    MOVED: "it has moved away; `perdure transfer forward` tells where to",
    LEFT_OVER: "it is not here: transfer {transfer} to here was broken off",
    PAST: "only its beginning is here, for agents that were forked from it",
}


class Plan(msgspec.Struct, frozen=True):
    """What a run would do. to: the target's address. events: that the agents have, of forks their own. bytes: what these take in the source's log,
    by its mean. room_bytes: what the target has left, None where it cannot tell. problems: what stands in the way, by agent, the first ones;
    nothing is begun then."""

    to: str
    agents: int
    events: int
    bytes: int
    room_bytes: int | None
    problems: list[str]


class Checks:
    """Of one pair of ends."""

    def __init__(self, source: Side, target: Side, pasts: Pasts) -> None:
        self._source = source
        self._target = target
        self._pasts = pasts

    async def plan(self, names: Sequence[AgentName]) -> Plan:
        """Look at all of it. Raises ConfigurationError (the two are one log; their clocks; the target's root key is another one), Unavailable."""
        await self._check_ends()
        await self._check_root_key({name.tenant for name in names})
        problems: list[str] = []
        coming = frozenset(names)
        events = 0
        for start in range(0, len(names), limits.TRANSFER_LIST_PAGE):
            page = names[start : start + limits.TRANSFER_LIST_PAGE]
            rows = await self._source.store.agents(page)
            there = await self._target.store.agents(page)
            found = [row for row in rows if row is not None]
            heads, floors = await self._source.store.heads(found), await self._source.store.floors(found)
            for row, head, floor in zip(found, heads, floors, strict=True):
                events += max(0, head.version - max(begins_at(row), floor.version - 1))
            floor_of = {row.agent_key: floor for row, floor in zip(found, floors, strict=True)}
            for name, known, heir in zip(page, rows, there, strict=True):
                problem = "there is no such agent" if known is None else await self._problem(known, heir, floor_of[known.agent_key], coming)
                if problem:
                    problems.append(f"{name.tenant}/{name.agent}: {problem}")
        bytes, room_bytes = await self._room(events, problems)
        return Plan(self._target.address, len(names), events, bytes, room_bytes, problems[: limits.TRANSFER_REPORT_MAX])

    async def _check_ends(self) -> None:
        if await identity(self._source.store) == await identity(self._target.store):
            raise ConfigurationError("source and target are the same log", hint="name another engine to move to")
        # Asked in turn, so that a slow answer is not taken for a slow clock.
        before_us, there_us, after_us = [await side.store.clock_us() for side in (self._source, self._target, self._source)]
        apart_s = max(before_us - there_us, there_us - after_us) / 1e6
        if apart_s > limits.TRANSFER_CLOCKS_APART_S:
            raise ConfigurationError(f"the clocks of the two engines are {apart_s:.1f} s apart", hint="set them, e.g. with NTP")

    async def _check_root_key(self, coming: Collection[str]) -> None:
        """A log's tenants are under one root key. A tenant that is new there would get its key under whichever root key was named, or under the
        default one, which is made where it is missing: so that key must open what is there already."""
        ring = self._target.vault.ring
        standing = await ring.tenants()
        for tenant in [each for each in standing if each in coming] or standing:
            try:
                await ring.tenant_key(tenant)
            except (KeyUnavailable, SealBroken) as problem:
                if problem.details.get("reason") == "destroyed":
                    continue  # it says nothing of the root key
                message = f"the target's log is under another root key than the one that was named: {problem.message}"
                hint = "name the target's own root key: --to-keys URL, or --to-config FILE"
                raise ConfigurationError(message, hint=hint, tenant=tenant) from problem
            if tenant not in coming:
                return

    async def _room(self, events: int, problems: list[str]) -> tuple[int, int | None]:
        """Whether the target has room for it, and what its own recovery log takes meanwhile."""
        room = await self._target.store.room()
        here = await self._source.store.room()
        positions = await self._source.store.positions()
        bytes = here.bytes * events // max(1, sum(position.offset for position in positions.values()))
        needed = int(bytes * limits.TRANSFER_ROOM_FACTOR)
        if room.free_bytes is not None and needed > room.free_bytes:
            problems.insert(0, f"the target: {needed} bytes may be needed, and {room.free_bytes} are free")
        return bytes, room.free_bytes

    async def _problem(self, row: AgentRecord, heir: AgentRecord | None, floor: Floor, coming: Collection[AgentName]) -> str:
        if not row.data_key:
            return "its key was destroyed"
        gone = mark_of(row.owner)
        if gone is not None:
            return _ELSEWHERE[gone.kind].format(transfer=gone.transfer)
        try:
            await self._source.vault.ring.unwrap_material(row.tenant, row.agent, row.data_key)
        except PerdureError as problem:
            if problem.retryable:
                raise
            return problem.message
        mark = None if heir is None else mark_of(heir.owner)
        if heir is not None and (mark is None or mark.kind not in (MOVED, LEFT_OVER, PAST)):
            return "the target has an agent of this name"
        if floor.version > 1 and (self._source.shelf is None or self._target.shelf is None):
            return "its first events were removed, and an engine has no store of snapshots"
        return await self._pasts.problem(row, coming) if row.parent is not None else ""
