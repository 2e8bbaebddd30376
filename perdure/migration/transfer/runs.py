"""Many agents from one engine to another: look first, tell everybody, then so many at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.log.contract import AgentName, AgentRecord
from perdure.engine.log.marks import LEAVING, mark_of, owner_of
from perdure.errors import Compacted, Conflict, InvalidInput, LimitExceeded, PerdureError
from perdure.identifiers import uuid7
from perdure.migration.transfer.checks import Checks, Plan
from perdure.migration.transfer.clocks import Clock
from perdure.migration.transfer.inheritance import Inheritance
from perdure.migration.transfer.mover import Mover
from perdure.migration.transfer.pasts import Pasts, in_order, line_of
from perdure.migration.transfer.records import TransferRecord, identity, keep, records
from perdure.migration.transfer.route import Route
from perdure.migration.transfer.sides import Side
from perdure.recovery.journal import SYSTEM_TENANT

__all__ = ["Plan", "Progress", "Report", "Run", "names_of"]

Progress = Callable[["Report"], None]
Done = dict[AgentName, asyncio.Event]
RETRIES_MAX = 5
RETRY_PAUSE_S = 1.0
NOTES_AT_ONCE = 16


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
        keys = Inheritance(source, target)
        self._pasts = Pasts(source, target, keys)
        clock = Clock(target.store.clock_us)
        self._route = Route(source, target, keys, self._pasts, clock, self._wait_until_known, progress=self._count)
        self._told_s = 0.0
        self._started_s = 0.0
        self._report = Report(target.address, 0)

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
        self._told_s = self._started_s = time.monotonic()
        self._report.agents = len(begun)
        records, done = await self._ordered(begun)
        async with asyncio.TaskGroup() as group:
            for record, after in records:
                await self._turn.acquire()
                group.create_task(self._one(record, after, done[record.name])).add_done_callback(lambda _: self._turn.release())
        self._tell()
        return self._report

    async def _ordered(self, begun: Sequence[TransferRecord]) -> tuple[list[tuple[TransferRecord, list[asyncio.Event]]], Done]:
        """Each transfer after those that it goes on from, with what tells that these are over. Who waits has begun after who is waited for, so
        that nobody waits for a turn that he himself has."""
        rows: dict[AgentName, AgentRecord] = {}
        for start in range(0, len(begun), limits.TRANSFER_LIST_PAGE):
            page = await self._source.store.agents([each.name for each in begun[start : start + limits.TRANSFER_LIST_PAGE]])
            rows.update((AgentName(row.tenant, row.agent), row) for row in page if row is not None)
        order = {name: place for place, name in enumerate(in_order(rows.values()))}
        done = {each.name: asyncio.Event() for each in begun}
        sorted_ = sorted(begun, key=lambda each: order.get(each.name, 0))
        after = [[done[name] for name in line_of(rows[each.name]) if name in done] if each.name in rows else [] for each in sorted_]
        return list(zip(sorted_, after, strict=True)), done

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

    async def _one(self, record: TransferRecord, after: Sequence[asyncio.Event], over: asyncio.Event) -> None:
        for each in after:
            await each.wait()
        try:
            done = await self._persistently(record)
        except PerdureError as problem:
            self._report.failed += 1
            done = await self._give_up(record, problem)
        else:
            self._report.moved += 1
            self._report.downtime_ms.append(done.downtime_us / 1e3)
            self._report.downtime_ms.sort()
        over.set()
        if len(self._report.records) < limits.TRANSFER_REPORT_MAX:
            self._report.records.append(done)
        self._tell()

    async def _persistently(self, record: TransferRecord) -> TransferRecord:
        """A server that is away for a moment is waited for: the agent may be shut at this time."""
        for attempt in range(RETRIES_MAX):
            try:
                return await self._mover(record).run()
            except PerdureError as problem:
                # Events that were removed while they were copied: the next attempt begins behind them.
                if not (problem.retryable or isinstance(problem, Compacted)) or attempt == RETRIES_MAX - 1:
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
        return Mover(self._route, record)

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
