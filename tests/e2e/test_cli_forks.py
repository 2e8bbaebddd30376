"""Forks from the shell, on an embedded log."""

from __future__ import annotations

import json

from tests.fix_command import Perdure


def test_forks_are_made_shown_listed_and_exported_as_their_own(perdure_command: Perdure) -> None:
    lines = [
        json.dumps({"agent": "a", "type": "said", "changes": [{"op": "append", "path": "/said", "value": number}]}) for number in range(5)
    ]
    perdure_command("import", "--format", "events", "-", stdin="\n".join(lines))
    made = perdure_command("fork", "a", "b", "--at-version", "3", "--reason", "what if", "--json").json
    assert (made["target"], made["version"], made["appended"]) == ("b", 3, 4)
    listed = perdure_command("fork", "list", "a", "--json").json["forks"]
    assert [(fork["agent"], fork["version"], fork["reason"]) for fork in listed] == [("b", 3, "what if")]
    shown = perdure_command("show", "b", "--json").json
    assert (shown["document"], shown["forked_from"]["agent"], shown["forked_from"]["version"]) == ({"said": [0, 1, 2]}, "a", 3)
    exported = [json.loads(line) for line in perdure_command("export", "b").out.splitlines()]
    assert [(line["agent"], line["version"]) for line in exported] == [("b", version) for version in range(1, 5)]
    assert [line["type"] for line in exported] == ["said", "said", "said", "forked"]
    assert perdure_command("fork", "a", "b", "--json", code=4).error["code"] == "already_exists"
