"""What libraries warn of goes into a log once, then seldom; what perdure says always."""

from __future__ import annotations

import inspect
import logging

import pytest
from aiokafka.consumer import group_coordinator
from aiokafka.errors import GroupCoordinatorNotAvailableError, NotEnoughReplicasError

from perdure.cli import warnings
from perdure.cli.warnings import Repeats, thin_out


def record(name: str, template: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, template, values, None)


def test_a_library_that_repeats_itself_is_told_once_and_later_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1_000.0]
    monkeypatch.setattr(warnings.time, "monotonic", lambda: now_s[0])
    repeats = Repeats()
    passed = [repeats.filter(record("client.conn", "no way to node %s", number)) for number in range(500)]
    assert passed == [True] + [False] * 499
    assert repeats.filter(record("client.conn", "another thing"))
    now_s[0] += warnings.EVERY_S
    again = record("client.conn", "no way to node %s", 7)
    assert repeats.filter(again)
    assert again.getMessage() == "no way to node 7 (499 more of these meanwhile)"
    ours = [record("perdure.engine.relay", "lost partition %s", number) for number in range(20)]
    assert all(map(repeats.filter, ours))


def test_what_is_usual_when_kafka_is_new_is_told_only_if_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1_000.0]
    monkeypatch.setattr(warnings.time, "monotonic", lambda: now_s[0])
    logger = group_coordinator.log.name
    failed, dead = "Group Coordinator Request failed: %s", "Marking the coordinator dead (node %s)for group %s."
    source = "".join(inspect.getsource(group_coordinator).split())
    assert all(f'"{"".join(template.split())}"' in source.replace('""', "") for template in (failed, dead))
    repeats = Repeats()
    usual = [record(logger, failed, GroupCoordinatorNotAvailableError()), record(logger, dead, 1, "state")]
    for _ in range(20):
        assert not any(map(repeats.filter, usual))
        now_s[0] += warnings.START_S / 20
    lasting = record(logger, failed, GroupCoordinatorNotAvailableError())
    assert repeats.filter(lasting)
    assert lasting.getMessage().endswith("GroupCoordinatorNotAvailableError (20 more of these meanwhile)")
    assert repeats.filter(record(logger, dead, 1, "state"))
    # Another failure of the same request is trouble at once, and so is what another logger says.
    assert Repeats().filter(record(logger, failed, NotEnoughReplicasError()))
    assert Repeats().filter(record("aiokafka.conn", failed, GroupCoordinatorNotAvailableError()))


def test_what_is_remembered_has_a_bound() -> None:
    repeats = Repeats()
    for number in range(3 * warnings.KNOWN_MAX):
        assert repeats.filter(record("client", f"message {number}"))
    assert len(repeats._told) <= warnings.KNOWN_MAX


def test_it_is_installed_once() -> None:
    last = logging.lastResort
    assert last is not None
    before = list(last.filters)
    try:
        thin_out()
        thin_out()
        assert sum(isinstance(each, Repeats) for each in last.filters) == 1
        assert last.format(record("aiokafka.conn", "no way")) == "aiokafka.conn: no way"
    finally:
        last.setFormatter(None)
        last.filters[:] = before
