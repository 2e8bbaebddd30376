"""Snapshots and compaction from the shell, on an embedded log."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.fix_command import Perdure


def talk(command: Perdure, *agents: str, count: int, start: int = 0) -> None:
    """Append so many events to each, in one process."""
    lines = [
        json.dumps({"agent": agent, "type": "said", "changes": [{"op": "append", "path": "/messages", "value": f"{agent} {number}"}]})
        for agent in agents
        for number in range(start, start + count)
    ]
    command("import", "--format", "events", "-", stdin="\n".join(lines))


@pytest.fixture
def spoken(perdure_command: Perdure) -> Perdure:
    """Two agents of 30 events each."""
    talk(perdure_command, "a", "b", count=30)
    return perdure_command


def damage(command: Perdure, pattern: str) -> None:
    """Flip a bit in every object of the store whose path contains the pattern."""
    for file in Path(command.folder).rglob("*"):
        if pattern in str(file) and file.is_file():
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.chmod(0o600)
            file.write_bytes(content)


def test_snapshots_are_made_listed_verified_and_deleted(spoken: Perdure) -> None:
    made = spoken("snapshot", "create", "--all", "--json").json
    assert (made["made"], made["already"], made["failed"]) == (2, 0, {})
    assert spoken("snapshot", "create", "a", "--json").json["already"] == 1
    listed = spoken("snapshot", "list", "--json").json["snapshots"]
    assert sorted((each["agent"], each["version"], each["creator"], each["damage"]) for each in listed) == [
        ("a", 30, "cli", ""),
        ("b", 30, "cli", ""),
    ]
    shown = spoken("snapshot", "show", listed[0]["id"], "--json").json
    assert shown == listed[0]
    verified = spoken("snapshot", "verify", "--all", "--replay", "--json").json
    assert (verified["ok"], verified["verified"], verified["damaged"]) == (True, 2, [])
    compressed = spoken("snapshot", "compress", "--all", "--codec", "lz4", "--json").json
    assert (compressed["snapshots"], compressed["rewritten"], compressed["failed"]) == (2, 2, {})
    assert "30" in spoken("snapshot", "list", "a", "--limit", "1").out
    (listed,) = spoken("snapshot", "list", "a", "--json").json["snapshots"]
    assert listed["codec"] == "lz4"
    refused = spoken("snapshot", "delete", listed["id"], "--json", code=2)
    assert "--yes" in refused.error["hint"]
    assert spoken("snapshot", "delete", listed["id"], "--yes", "--json", code=4).error["code"] == "conflict"


def test_damage_is_an_exit_code_and_is_mended(spoken: Perdure) -> None:
    spoken("snapshot", "create", "--all")
    talk(spoken, "a", count=1, start=30)
    whole = spoken("verify").out
    assert whole.startswith("everything holds\n")
    assert "  log        61 events of 2 agents\n  topic      none to compare\n" in whole
    damage(spoken, "/manifests/")
    found = spoken("snapshot", "verify", "--agent", "a", "--json", code=5).json
    assert (found["ok"], len(found["damaged"])) == (False, 1)
    # Known by now, and not read again: the agent has no other, which is no success.
    again = spoken("snapshot", "verify", "--agent", "a", "--json", code=1).json
    assert (again["ok"], again["verified"], again["agents_without"]) == (False, 0, ["a"])
    assert [(each["id"], each["problem"]) for each in again["known_damaged"]] == [
        (each["id"], each["problem"]) for each in found["damaged"]
    ]
    assert "`perdure snapshot create a`" in spoken("snapshot", "verify", "--agent", "a", code=1).out
    mended = spoken("scrub", "--fraction", "1", "--json", code=5).json
    assert [(each["snapshot"]["agent"], each["outcome"]) for each in mended["damaged"]] == [("b", "made anew"), ("a", "made anew")]
    assert spoken("snapshot", "verify", "--agent", "a", "--json").json["agents_without"] == []
    assert "all are whole" in spoken("scrub", "--fraction", "1").out
    assert len(spoken("show", "a", "--json").json["document"]["messages"]) == 31
    damage(spoken, "/manifests/")
    told = spoken("verify", code=5).out
    assert told.startswith("SOMETHING DOES NOT HOLD\n")
    assert "\n  snapshots: " in told


def test_a_state_is_restored_as_a_view_a_fork_and_a_rollback(spoken: Perdure) -> None:
    spoken("snapshot", "create", "a", "--checkpoint", "--at-version", "20", "--reason", "before the deploy")
    view = spoken("restore", "a", "--at-version", "21", "--json").json
    assert (view["version"], view["appended"], len(view["document"]["messages"])) == (21, None, 21)
    (snapshot,) = spoken("snapshot", "list", "a", "--json").json["snapshots"]
    fork = spoken("restore", "a", "--snapshot", snapshot["id"], "--into", "fork", "--new-agent", "c", "--json").json
    assert (fork["agent"], fork["appended"], fork["integrity_verified"]) == ("c", 1, True)
    assert len(spoken("show", "c", "--json").json["document"]["messages"]) == 20
    assert "--yes" in spoken("restore", "a", "--at-version", "20", "--into", "rollback", code=2).err
    spoken("restore", "a", "--at-version", "20", "--into", "rollback", "--yes")
    state = spoken("show", "a", "--json").json
    assert (state["version"], len(state["document"]["messages"])) == (31, 20)
    assert spoken("restore", "a", "--at-version", "99", "--json", code=3).error["code"] == "version_not_found"


def test_events_are_removed_only_when_somebody_means_it(spoken: Perdure) -> None:
    assert "--yes" in spoken("compact", "a", "--keep-last", "10", code=2).err
    would = spoken("compact", "--all", "--keep-last", "10", "--dry-run", "--json").json
    assert (would["dry_run"], would["events"]) == (True, 40)
    done = spoken("compact", "a", "--keep-last", "10", "--yes", "--json").json
    assert [(each["agent"], each["first_version"], each["removed"]) for each in done["agents"]] == [("a", 21, 20)]
    gone = spoken("show", "a", "--at-version", "3", "--json", code=3).error
    assert (gone["code"], gone["first_version"]) == ("compacted", 21)
    assert len(spoken("show", "a", "--at-version", "20", "--json").json["document"]["messages"]) == 20
    assert spoken("verify", "--json").json["ok"]
    talk(spoken, "a", count=30)  # the same import again
    assert spoken("show", "a", "--json").json["version"] == 30


def test_what_no_rule_keeps_is_forgotten_and_swept(spoken: Perdure) -> None:
    for start in (30, 60, 90):
        spoken("snapshot", "create", "a")
        talk(spoken, "a", count=30, start=start)
    spoken("snapshot", "create", "a")
    would = spoken("snapshot", "clean", "--all", "--days", "0", "--dry-run", "--json").json
    assert [(each["agent"], each["version"]) for each in would["deleted"]] == [("a", 30)]
    assert spoken("snapshot", "clean", "a", "--days", "0", "--yes", "--json").json["deleted"] == would["deleted"]
    then = time.time() - 2 * 86_400
    for file in Path(spoken.folder).rglob("snapshots/**/*"):
        os.utime(file, (then, then))
    would = spoken("snapshot", "sweep", "--dry-run", "--json").json
    assert would["gone"] > 0
    assert spoken("snapshot", "sweep", "--yes", "--json").json["gone"] == would["gone"]


def test_the_snapshotter_follows_the_log_until_it_is_told_to_end(spoken: Perdure) -> None:
    done = spoken("snapshotter", "--budget-events", "30", "--until-drained", "--json").json
    assert (done["made"], done["failed"], done["waiting"]) == (2, 0, 0)
    running = spoken.start("snapshotter", "--every-versions", "5", "--json")
    assert running.stderr is not None
    assert "running" in running.stderr.readline()
    talk(spoken, "a", count=5, start=30)
    deadline = time.monotonic() + 90
    while len(spoken("snapshot", "list", "a", "--json").json["snapshots"]) < 2:
        assert time.monotonic() < deadline
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=90)
    assert (running.returncode, json.loads(out)["made"], err) == (0, 1, "")
    newest = spoken("snapshot", "list", "a", "--json").json["snapshots"][0]
    assert (newest["version"], newest["trigger"]) == (35, "event")


def test_wrong_words_are_refused(perdure_command: Perdure) -> None:
    talk(perdure_command, "a", count=1)
    for words in (
        ("snapshot", "create", "a", "--all"),
        ("snapshot", "create", "a", "--codec", "rar"),
        ("snapshot", "clean", "a", "--keep", "soon", "--yes"),
        ("compact", "a", "--yes"),
        ("compact", "a", "--keep-last", "1", "--critical-only", "--yes"),
        ("snapshotter", "--budget-events", "0"),
    ):
        perdure_command(*words, code=2)
    perdure_command("snapshot", "show", "01890000-0000-7000-8000-000000000000", code=3)
