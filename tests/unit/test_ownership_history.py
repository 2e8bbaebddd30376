"""The checker of hand-overs sees every fault that is put into a true history, and none in a true one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.decide import FENCED, OWNED
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.identifiers import uuid7
from perdure.testing.ownership_history import OwnershipReport, check_agent
from perdure.testing.prober import Outcome, Probing, count

NAME = AgentName("t", "probed")
NODES = ("first", "second")


class History:
    """A true history of one agent: two owners, fenced once, probed all the time; then it can be spoilt."""

    def __init__(self) -> None:
        self.events: list[RecordedEvent] = []
        self.probing = Probing(NAME)
        self.state: dict[str, Any] = {}
        self.epoch = 0
        self.owner = ""
        self.owned("first")
        self.probe(5)
        self.fenced()
        self.owned("second")
        self.probe(5)

    def add(self, event: Event, epoch: int) -> int:
        fields = {name: getattr(event, name) for name in Event.__struct_fields__}
        version = len(self.events) + 1
        place: dict[str, Any] = {
            "version": version,
            "epoch": epoch,
            "partition": 0,
            "offset": version,
            "time": datetime.now(UTC),
            "chain": bytes(32),
        }
        self.events.append(RecordedEvent(**fields, tenant=NAME.tenant, agent=NAME.agent, **place))
        return version

    def owned(self, owner: str) -> None:
        self.epoch += 1
        self.owner = owner
        self.add(Event(OWNED, data={"owner": owner}), self.epoch)

    def fenced(self) -> None:
        self.epoch += 1
        self.add(Event(FENCED), self.epoch)

    def probe(self, times: int = 1, outcome: Outcome = Outcome.ACCEPTED) -> UUID:
        for _ in range(times):
            (event,) = count(self.state, None)
            self.state = {"count": event.data["count"], "last": None}
            sent_s = float(len(self.events))
            version = self.add(event, self.epoch)
            number = self.probing.begin(event.id, sent_s, sent_s)
            self.probing.end(number, sent_s + 0.5, outcome, version, self.epoch)
        return event.id

    def change(self, version: int, **changes: Any) -> None:
        self.events[version - 1] = msgspec.structs.replace(self.events[version - 1], **changes)

    def check(self, **changes: Any) -> OwnershipReport:
        record = AgentRecord(*NAME, 1, 1, 0, self.owner, self.epoch, "", {}, b"key", 0)
        return check_agent(self.probing, self.events, msgspec.structs.replace(record, **changes), nodes=NODES, served=self.state)


def test_a_true_history_holds() -> None:
    history = History()
    history.probe(outcome=Outcome.UNKNOWN)  # written, though nobody was told
    history.probing.begin(uuid7(), 1.0, 1.0)  # neither written nor answered
    report = history.check()
    assert report.holds, report.problems
    assert (report.events, report.acknowledged, report.owners, report.lost, report.doubled) == (14, 10, 2, 0, 0)


def lost(history: History) -> None:
    number = history.probing.begin(uuid7(), 99.0, 99.0)
    history.probing.end(number, 99.5, Outcome.ACCEPTED, 99, history.epoch)


def another_version(history: History) -> None:
    history.probing.end(0, 0.5, Outcome.ACCEPTED, 3, 1)


def another_epoch(history: History) -> None:
    history.probing.end(0, 0.5, Outcome.ACCEPTED, 2, 2)


def twice_by_id(history: History) -> None:
    history.change(13, id=history.events[11].id)


def twice_in_effect(history: History) -> None:
    history.change(13, data={"count": 9})


def decided_on_another_state(history: History) -> None:
    history.change(13, data={"count": 40})


def refused_and_written(history: History) -> None:
    history.probe(outcome=Outcome.REFUSED)


def behind_what_came_later(history: History) -> None:
    history.probing.end(9, 3.0, Outcome.ACCEPTED, 13, 3)


def an_epoch_goes_back(history: History) -> None:
    history.change(13, epoch=1)


def an_epoch_that_nobody_took(history: History) -> None:
    history.change(13, epoch=4)


def a_gap(history: History) -> None:
    del history.events[-2]


def written_behind_the_fence(history: History) -> None:
    history.fenced()
    history.probe()


def still_fenced(history: History) -> None:
    history.fenced()


def an_owner_without_an_epoch(history: History) -> None:
    history.epoch -= 1
    history.owned("first")


def another_state(history: History) -> None:
    history.state["last"] = "something"


@pytest.mark.parametrize(
    ("spoil", "tells"),
    [
        (lost, "is not in the log"),
        (another_version, "stands at version 2"),
        (another_epoch, "under epoch 1"),
        (twice_by_id, "stands twice"),
        (twice_in_effect, "counts 9 after 9"),
        (decided_on_another_state, "counts 40 after 9"),
        (refused_and_written, "though it was REFUSED"),
        (behind_what_came_later, "stands behind a command"),
        (an_epoch_goes_back, "under epoch 1 after epoch 3"),
        (an_epoch_that_nobody_took, "under epoch 4 after epoch 3"),
        (a_gap, "follows version 11"),
        (written_behind_the_fence, "written to a fenced agent"),
        (still_fenced, "fenced, and owned by nobody"),
        (an_owner_without_an_epoch, "perdure.owned under epoch 3 after epoch 3"),
        (another_state, "not the fold"),
    ],
    ids=lambda given: given.__name__ if callable(given) else "",
)
def test_a_fault_is_seen(spoil: Callable[[History], None], tells: str) -> None:
    history = History()
    spoil(history)
    report = history.check()
    assert not report.holds
    assert any(tells in problem for problem in report.problems), report.problems


def test_what_is_lost_and_doubled_is_counted() -> None:
    history = History()
    lost(history)
    twice_in_effect(history)
    report = history.check()
    assert (report.lost, report.doubled) == (1, 1)


@pytest.mark.parametrize(
    "record", [{"owner": "first"}, {"epoch": 2}, {"owner": "", "epoch": 3}], ids=["another owner", "another epoch", "no owner"]
)
def test_a_record_that_contradicts_the_log_is_seen(record: dict[str, Any]) -> None:
    assert not History().check(**record).holds


def test_an_owner_that_does_not_live_is_seen() -> None:
    history = History()
    history.owned("a dead node")
    assert any("none of the nodes" in problem for problem in history.check().problems)
