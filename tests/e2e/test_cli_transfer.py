"""Moving agents to another engine from the shell, and back."""

from __future__ import annotations

from tests.fix_command import Perdure

INVALID, NOT_FOUND, MOVED = 2, 3, 4


def test_agents_move_to_another_engine_and_come_back(perdure_command: Perdure) -> None:
    run = perdure_command
    run("init")
    run("init", "--log", "sqlite:///there")
    for agent in ("alice", "bob"):
        run("append", agent, "--type", "noted", "--set", "/note=1")
    to = ("--to-log", "sqlite:///there")
    there = ("--log", "sqlite:///there")
    missing = run("transfer", "plan", "--to-log", "sqlite:///nowhere", "--json", code=INVALID).error
    assert missing["hint"].startswith("check --to-log")  # not PERDURE_LOG, which is another engine's
    no_key = run("transfer", "plan", "--to-log", "postgresql://127.0.0.1:1/there", "--json", code=INVALID).error
    assert "--to-keys" in no_key["hint"]
    assert run("transfer", "plan", *to, "--json").json["agents"] == 2
    done = run("transfer", "run", "--agents", "alice", *to, "--address", "there.example", "--json").json
    assert (done["moved"], done["failed"]) == (1, 0)
    assert run("show", "alice", "--json", code=MOVED).error["address"] == "there.example"
    assert run("transfer", "forward", "alice").out.strip() == "there.example"
    assert run("show", "alice", *there, "--json").json["document"] == {"note": 1}
    assert run("show", "bob", *there, code=NOT_FOUND).out == ""
    # Who went away is none of all: what is done every day does not fail for ever.
    assert run("snapshot", "create", "--all", "--json").json["made"] == 1
    assert run("transfer", "resume", *to, "--json").json["agents"] == 0
    assert run("transfer", "abort", *to, "--json").json["aborted"] == []
    assert "dry-run" not in run("transfer", "erase", "--agents", "alice", "--json", code=INVALID).error["hint"]
    again = run("transfer", "run", "--agents", "alice", *to, "--json", code=INVALID).error
    assert "it has moved away" in again["message"]
    assert run("transfer", "erase", "--agents", "alice", "--yes", "--json").json["erased"][0]["phase"] == "erased"
    assert run("verify", "--json").json["ok"]
    assert "1 of 1 agents" in run("transfer", "run", *there, "--to-log", "sqlite:///./perdure-state").out
    # Right wherever it is read: not as it was written for this folder.
    back = f"sqlite:///{run.folder}/perdure-state"
    assert run("transfer", "forward", "alice", *there).out.strip() == back
    assert run("show", "alice", *there, "--json", code=MOVED).error["address"] == back
    assert run("show", "alice", "--json").json["document"] == {"note": 1}
    assert [each["phase"] for each in run("transfer", "list", "--json").json["transfers"]] == ["returned"]
    assert run("verify", "--json").json["ok"]
    assert run("transfer", "run", "--to-log", "sqlite:///./perdure-state", code=INVALID).out == ""
