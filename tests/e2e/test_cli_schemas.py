"""Patches, schemas and types of agents from the shell."""

from __future__ import annotations

import json

from tests.fix_command import Perdure

SCHEMA = {"required": ["status"], "properties": {"status": {"enum": ["busy", "idle"]}}}


def test_a_published_schema_refuses_what_does_not_fit(perdure_command: Perdure) -> None:
    perdure_command("schemas", "publish", "support", "-", stdin=json.dumps(SCHEMA))
    assert perdure_command("schemas", "list", "--json").json["schemas"] == [{"type": "support", "published": True, "schema": SCHEMA}]
    refused = perdure_command("append", "a", "--agent-type", "support", "--set", '/status="odd"', "--json", code=2).error
    assert (refused["code"], refused["path"], refused["agent"]) == ("schema_violation", "/status", "a")
    perdure_command("append", "a", "--agent-type", "support", "--set", '/status="busy"')
    perdure_command("append", "a", "--delete", "/status", code=2)
    perdure_command("append", "a", "--agent-type", "coder", "--set", '/status="busy"', code=2)
    listed = perdure_command("agents", "--type", "support", "--status", "active", "--json").json["agents"]
    assert [(row["agent"], row["version"]) for row in listed] == [("a", 1)]
    perdure_command("schemas", "publish", "support", "-", stdin="{}", code=4)
    perdure_command("schemas", "withdraw", "support")
    perdure_command("append", "a", "--delete", "/status")


def test_what_is_no_schema_is_one_line(perdure_command: Perdure) -> None:
    for text in ('{"type": "thing"}', "5", "not json", '{"$ref": "http://127.0.0.1:1/x"}'):
        assert len(perdure_command("schemas", "publish", "x", "-", stdin=text, code=2).err.splitlines()) <= 2
    perdure_command("schemas", "publish", "x", "nowhere.json", code=1)
    assert perdure_command("schemas", "list", code=None).code in (0, 2)


def test_a_patch_is_decided_on_the_state_that_it_changes(perdure_command: Perdure) -> None:
    first = perdure_command("patch", "a", '{"status":"busy","n":[1]}', "--actor", "me", "--json").json
    assert (first["previous_version"], first["version"]) == (0, 1)
    operations = '[{"op":"test","path":"/status","value":"busy"},{"op":"add","path":"/n/-","value":2}]'
    second = perdure_command("patch", "a", "-", "--expected", "1", "--json", stdin=operations).json
    assert second["changes"] == [{"op": "append", "path": "/n", "value": 2}]
    state = perdure_command("show", "a", "--json").json
    assert (state["document"], state["digest"]) == ({"status": "busy", "n": [1, 2]}, second["checksum"])
    perdure_command("patch", "a", "-", "--expected", "1", stdin=operations, code=4)
    perdure_command("patch", "a", '[{"op":"test","path":"/status","value":"idle"}]', code=2)
    perdure_command("patch", "a", '"text"', code=2)
    perdure_command("patch", "a", '{"a":', code=2)
    assert perdure_command("show", "a", "--json").json["version"] == 2
