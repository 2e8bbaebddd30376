"""The demo, as a newcomer runs it."""

from __future__ import annotations

from tests.fix_command import Perdure


def test_the_demo_kills_a_process_and_loses_nothing(perdure_command: Perdure) -> None:
    facts = perdure_command("demo", "--agents", "20", "--json").json
    assert facts["ok"] is True
    assert facts["crash"]["status"] == -9
    assert facts["crash"]["acknowledged"] >= 400
    assert facts["crash"]["lost"] == 0
    assert facts["verified"] is True
    assert list(perdure_command.folder.iterdir()) == []


def test_the_demo_tells_its_story_and_keeps_the_folder_that_it_is_given(perdure_command: Perdure) -> None:
    story = perdure_command("demo", "--agents", "8", "--folder", "kept").out
    for word in ("live", "then", "now", "kill -9", "verify     everything holds"):
        assert word in story
    kept = ("--log", "sqlite:///./kept/state", "--keys", f"file://{perdure_command.folder}/kept/root.key", "--tenant", "demo")
    assert len(perdure_command("agents", *kept, "--json").json["agents"]) == 8 + 16
