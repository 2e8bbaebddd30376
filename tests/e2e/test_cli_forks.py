"""Forks from the shell, on an embedded log."""

from __future__ import annotations

import json

from tests.fix_command import Perdure


def test_forks_are_made_shown_listed_and_exported_as_their_own(perdure_command: Perdure) -> None:
    lines = [
        json.dumps({"agent": "a", "type": "said", "changes": [{"op": "append", "path": "/said", "value": number}]}) for number in range(5)
    ]
    perdure_command("import", "--format", "events", "-", stdin="\n".join(lines))
    assert "no forks" in perdure_command("fork", "list", "a").out
    made = perdure_command("fork", "a", "b", "--at-version", "3", "--reason", "what if", "--json").json
    assert (made["target"], made["version"], made["appended"]) == ("b", 3, 4)
    perdure_command("fork", "b", "c")
    listed = perdure_command("fork", "list", "a", "--json").json["forks"]
    assert [(fork["agent"], fork["version"], fork["reason"]) for fork in listed] == [("b", 3, "what if")]
    assert "what if" in perdure_command("fork", "list", "a").out
    shown = perdure_command("show", "c", "--json").json
    assert (shown["document"], shown["forked_from"]["agent"], shown["forked_from"]["version"]) == ({"said": [0, 1, 2]}, "b", 4)
    assert perdure_command("show", "a", "--json").json["forked_from"] is None
    exported = [json.loads(line) for line in perdure_command("export", "c").out.splitlines()]
    assert [(line["agent"], line["version"], line["type"]) for line in exported] == [
        ("c", 1, "said"),
        ("c", 2, "said"),
        ("c", 3, "said"),
        ("c", 4, "forked"),
        ("c", 5, "forked"),
    ]
    changed = perdure_command("blame", "c", "/said", "--json").json
    assert changed["version"] == 3
    assert perdure_command("fork", "a", "b", "--json", code=4).error["code"] == "already_exists"
    assert perdure_command("fork", "a", "d", "--at-version", "9", "--json", code=3).error["code"] == "version_not_found"
    assert perdure_command("verify", "--json").json["ok"]
