"""Many agents from one engine to another: look first, tell everybody, then so many at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.contract import AgentName, AgentRecord
from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.marks import LEAVING, LEFT_OVER, MOVED, mark_of, owner_of
from perdure.errors import ConfigurationError, Conflict, InvalidInput, LimitExceeded, PerdureError
from perdure.identifiers import uuid7
from perdure.migration.transfer.inheritance import Inheritance
from perdure.migration.transfer.mover import Mover, check_movable
from perdure.migration.transfer.records import TransferRecord, identity, keep, records
from perdure.migration.transfer.sides import Side
from perdure.recovery.journal import SYSTEM_TENANT

__all__ = ["Plan", "Progress", "Report", "Run", "names_of"]

Progress = Callable[["Report"], None]
RETRIES_MAX = 5
RETRY_PAUSE_S = 1.0
NOTES_AT_ONCE = 16


class Plan(msgspec.Struct, frozen=True):
    """What a run would do. to: the target's address. problems: what stands in the way, by agent, the first ones; nothing is begun then."""

    to: str
    agents: int
    events: int
    problems: list[str]


class Report(msgspec.Struct):
    """What a run has done so far. records: of agents that it is over with, the first ones. downtime_ms: of each agent that was moved, ascending."""

    to: str
    agents: int
    moved: int = 0
    failed: int = 0
    events: int = 0
    bytes: int = 0
    duration_s: float = 0.0
    downtime_ms: list[float] = msgspec.field(default_factory=list)
    records: list[TransferRecord] = msgspec.field(default_factory=list)


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
        self._turn = asyncio.Semaphore(at_once)
        self._progress = progress
        self._keys = Inheritance(source, target)
        self._told_s = 0.0
        self._started_s = 0.0
        self._report = Report(target.address, 0)

    async def plan(self, names: Sequence[AgentName]) -> Plan:
        """Look at both ends, change nothing. Raises ConfigurationError (the two are one log; their clocks), Unavailable."""
        await self._check_ends()
        problems: list[str] = []
        events = 0
        for start in range(0, len(names), limits.TRANSFER_LIST_PAGE):
            page = names[start : start + limits.TRANSFER_LIST_PAGE]
            rows = await self._source.store.agents(page)
            there = await self._target.store.agents(page)
            found = [row for row in rows if row is not None]
            events += sum(head.version for head in await self._source.store.heads(found)) if found else 0
            floors = {row.agent_key: floor for row, floor in zip(found, await self._source.store.floors(found), strict=True)}
            for name, row, heir in zip(page, rows, there, strict=True):
                problem = await self._problem(row, heir, floors.get(row.agent_key) if row is not None else None)
                if problem:
                    problems.append(f"{name.tenant}/{name.agent}: {problem}")
        return Plan(self._target.address, len(names), events, problems[: limits.TRANSFER_REPORT_MAX])

    async def _check_ends(self) -> None:
        if await identity(self._source.store) == await identity(self._target.store):
            raise ConfigurationError("source and target are the same log", hint="name another engine to move to")
        # Asked in turn, so that a slow answer is not taken for a slow clock.
        before_us, there_us, after_us = [await side.store.clock_us() for side in (self._source, self._target, self._source)]
        apart_s = max(before_us - there_us, there_us - after_us) / 1e6
        if apart_s > limits.TRANSFER_CLOCKS_APART_S:
            raise ConfigurationError(f"the clocks of the two engines are {apart_s:.1f} s apart", hint="set them, e.g. with NTP")

    async def _problem(self, row: AgentRecord | None, heir: AgentRecord | None, floor: Floor | None) -> str:
        if row is None:
            return "there is no such agent"
        if not row.data_key:
            return "its key was destroyed"
        if mark_of(row.owner) is not None:
            return f"it is {row.owner.partition('/')[2]}"
        try:
            check_movable(row)
            await self._source.vault.ring.unwrap_material(row.tenant, row.agent, row.data_key)
        except PerdureError as problem:
            if problem.retryable:
                raise
            return problem.message
        mark = None if heir is None else mark_of(heir.owner)
        if heir is not None and (mark is None or mark.kind not in (MOVED, LEFT_OVER)):
            return "the target has an agent of this name"
        if floor is not None and floor.version > 1 and (self._source.shelf is None or self._target.shelf is None):
            return "its first events were removed, and an engine has no store of snapshots"
        return ""

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
        self._told_s = self._started_s = time.monotonic()
        self._report.agents = len(begun)
        async with asyncio.TaskGroup() as group:
            for record in begun:
                await self._turn.acquire()
                group.create_task(self._one(record)).add_done_callback(lambda _: self._turn.release())
        self._tell()
        return self._report

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
        return [await self._mover(record).abort(reason) for record in begun]

    async def _one(self, record: TransferRecord) -> None:
        try:
            done = await self._persistently(record)
        except PerdureError as problem:
            self._report.failed += 1
            done = await self._give_up(record, problem)
        else:
            self._report.moved += 1
            self._report.downtime_ms.append(done.downtime_us / 1e3)
            self._report.downtime_ms.sort()
        if len(self._report.records) < limits.TRANSFER_REPORT_MAX:
            self._report.records.append(done)
        self._tell()

    async def _persistently(self, record: TransferRecord) -> TransferRecord:
        """A server that is away for a moment is waited for: the agent may be shut at this time."""
        for attempt in range(RETRIES_MAX):
            try:
                return await self._mover(record).run()
            except PerdureError as problem:
                if not problem.retryable or attempt == RETRIES_MAX - 1:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S * (attempt + 1))
        raise AssertionError("the last attempt returns or raises")

    async def _give_up(self, record: TransferRecord, problem: PerdureError) -> TransferRecord:
        """What cannot be is taken back; what may come later is left for `resume`."""
        reason = f"{problem.code}: {problem.message}"
        if not problem.retryable:
            try:
                return await self._mover(record).abort(reason)
            except PerdureError as second:
                reason = f"{reason}; and it could not be taken back: {second.message}"
        left = msgspec.structs.replace(record, problem=reason)
        return left

    def _mover(self, record: TransferRecord) -> Mover:
        return Mover(self._source, self._target, record, self._keys, self._wait_until_known, progress=self._count)

    async def _wait_until_known(self) -> None:
        """Twice what a process may go without looking at the notices."""
        await asyncio.sleep(max(0.0, self._told_s + 2 * limits.MOVES_FRESH_S - time.monotonic()))

    def _count(self, events: int, bytes: int) -> None:
        self._report.events += events
        self._report.bytes += bytes
        self._tell()

    def _tell(self) -> None:
        self._report.duration_s = time.monotonic() - self._started_s
        if self._progress is not None:
            self._progress(self._report)
