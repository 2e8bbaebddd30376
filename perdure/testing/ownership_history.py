"""A checker of hand-overs: what probers were told of their agents, held against the log, however often the agents changed their owner.

It goes beyond `perdure.testing.history` (which judges the log by itself: versions, chain, epochs, fences, and that nothing acknowledged is lost)
by what one agent's readable events tell together with times: one pass over the log, one dictionary entry an event.

Invariants that it holds an agent to:

1. Every accepted command is in the log once, at the version and under the epoch that its caller was told. What was refused is not there.
2. Each event was decided on the state that its predecessor left: the counts of `prober.count` follow each other without a gap.
3. What was answered before something else was sent stands before it (real time).
4. Every epoch has one owner, and each change of owner makes the next epoch. The record names the last of them, a node that lives; no fence is left.
5. The fold of the log, made here from nothing, is the state that the agent is served with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from perdure.engine.digest import digest
from perdure.engine.event import RecordedEvent
from perdure.engine.fold import apply
from perdure.engine.log.decide import FENCED, OWNED
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.testing.history import Acknowledged, HistoryReport, check_log_history
from perdure.testing.prober import Outcome, Probe, Probing

__all__ = ["OwnershipReport", "check_agent", "check_ownership"]

NOBODY: Final = -1.0


class OwnershipReport(HistoryReport):
    """lost: accepted, and not in the log. doubled: in the log, or in effect, more than once. owners: changes of ownership."""

    lost: int = 0
    doubled: int = 0
    owners: int = 0

    def add(self, other: HistoryReport) -> None:
        """Take in another report on the same log."""
        self.problem_count += other.problem_count
        self.problems += other.problems


class _Agent:
    """One pass over an agent's events."""

    def __init__(self, probes: Mapping[UUID, Probe], report: OwnershipReport) -> None:
        self.report = report
        self.document: dict[str, Any] = {}
        self.version = self.epoch = self.count = 0
        self.owner = ""
        self.fenced = False
        self._probes = probes
        self._places: dict[UUID, RecordedEvent] = {}
        self._sent_s = NOBODY

    def event(self, event: RecordedEvent) -> None:
        where = f"agent {event.agent!r} version {event.version}"
        self.report.events += 1
        if event.version != self.version + 1:
            self.report.tell(f"{where}: follows version {self.version}")
        if event.id in self._places:
            self.report.doubled += 1
            self.report.tell(f"{where}: event {event.id} stands twice, first at version {self._places[event.id].version}")
        self._places.setdefault(event.id, event)
        self._ownership(event, where)
        self._counted(event, where)
        self._in_time(event, where)
        self.document, _ = apply(self.document, event.changes)
        self.version = event.version

    def _ownership(self, event: RecordedEvent, where: str) -> None:
        settles = event.type in (OWNED, FENCED)
        if event.epoch != self.epoch + settles:
            self.report.tell(f"{where}: {event.type} under epoch {event.epoch} after epoch {self.epoch}")
        if self.fenced and not settles:
            self.report.tell(f"{where}: written to a fenced agent")
        if event.type == OWNED:
            self.report.owners += 1
            self.owner = event.data["owner"]
        self.epoch = max(self.epoch, event.epoch)
        self.fenced = event.type == FENCED or (self.fenced and event.type != OWNED)

    def _counted(self, event: RecordedEvent, where: str) -> None:
        counted = event.data.get("count") if event.type == "probed" and isinstance(event.data, dict) else None
        if counted is None:
            return
        if counted <= self.count:
            self.report.doubled += 1
        if counted != self.count + 1:
            self.report.tell(f"{where}: counts {counted} after {self.count}: decided on another state than the log's")
        self.count = counted

    def _in_time(self, event: RecordedEvent, where: str) -> None:
        probe = self._probes.get(event.id)
        if probe is None:
            return
        if probe.outcome in (Outcome.REFUSED, Outcome.NOT_SENT):
            self.report.tell(f"{where}: in the log, though it was {probe.outcome.name}")
        if probe.answered_s < self._sent_s:
            late_s = self._sent_s - probe.answered_s
            self.report.tell(f"{where}: stands behind a command that was sent {late_s:.6f} s after this one was answered")
        self._sent_s = max(self._sent_s, probe.sent_s)

    def acknowledgement(self, told: Acknowledged) -> None:
        self.report.acknowledged += 1
        event = self._places.get(told.id)
        what = f"event {told.id} of agent {told.agent!r}, accepted at version {told.version} under epoch {told.epoch}"
        if event is None:
            self.report.lost += 1
            self.report.tell(f"{what}, is not in the log")
        elif (event.version, event.epoch) != (told.version, told.epoch):
            self.report.tell(f"{what}, stands at version {event.version} under epoch {event.epoch}")

    def end(self, record: AgentRecord, nodes: Collection[str]) -> None:
        """Exactly one owner, as the last event says it."""
        who = f"agent {record.agent!r}"
        if self.fenced:
            self.report.tell(f"{who}: fenced, and owned by nobody")
        if (record.owner, record.epoch) != (self.owner, self.epoch):
            stands = f"owner {record.owner!r}, epoch {record.epoch}"
            self.report.tell(f"{who}: its record says {stands}; its events say owner {self.owner!r}, epoch {self.epoch}")
        if record.owner not in nodes:
            self.report.tell(f"{who}: owner {record.owner!r} is none of the nodes that live")


def check_agent(
    probing: Probing,
    events: Iterable[RecordedEvent],
    record: AgentRecord,
    *,
    nodes: Collection[str],
    served: Mapping[str, Any] | None = None,
) -> OwnershipReport:
    """Judge one agent by all its events in order. nodes: those that live. served: the state as its owner shows it."""
    report = OwnershipReport(agents=1)
    agent = _Agent({probe.id: probe for probe in probing}, report)
    for event in events:
        agent.event(event)
    for told in probing.acknowledged():
        agent.acknowledgement(told)
    agent.end(record, nodes)
    if served is not None and digest(served) != digest(agent.document):
        report.tell(f"agent {record.agent!r}: what it is served with is not the fold of its {agent.version} events")
    return report


async def check_ownership(
    log: EventLog, records: Iterable[Probing], *, nodes: Collection[str], served: Mapping[AgentName, Mapping[str, Any]] | None = None
) -> OwnershipReport:
    """Judge the whole log by `check_log_history` and each probed agent by `check_agent`, when nobody writes any more."""
    records = list(records)
    total = OwnershipReport(agents=len(records))
    total.add(await check_log_history(log.store, (told for each in records for told in each.acknowledged())))
    for probing in records:
        (record,) = await log.store.agents([probing.name])
        if record is None:
            total.tell(f"agent {probing.name.agent!r} is not in the log")
            continue
        events = [event async for event in log.stream_events(probing.name)]
        found = check_agent(probing, events, record, nodes=nodes, served=(served or {}).get(probing.name))
        total.add(found)
        total.events += found.events
        total.acknowledged += found.acknowledged
        total.lost += found.lost
        total.doubled += found.doubled
        total.owners += found.owners
    return total
