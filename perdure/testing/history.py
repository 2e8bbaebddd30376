"""A checker of histories: what writers were told, held against what the log has.

It needs no keys and knows nothing of how the log works, so it can judge any build of it. It costs one pass over the log and one dictionary
entry an event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.log.chain import EMPTY_CHAIN, chain_hash
from perdure.engine.log.contract import LogStore
from perdure.engine.log.decide import FENCED, OWNED
from perdure.engine.log.records import SealedEvent

__all__ = ["Acknowledged", "HistoryReport", "check_history", "check_log_history"]

PROBLEMS_MAX = 100
"""Problems that are told one by one; all are counted."""


class Acknowledged(NamedTuple):
    """One event that a writer was told to be in the log. epoch: the ownership that the writer claimed, None when it claimed none."""

    tenant: str
    agent: str
    id: UUID
    version: int
    epoch: int | None = None


class HistoryReport(msgspec.Struct):
    """What a check found. problems: the first `PROBLEMS_MAX`, one line each."""

    events: int = 0
    acknowledged: int = 0
    agents: int = 0
    problem_count: int = 0
    problems: list[str] = msgspec.field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the log has all that was acknowledged, once and in its place, and contradicts itself nowhere."""
        return self.problem_count == 0

    def tell(self, problem: str) -> None:
        """Note a problem."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


class _Agent:
    """Where one agent stands as the check passes over its events."""

    __slots__ = ("chain", "epoch", "fenced", "places", "version")

    def __init__(self) -> None:
        self.version = 0
        self.epoch = 0
        self.chain = EMPTY_CHAIN
        self.fenced = False
        self.places: dict[UUID, tuple[int, int]] = {}


class _Check:
    """One pass over a log."""

    def __init__(self) -> None:
        self.report = HistoryReport()
        self._agents: dict[tuple[str, str], _Agent] = {}
        self._partitions: dict[int, tuple[int, int]] = {}

    def event(self, event: SealedEvent) -> None:
        """The next event; events of one partition come in the order in which the log hands them out."""
        self.report.events += 1
        where = f"partition {event.partition} offset {event.offset} (agent {event.agent!r} version {event.version})"
        self._place(event, where)
        agent = self._agents.setdefault((event.tenant, event.agent), _Agent())
        self._order(agent, event, where)
        self._ownership(agent, event, where)
        if event.id in agent.places:
            self.report.tell(f"{where}: event {event.id} stands twice, first at version {agent.places[event.id][0]}")
        agent.places.setdefault(event.id, (event.version, event.epoch))
        agent.version, agent.epoch, agent.chain, agent.fenced = event.version, event.epoch, event.chain, event.type == FENCED

    def _place(self, event: SealedEvent, where: str) -> None:
        offset, time_us = self._partitions.get(event.partition, (0, 0))
        if event.offset != offset + 1:
            self.report.tell(f"{where}: follows offset {offset}")
        if event.time_us < time_us:
            self.report.tell(f"{where}: its time goes back by {time_us - event.time_us} µs")
        self._partitions[event.partition] = (event.offset, event.time_us)

    def _order(self, agent: _Agent, event: SealedEvent, where: str) -> None:
        if event.version != agent.version + 1:
            self.report.tell(f"{where}: follows version {agent.version}")
        if event.chain != chain_hash(agent.chain, event.tenant, event.agent, event.version, event.epoch, event.time_us, event):
            self.report.tell(f"{where}: the chain breaks")

    def _ownership(self, agent: _Agent, event: SealedEvent, where: str) -> None:
        if event.epoch < agent.epoch:
            self.report.tell(f"{where}: epoch {event.epoch} after epoch {agent.epoch}")
        elif event.epoch != agent.epoch and event.type not in (OWNED, FENCED):
            self.report.tell(f"{where}: epoch {event.epoch} after epoch {agent.epoch}, and nobody took ownership")
        if agent.fenced and event.type not in (OWNED, FENCED):
            self.report.tell(f"{where}: written to a fenced agent")

    def acknowledgement(self, told: Acknowledged) -> None:
        """One acknowledgement, after all events."""
        self.report.acknowledged += 1
        agent = self._agents.get((told.tenant, told.agent))
        place = agent.places.get(told.id) if agent is not None else None
        what = f"event {told.id} of agent {told.agent!r}, acknowledged at version {told.version}"
        if place is None:
            self.report.tell(f"{what}, is not in the log")
        elif place[0] != told.version:
            self.report.tell(f"{what}, stands at version {place[0]}")
        elif told.epoch is not None and told.epoch != place[1]:
            self.report.tell(f"{what} to a writer of epoch {told.epoch}, was written under epoch {place[1]}")

    def done(self) -> HistoryReport:
        self.report.agents = len(self._agents)
        return self.report


def check_history(acknowledged: Iterable[Acknowledged], events: Iterable[SealedEvent]) -> HistoryReport:
    """Hold acknowledgements against the whole log; `events` are in order of their offsets within each partition."""
    check = _Check()
    for event in events:
        check.event(event)
    for told in acknowledged:
        check.acknowledgement(told)
    return check.done()


async def check_log_history(store: LogStore, acknowledged: Iterable[Acknowledged]) -> HistoryReport:
    """As `check_history`, of a store that nobody writes to meanwhile."""
    check = _Check()
    for partition in range(store.partitions):
        after = 0
        while page := await store.read(partition, after, limits.READ_PAGE_EVENTS):
            for event in page:
                check.event(event)
            after = page[-1].offset
    for told in acknowledged:
        check.acknowledgement(told)
    return check.done()
