"""The history checker reports each way in which a log can disagree with what was acknowledged, and nothing of a sound one."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import msgspec
import pytest

from perdure.engine.log.chain import EMPTY_CHAIN, chain_hash
from perdure.engine.log.decide import FENCED, OWNED
from perdure.engine.log.records import SealedEvent
from perdure.testing.history import PROBLEMS_MAX, Acknowledged, check_history

Log = list[SealedEvent]
TYPES = ("noted", "noted", OWNED, "noted", FENCED, OWNED, "noted")
EPOCHS = (0, 0, 1, 1, 1, 2, 2)


def event(version: int, type: str, epoch: int, chain: bytes) -> SealedEvent:
    bare = SealedEvent(
        "t", "a", 1, 1, 0, version, version, epoch, UUID(int=version), type, version * 10, None, None, None, None, None, b"", b"sealed"
    )
    return msgspec.structs.replace(bare, chain=chain_hash(chain, "t", "a", version, epoch, version * 10, bare))


def chained(log: Log) -> Log:
    """The same events, with the chain that they would have."""
    chain, done = EMPTY_CHAIN, []
    for each in log:
        chain = chain_hash(chain, each.tenant, each.agent, each.version, each.epoch, each.time_us, each)
        done.append(msgspec.structs.replace(each, chain=chain))
    return done


def sound() -> Log:
    log: Log = []
    for number, (type, epoch) in enumerate(zip(TYPES, EPOCHS, strict=True)):
        log.append(event(number + 1, type, epoch, log[-1].chain if log else EMPTY_CHAIN))
    return log


def told(log: Log) -> list[Acknowledged]:
    return [Acknowledged(each.tenant, each.agent, each.id, each.version, each.epoch) for each in log if each.type == "noted"]


def changed(number: int, **fields: object) -> Callable[[Log], Log]:
    return lambda log: chained([*log[:number], msgspec.structs.replace(log[number], **fields), *log[number + 1 :]])


def test_a_sound_log_has_no_problem() -> None:
    log = sound()
    report = check_history(told(log) * 2, log)
    assert report.holds, report.problems
    assert (report.events, report.agents, report.acknowledged) == (7, 1, 8)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda log: log[:-1], "is not in the log"),
        (lambda log: [*log[:1], *log[2:]], "follows offset 1"),
        (changed(1, offset=3), "follows offset 1"),
        (changed(1, time_us=1), "its time goes back by 9"),
        (changed(1, version=3), "follows version 1"),
        (changed(1, id=UUID(int=1)), "stands twice, first at version 1"),
        (lambda log: [*log[:1], msgspec.structs.replace(log[1], payload=b"other"), *log[2:]], "the chain breaks"),
        (lambda log: [*log[:1], log[2], log[1], *log[3:]], "the chain breaks"),
        (changed(6, epoch=1), "epoch 1 after epoch 2"),
        (changed(6, epoch=3), "nobody took ownership"),
        (changed(5, type="noted", epoch=1), "written to a fenced agent"),
    ],
)
def test_a_damaged_log_is_reported(damage: Callable[[Log], Log], problem: str) -> None:
    log = sound()
    report = check_history(told(log), damage(log))
    assert not report.holds
    assert any(problem in each for each in report.problems), report.problems


def test_an_acknowledgement_at_another_version_or_epoch_is_reported() -> None:
    log = sound()
    wrong = [Acknowledged("t", "a", log[0].id, 2), Acknowledged("t", "a", log[6].id, 7, epoch=1), Acknowledged("t", "b", log[0].id, 1)]
    report = check_history(wrong, log)
    assert [each.rpartition(", ")[2] for each in report.problems] == [
        "stands at version 1",
        "was written under epoch 2",
        "is not in the log",
    ]


def test_problems_are_all_counted_and_the_first_are_told() -> None:
    missing = [Acknowledged("t", "a", UUID(int=number), 1) for number in range(PROBLEMS_MAX + 5)]
    report = check_history(missing, [])
    assert (report.problem_count, len(report.problems)) == (PROBLEMS_MAX + 5, PROBLEMS_MAX)
