"""Every real trajectory: the state holds the conversation of the file, exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.engine import fold
from perdure.engine.importing import BrokenRecord, Conversation, read_conversations


def conversations(path: Path, format: str = "auto") -> Iterator[Conversation]:
    for outcome in read_conversations(str(path), format=format):
        assert not isinstance(outcome, BrokenRecord), outcome
        yield outcome


def state(conversation: Conversation) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for event in conversation.events:
        document, warnings = fold.apply(document, event.changes)
        assert not warnings
    return document


def renamed(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {"messages" if key == name else key: value for key, value in record.items()}


def test_state_of_a_tau_bench_run_is_its_record(trajectories: Path) -> None:
    path = trajectories / "tau-bench" / "gpt-4o-airline.json"
    records = json.loads(path.read_text())
    found = list(conversations(path))
    assert len(found) == len(records) == 200
    for record, conversation in zip(records, found, strict=True):
        assert state(conversation) == renamed(record, "traj")
        assert conversation.agent == f"gpt-4o-airline/task-{record['task_id']}/trial-{record['trial']}"
        assert len(conversation.events) == len(record["traj"]) + 2


@pytest.mark.parametrize("name", ["MockAirlineDomainEnv-few_shot", "MockRetailDomainEnv-few_shot"])
def test_transcripts_can_be_written_back(trajectories: Path, name: str) -> None:
    path = trajectories / "tau-bench" / f"{name}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record, conversation in zip(records, conversations(path), strict=True):
        messages = state(conversation)["messages"]
        assert "\n".join(f"{message['role']}: {message['content']}" for message in messages) == record["messages_display"]


def test_state_of_a_swe_agent_run_is_its_record(trajectories: Path) -> None:
    found = {conversation.file: conversation for conversation in conversations(trajectories / "swe-agent")}
    paths = list((trajectories / "swe-agent").rglob("*.traj"))
    assert len(found) == len(paths) == 13
    for path in paths:
        record = json.loads(path.read_text())
        conversation = found[str(path)]
        assert state(conversation) == renamed(record, "history")
        actions = [event for event in conversation.events if event.type == "action_taken"]
        observations = [event for event in conversation.events if event.type == "observation_received"]
        assert len(actions) == len(observations) == len(record.get("trajectory", []))
        assert [event.causation_id for event in observations] == [event.id for event in actions]


def test_state_of_a_who_and_when_run_is_its_record_and_the_mistake_is_caused_by_its_step(trajectories: Path) -> None:
    found = list(conversations(trajectories / "who-and-when"))
    assert len(found) == 184
    for conversation in found:
        record = json.loads(Path(conversation.file).read_text())
        assert state(conversation) == renamed(record, "history")
        mistake = conversation.events[-1]
        assert mistake.type == "mistake_annotated"
        step = int(record["mistake_step"])
        if step < len(record["history"]):
            assert mistake.causation_id == conversation.events[step + 1].id


@pytest.mark.parametrize("folder", ["tau-bench", "swe-agent", "who-and-when"])
def test_a_named_format_reads_the_same_as_detection_and_ids_repeat(trajectories: Path, folder: str) -> None:
    detected = list(conversations(trajectories / folder))
    assert list(conversations(trajectories / folder, folder)) == detected
    assert len({conversation.agent for conversation in detected}) == len(detected)
    ids = [event.id for conversation in detected for event in conversation.events]
    assert len(set(ids)) == len(ids)


def test_every_tool_result_of_tau_bench_is_caused_by_its_call(trajectories: Path) -> None:
    for conversation in conversations(trajectories / "tau-bench" / "gpt-4o-airline.json"):
        events = {event.id: event for event in conversation.events}
        for event in conversation.events:
            if event.type == "tool_result_received":
                assert event.causation_id is not None
                call, result = events[event.causation_id].changes[0].value, event.changes[0].value
                assert result["tool_call_id"] in [made["id"] for made in call["tool_calls"]]


def test_a_message_stands_once_in_the_events(trajectories: Path) -> None:
    for conversation in conversations(trajectories / "tau-bench" / "gpt-4o-airline.json"):
        for event in conversation.events[1:-1]:
            assert len(event.changes) == 1
            assert len(json.dumps(event.data)) < 100
            assert event.metadata == {}
