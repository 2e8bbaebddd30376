"""What a run of transfers tells as it goes on, and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from perdure import limits
from perdure.migration.transfer.records import TransferRecord

__all__ = ["Progress", "Report", "Teller"]

Progress = Callable[["Report"], None]


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


class Teller:
    """Keeps a report. progress: called with it as it goes on."""

    def __init__(self, to: str, progress: Progress | None) -> None:
        self.report = Report(to, 0)
        self._progress = progress
        self._started_s = time.monotonic()

    def start(self, agents: int) -> None:
        """So many agents are on their way from now on."""
        self._started_s = time.monotonic()
        self.report.agents = agents

    def copied(self, events: int, bytes: int) -> None:
        """A page was put in."""
        self.report.events += events
        self.report.bytes += bytes
        self.tell()

    def over(self, record: TransferRecord, *, moved: bool) -> None:
        """An agent has moved, or stays."""
        report = self.report
        if moved:
            report.moved += 1
            report.downtime_ms.append(record.downtime_us / 1e3)
            report.downtime_ms.sort()
        else:
            report.failed += 1
        if len(report.records) < limits.TRANSFER_REPORT_MAX:
            report.records.append(record)
        self.tell()

    def tell(self) -> None:
        """How far it is."""
        self.report.duration_s = time.monotonic() - self._started_s
        if self._progress is not None:
            self._progress(self.report)
