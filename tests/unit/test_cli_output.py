"""How the command prints for people: one and many, tables, and what a terminal has room for."""

from __future__ import annotations

import sys

import pytest

from perdure.cli.failures import report
from perdure.cli.output import amount, room, share_saved, table
from perdure.cli.render import change_line
from perdure.engine.changes import set_value
from perdure.errors import Unavailable

ROWS = [("a", "short"), ("an-agent-with-a-longer-name", "x" * 90)]


@pytest.fixture
def _narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")


def test_one_is_one_and_all_others_are_many() -> None:
    assert [amount(number, "agent") for number in (0, 1, 2, 12_345)] == ["0 agents", "1 agent", "2 agents", "12 345 agents"]


def test_what_grows_saves_nothing() -> None:
    assert [share_saved(share) for share in (0.84, 0.0, -2.81)] == ["84%", "none", "none"]


def test_what_is_piped_is_whole_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert table(("AGENT", "LABELS"), ROWS).splitlines()[2].endswith("x" * 90)
    assert room(50, 100) == 100


@pytest.mark.usefixtures("_narrow_terminal")
def test_on_a_terminal_the_last_column_ends_where_it_does() -> None:
    lines = table(("AGENT", "LABELS"), ROWS).splitlines()
    assert lines[2].startswith("an-agent-with-a-longer-name  xxx")
    assert (len(lines[2]), lines[2][-1]) == (80, "…")
    assert lines[1].split() == ["a", "short"]
    assert len(change_line(set_value("/status", "y" * 200))) == 80


@pytest.mark.usefixtures("_narrow_terminal")
def test_a_short_last_column_is_never_cut() -> None:
    times = [("x" * 70, "2026-11-22T03:40:22.742273Z")]
    assert table(("AGENT", "TIME"), times).endswith("2026-11-22T03:40:22.742273Z")


def test_what_failed_in_a_group_of_tasks_is_told_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    nested = ExceptionGroup("tasks", [ExceptionGroup("of a task", [Unavailable("the server is away", hint="start it")])])
    assert report(nested, as_json=False) == Unavailable.exit_code
    assert capsys.readouterr().err == "perdure: the server is away\nhint: start it\n"
