"""What libraries warn of goes into a log once, then seldom; what perdure says always."""

from __future__ import annotations

import logging

import pytest

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
