"""Looking back at all agents of a tenant from the shell."""

from __future__ import annotations

import json

from tests.fix_command import Perdure

NOT_FOUND = 3


def events(agent: str, count: int) -> list[str]:
    changes = [[{"op": "append", "path": "/said", "value": number}] for number in range(count)]
    return [json.dumps({"agent": agent, "type": "said", "changes": each}) for each in changes]


def test_agents_that_did_not_exist_yet_are_counted_and_are_no_failure(perdure_command: Perdure) -> None:
    run = perdure_command
    run("import", "--format", "events", "-", stdin="\n".join(events("old", 2)))
    then = run("log", "old", "--json").lines[-1]["time"]
    run("import", "--format", "events", "-", stdin="\n".join([*events("new", 1), *events("newest", 4)]))

    back = run("replay", "--all", "--to-time", then, "--json").json
    assert [(each["agent"], each["version"]) for each in back["agents"]] == [("old", 2)]
    assert (back["not_yet"], back["failed"]) == (["new", "newest"], {})
    assert run("replay", "--all", "--to-time", then).out.splitlines()[-1] == f"2 agents did not exist at {then}"
    second = run("replay", "--all", "--to-version", "2", "--json").json
    assert ([each["agent"] for each in second["agents"]], second["not_yet"], second["failed"]) == (["newest", "old"], ["new"], {})

    # Only those that exist are led back. An agent that was named is a failure, and so is a past that was removed.
    run("replay", "--all", "--to-time", then, "--into", "fork", "--suffix=-then")
    assert [each["agent"] for each in run("agents", "--json").json["agents"]] == ["new", "newest", "old", "old-then"]
    assert run("replay", "new", "--to-time", then, "--json", code=NOT_FOUND).error["code"] == "version_not_found"
    assert run("replay", "old", "new", "--to-version", "2", "--json", code=1).json["failed"].keys() == {"new"}
    run("compact", "newest", "--keep-last", "1", "--yes")
    assert run("replay", "--all", "--to-version", "1", "--json", code=1).json["failed"].keys() == {"newest"}
