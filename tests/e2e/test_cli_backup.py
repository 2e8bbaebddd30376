"""Backups as an operator meets them: how fresh they are, in words and figures."""

from __future__ import annotations

from pathlib import Path

from tests.fix_command import Perdure


def test_status_and_doctor_tell_what_would_be_lost(perdure_command: Perdure, tmp_path: Path) -> None:
    perdure_command("init")
    perdure_command("append", "a", "--type", "said", "--set", "/said=1")
    to = f"file://{tmp_path}/backups"
    told = perdure_command("backup", "status", "--to", to, "--json").json
    assert (told["newest"], told["lag_events"], told["lag_s"], told["alarm"]) == ("", 1, None, False)
    assert told["rpo_s"] > 0
    assert [each for each in (tmp_path / "backups").rglob("*") if each.is_file()] == [], "looking writes nothing"
    perdure_command("backup", "create", "--to", to)
    assert "every event is in it" in perdure_command("backup", "status", "--to", to).out
    findings = {each["what"]: each for each in perdure_command("doctor", "--backup", to, "--json").json["findings"]}
    assert findings["backup"]["ok"] is True
    assert "every event is in it" in findings["backup"]["says"]


def test_a_log_that_was_restored_into_a_folder_says_which_key_opens_it(perdure_command: Perdure, tmp_path: Path) -> None:
    perdure_command("append", "a", "--set", "/said=1")
    perdure_command("snapshot", "create", "a")
    to, there = f"file://{tmp_path}/backups", ("--log", "sqlite:///./restored")
    perdure_command("backup", "create", "--to", to)
    first, second = perdure_command("backup", "restore", "--to", to, "--into", "sqlite:///./restored").out.splitlines()
    assert first.startswith("restored ")
    key = perdure_command("config", "show", "--json").json["keys"]["value"]
    assert second.startswith(f"its root key is {key}: open it with --keys, or copy the key to file://")
    assert perdure_command("show", "a", *there, code=7).out == ""
    assert perdure_command("show", "a", *there, "--keys", key, "--json").json["document"] == {"said": 1}
    # Its snapshots are listed and are not there: said once, made anew, and then all holds.
    perdure_command("scrub", *there, "--keys", key, code=5)
    assert perdure_command("verify", *there, "--keys", key, "--json").json["ok"] is True
