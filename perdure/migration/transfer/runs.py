"""Many agents from one engine to another: look first, tell everybody, then so many at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.marks import LEAVING, mark_of, owner_of
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.errors import Conflict, InvalidInput, LimitExceeded
from perdure.identifiers import uuid7
from perdure.migration.transfer.checks import Checks, Plan
from perdure.migration.transfer.crossing import Crossing, Turn
from perdure.migration.transfer.inheritance import Inheritance
from perdure.migration.transfer.pasts import Pasts, in_order, line_of
from perdure.migration.transfer.records import TransferRecord, identity, keep, records
from perdure.migration.transfer.reports import Progress, Report, Teller
from perdure.migration.transfer.sides import Side
from perdure.recovery.journal import SYSTEM_TENANT

__all__ = ["Plan", "Progress", "Report", "Run", "names_of"]

NOTES_AT_ONCE = 256


async def names_of(side: Side, tenant: str | None) -> AsyncIterator[AgentName]:
    """Every agent that is served, of a tenant or of all; what an engine writes down about itself stays with it."""
    for each in [tenant] if tenant is not None else [each for each in await side.store.tenants() if each != SYSTEM_TENANT]:
        after = ""
        while page := await side.store.list_agents(each, after=after, limit=limits.TRANSFER_LIST_PAGE):
            after = page[-1].agent
            for row in page:
                if mark_of(row.owner) is None and row.data_key:
                    yield AgentName(row.tenant, row.agent)


class Run:
    """Between two ends. at_once: agents that are moved beside each other. progress: called as it goes on."""

    def __init__(
        self, source: Side, target: Side, *, at_once: int = limits.TRANSFER_AGENTS_AT_ONCE_DEFAULT, progress: Progress | None = None
    ) -> None:
        if not 1 <= at_once <= limits.TRANSFER_AGENTS_AT_ONCE_MAX:
            raise LimitExceeded(f"{at_once} agents at once", hint=f"1 to {limits.TRANSFER_AGENTS_AT_ONCE_MAX}")
        self._source = source
        self._target = target
        keys = Inheritance(source, target)
        self._pasts = Pasts(source, target, keys)
        self._teller = Teller(target.address, progress)
        self._crossing = Crossing(source, target, keys, self._pasts, self._teller, at_once=at_once)

    async def plan(self, names: Sequence[AgentName]) -> Plan:
        """Look at both ends, change nothing. Raises ConfigurationError (the two are one log; their clocks), Unavailable."""
        return await Checks(self._source, self._target, self._pasts).plan(names)

    async def move(self, names: Iterable[AgentName]) -> Report:
        """Move the agents. Raises InvalidInput, and nothing is begun, where a plan finds problems; what goes wrong with one agent later is in its
        record, and holds up no other."""
        wanted = list(dict.fromkeys(names))
        plan = await self.plan(wanted)
        if plan.problems:
            more = f", and {len(plan.problems) - 1} more" if len(plan.problems) > 1 else ""
            raise InvalidInput(f"nothing was moved: {plan.problems[0]}{more}", problems=plan.problems)
        to = await identity(self._target.store)
        standing = {each.name: each for each in await records(self._source.store)}
        begun = []
        for name in wanted:
            record = TransferRecord(
                id=uuid7().hex,
                tenant=name.tenant,
                agent=name.agent,
                address=self._target.address,
                to=to,
                source=self._source.address,
                started_us=time.time_ns() // 1000,
            )
            begun.append(record)
        for start in range(0, len(begun), NOTES_AT_ONCE):
            page = begun[start : start + NOTES_AT_ONCE]
            await asyncio.gather(*(self._note(record, standing.get(record.name)) for record in page))
        return await self.go_on(begun)

    async def _note(self, record: TransferRecord, standing: TransferRecord | None) -> None:
        if standing is not None and standing.phase == "copying":
            raise Conflict(f"agent {record.agent!r} is being moved to {standing.address}", hint="`perdure transfer resume` goes on with it")
        await keep(self._source.store, record)

    async def go_on(self, begun: Sequence[TransferRecord]) -> Report:
        """Finish transfers that were begun, by this process or another one."""
        await self._source.vault.moves.tell()
        steps.reach("transfer.noted")
        self._teller.start(len(begun))
        await self._crossing.move(await self._ordered(begun))
        self._teller.tell()
        return self._teller.report

    async def _ordered(self, begun: Sequence[TransferRecord]) -> list[Turn]:
        """Each transfer after those that it goes on from, with what tells that these are over. Who waits has begun after who is waited for, so
        that nobody waits for a place that he himself has."""
        rows: dict[AgentName, AgentRecord] = {}
        for start in range(0, len(begun), limits.TRANSFER_LIST_PAGE):
            page = await self._source.store.agents([each.name for each in begun[start : start + limits.TRANSFER_LIST_PAGE]])
            rows.update((AgentName(row.tenant, row.agent), row) for row in page if row is not None)
        order = {name: place for place, name in enumerate(in_order(rows.values()))}
        over = {each.name: asyncio.Event() for each in begun}
        turns = []
        for each in sorted(begun, key=lambda each: order.get(each.name, 0)):
            line = line_of(rows[each.name]) if each.name in rows else set()
            turns.append(Turn(each, [over[name] for name in line if name in over], over[each.name], is_fork=bool(line)))
        return turns

    async def pending(self) -> list[TransferRecord]:
        """Transfers to this target that are not over: also those that were taken back while somebody else still went on, until that shows."""
        to = await identity(self._target.store)
        found = [each for each in await records(self._source.store) if each.phase in ("copying", "aborted") and each.to == to]
        begun = []
        for start in range(0, len(found), limits.TRANSFER_LIST_PAGE):
            page = found[start : start + limits.TRANSFER_LIST_PAGE]
            rows = await self._source.store.agents([each.name for each in page])
            shut = [row is not None and row.owner == owner_of(LEAVING, each.id) for row, each in zip(rows, page, strict=True)]
            begun += [each for each, is_shut in zip(page, shut, strict=True) if each.phase == "copying" or is_shut]
        return begun

    async def abort(self, begun: Sequence[TransferRecord], reason: str) -> list[TransferRecord]:
        """Take these transfers back. Raises Conflict where the target has committed, Unavailable."""
        return [await self._crossing.mover(record).abort(reason) for record in begun]
