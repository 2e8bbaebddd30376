"""Real trajectories from file to agent, on an embedded log."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fix_command import Perdure

TAU = "tau-bench/gpt-4o-airline.json"


def test_a_real_file_becomes_agents_and_the_same_file_adds_nothing(perdure_command: Perdure, trajectories: Path) -> None:
    first = perdure_command("import", trajectories / TAU, "--tenant", "acme", "--json").json
    again = perdure_command("import", trajectories / TAU, "--tenant", "acme", "--json").json
    records = json.loads((trajectories / TAU).read_text())
    assert first["conversations"] == len(records)
    assert first["events_new"] >= sum(len(record["traj"]) for record in records)
    assert (again["events_new"], again["events_known"]) == (0, first["events_new"])
    assert perdure_command("verify", "--json").json["ok"] is True


def test_what_was_exported_can_be_imported_elsewhere(perdure_command: Perdure, trajectories: Path) -> None:
    perdure_command("import", trajectories / "who-and-when", "--json")
    exported = perdure_command("export").out
    there = ("--log", "sqlite:///./there")
    report = perdure_command("import", "-", "--format", "events", *there, "--json", stdin=exported).json
    assert report["events_new"] == len(exported.splitlines())
    agent = json.loads(exported.splitlines()[0])["agent"]
    here, copy = (perdure_command("show", agent, *words, "--json").json for words in ((), there))
    assert (copy["document"], copy["digest"]) == (here["document"], here["digest"])


def test_a_cut_off_file_says_where_and_leaves_no_half_agent(perdure_command: Perdure, trajectories: Path) -> None:
    whole = (trajectories / TAU).read_bytes()
    cut = perdure_command.folder / "cut.json"
    cut.write_bytes(whole[: len(whole) // 2])
    done = perdure_command("import", cut, "--json", code=1)
    assert done.error["code"] == "import_failed"
    assert str(cut) in done.error["message"]
    assert perdure_command("verify", "--json").json["ok"] is True
    skipped = perdure_command("import", cut, "--skip-bad", "--json").json
    assert len(skipped["broken"]) == 1


def test_a_file_that_is_not_there_is_one_line(perdure_command: Perdure) -> None:
    said = perdure_command("import", "nowhere.json", code=1).err.splitlines()
    assert "nowhere.json" in said[0]
    assert said[1] == "hint: look at its name, and whether it may be read"
