"""Approvals from the shell: refused, approved by another person, done once, told."""

from __future__ import annotations

import json

from tests.fix_command import Perdure

DENIED = 7


def test_a_compaction_waits_for_another_person_and_is_told(perdure_command: Perdure) -> None:
    lines = [json.dumps({"agent": "a", "type": "said", "changes": [{"op": "append", "path": "/said", "value": n}]}) for n in range(20)]
    perdure_command("import", "--format", "events", "-", stdin="\n".join(lines))
    perdure_command("approvals", "policy", "events.compact", "approval", "--actor", "boss")
    words = ("compact", "a", "--keep-last", "5", "--json")
    refused = perdure_command(*words, "--yes", code=DENIED).error
    assert (refused["code"], refused["operation"]) == ("approval_required", "events.compact")
    assert perdure_command(*words, "--dry-run").json["events"] == 15
    id = refused["approval"]
    (waiting,) = perdure_command("approvals", "--json").json["approvals"]
    assert (waiting["id"], waiting["arguments"]["keep_last"]) == (id, 5)
    assert perdure_command("approve", id, "--json", code=DENIED).error["reason"] == "own"
    assert "is approved" in perdure_command("approve", id, "--actor", "bob").out
    assert perdure_command(*words, "--approval", id).json["events"] == 15
    assert perdure_command(*words, "--approval", id, code=DENIED).error["reason"] == "used"
    entries = perdure_command("audit", "--json").json["entries"]
    assert [each["type"] for each in entries] == [
        "approval_refused",
        "operation_completed",
        "operation_started",
        "approval_approved",
        "approval_refused",
        "approval_asked",
        "approval_policy_set",
    ]
    assert entries[1]["data"]["events"] == 15
    assert entries[2]["data"]["approved_by"] == "bob"
