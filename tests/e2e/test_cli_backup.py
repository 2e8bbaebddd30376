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
    perdure_command("backup", "create", "--to", to)
    assert "every event is in it" in perdure_command("backup", "status", "--to", to).out
    findings = {each["what"]: each for each in perdure_command("doctor", "--backup", to, "--json").json["findings"]}
    assert findings["backup"]["ok"] is True
    assert "every event is in it" in findings["backup"]["says"]
