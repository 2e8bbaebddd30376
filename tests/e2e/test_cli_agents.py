"""An agent's life from the shell, on an embedded log."""

from __future__ import annotations

import signal

import pytest

from tests.fix_command import Perdure


def append(command: Perdure, *words: str, agent: str = "a", code: int = 0) -> None:
    command("append", agent, *words, code=code)


def test_an_appended_event_is_shown(perdure_command: Perdure) -> None:
    done = perdure_command("append", "a", "--type", "message_added", "--add", '/messages={"role":"user"}', "--json").json
    assert (done["version"], done["already"]) == (1, False)
    state = perdure_command("show", "a", "--json").json
    assert state["version"] == 1
    assert state["document"] == {"messages": [{"role": "user"}]}


def test_an_event_that_says_nothing_is_a_slip(perdure_command: Perdure) -> None:
    done = perdure_command("append", "a", stdin='{"status": "busy"}', code=2)
    assert done.err.startswith("perdure: what shall the event say?\nhint: --set")
    append(perdure_command, "--type", "seen")
    assert perdure_command("show", "a", "--json").json["version"] == 1


def test_a_rollback_wants_a_yes_and_says_what_it_does(perdure_command: Perdure) -> None:
    append(perdure_command, "--set", '/status="new"')
    append(perdure_command, "--set", '/status="busy"')
    assert perdure_command("rollback", "a", "1", code=2).err.splitlines()[0] == "perdure: this leads the agent back by an event"
    perdure_command("rollback", "a", "1", "--yes")
    assert perdure_command("show", "a", "--json").json["document"] == {"status": "new"}
    assert perdure_command("audit", "--json").json["entries"][0]["time"].endswith("Z")


def test_a_state_is_shown_as_it_was_at_a_version_and_at_a_time(perdure_command: Perdure) -> None:
    append(perdure_command, "--set", '/status="new"')
    append(perdure_command, "--set", '/status="busy"')
    first, second = perdure_command("log", "a", "--json").lines
    assert perdure_command("show", "a", "--at-version", "1", "--json").json["document"] == {"status": "new"}
    assert perdure_command("show", "a", "--at-time", first["time"], "--json").json["version"] == 1
    assert perdure_command("show", "a", "--at-time", second["time"], "--json").json["document"] == {"status": "busy"}


def test_log_filters_by_type_version_and_run(perdure_command: Perdure) -> None:
    for kind, run in (("thought", "r1"), ("tool_called", "r1"), ("thought", "r2")):
        append(perdure_command, "--type", kind, "--data", '"x"', "--correlation-id", run)
    versions = {
        words: [event["version"] for event in perdure_command("log", "a", *words, "--json").lines]
        for words in (("--type", "thought"), ("--correlation-id", "r1"), ("--from-version", "2"), ("--limit", "1"))
    }
    assert list(versions.values()) == [[1, 3], [1, 2], [2, 3], [1]]


def test_log_follow_shows_what_another_process_appends(perdure_command: Perdure) -> None:
    append(perdure_command, "--data", '"first"')
    follower = perdure_command.start("log", "a", "--follow")
    assert follower.stdout is not None
    assert "first" in follower.stdout.readline()
    append(perdure_command, "--data", '"second"')
    assert "second" in follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    out, err = follower.communicate(timeout=90)
    assert (follower.returncode, out, err) == (130, "", "")


def test_diff_and_blame_name_the_change_and_its_event(perdure_command: Perdure) -> None:
    append(perdure_command, "--set", "/plan=[1]")
    append(perdure_command, "--type", "plan_changed", "--set", "/plan=[1,2]")
    changes = perdure_command("diff", "a", "1", "2", "--json").json["changes"]
    assert changes
    assert all(change["path"].startswith("/plan") for change in changes)
    assert perdure_command("blame", "a", "/plan", "--json").json["type"] == "plan_changed"
    assert perdure_command("blame", "a", "/nothing", code=3).err.startswith("perdure: no event")


def test_an_expectation_that_does_not_hold_is_a_conflict(perdure_command: Perdure) -> None:
    append(perdure_command, "--data", "1", "--expected", "no-stream")
    append(perdure_command, "--data", "1", "--expected", "no-stream", code=4)
    append(perdure_command, "--data", "1", "--expected", "7", code=4)
    append(perdure_command, "--data", "1", "--expected", "1")


def test_the_same_event_id_again_changes_nothing(perdure_command: Perdure) -> None:
    words = ("append", "a", "--data", "1", "--id", "0190a000-0000-7000-8000-000000000001", "--json")
    assert perdure_command(*words).json["already"] is False
    assert perdure_command(*words).json["already"] is True
    assert perdure_command("show", "a", "--json").json["version"] == 1


def test_an_unknown_agent_and_an_unknown_version_are_not_found(perdure_command: Perdure) -> None:
    assert perdure_command("show", "a", "--json", code=2).error["code"] == "configuration"  # reading makes no log
    append(perdure_command, "--data", "1")
    assert perdure_command("show", "nobody", "--json", code=3).error["code"] == "agent_not_found"
    assert perdure_command("show", "a", "--at-version", "9", "--json", code=3).error["code"] == "version_not_found"


def test_tenants_do_not_see_each_other(perdure_command: Perdure) -> None:
    append(perdure_command, "--tenant", "one", "--data", "1")
    perdure_command("show", "a", "--tenant", "two", code=3)
    assert [row["agent"] for row in perdure_command("agents", "--tenant", "one", "--json").json["agents"]] == ["a"]
    assert perdure_command("agents", "--tenant", "two", "--json").json["agents"] == []
    assert perdure_command("agents", "--tenants", "--json").json["tenants"] == ["one"]


def test_input_that_is_not_json_is_refused_before_anything_is_stored(perdure_command: Perdure) -> None:
    append(perdure_command, "--set", "/a={", code=2)
    append(perdure_command, "--data", "{", code=2)
    append(perdure_command, "--set", "nothing", code=2)
    append(perdure_command, "--set", '/a={"b":1,"b":2}', code=2)
    append(perdure_command, "--set", '/a="\udcff"', code=2)
    perdure_command("init")
    perdure_command("show", "a", code=3)


def test_doctor_finds_an_embedded_engine_well_and_a_server_that_is_away(perdure_command: Perdure) -> None:
    perdure_command("init")
    assert perdure_command("doctor", "--json").json["ok"] is True
    away = perdure_command("doctor", "--log", "postgresql://perdure@127.0.0.1:9/x", "--json", code=6).json
    assert away["ok"] is False


@pytest.mark.parametrize(("flag", "url", "what"), [("--bus", "kafka://127.0.0.1:9", "bus"), ("--cache", "redis://127.0.0.1:9", "cache")])
def test_doctor_names_the_server_that_is_away(flag: str, url: str, what: str, perdure_command: Perdure) -> None:
    perdure_command("init")
    away = perdure_command("doctor", flag, url, "--json", code=6).json
    assert [finding["what"] for finding in away["findings"] if not finding["ok"]] == [what]


def test_init_without_the_bus_says_so_and_can_be_repeated(perdure_command: Perdure) -> None:
    assert perdure_command("init", "--bus", "kafka://127.0.0.1:9", "--json", code=6).error["code"] == "unavailable"
    assert perdure_command("init", "--json").json["ready"] is True
