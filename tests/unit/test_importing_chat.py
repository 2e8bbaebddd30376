"""Chats of several spellings, from files and streams."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from perdure.engine import fold
from perdure.engine.importing import BrokenRecord, Conversation, read_conversations
from perdure.limits import AGENT_ID_LENGTH_MAX

MESSAGES: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief.", "unknown": {"kept": [1, 2.0, None]}},
    {"role": "user", "content": "Two things, please."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "one", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            {"id": "two", "type": "function", "function": {"name": "find", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "two", "content": "second"},
    {"role": "tool", "tool_call_id": "one", "content": "first"},
    {"role": "assistant", "content": "Both done."},
    {"role": "critic", "content": "Hm."},
]
TYPES = [
    "run_started",
    "system_message_added",
    "user_message_added",
    "tool_called",
    "tool_result_received",
    "tool_result_received",
    "assistant_message_added",
    "message_added",
]


def read(content: str | bytes, format: str = "auto") -> list[Conversation | BrokenRecord]:
    raw = content.encode() if isinstance(content, str) else content
    return list(read_conversations("-", format=format, stdin=io.BytesIO(raw)))


def only(outcomes: list[Conversation | BrokenRecord]) -> Conversation:
    (outcome,) = outcomes
    assert isinstance(outcome, Conversation), outcome
    return outcome


def state(conversation: Conversation) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for event in conversation.events:
        document, _ = fold.apply(document, event.changes)
    return document


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(MESSAGES),
        json.dumps(MESSAGES, indent=2),
        json.dumps({"messages": MESSAGES}),
        "\ufeff\n\n" + json.dumps({"messages": MESSAGES}, indent=1),
        "\n".join(json.dumps(message) for message in MESSAGES),
    ],
)
def test_spellings_of_one_conversation_are_read_alike(text: str) -> None:
    conversation = only(read(text))
    assert [event.type for event in conversation.events] == TYPES
    assert state(conversation) == {"messages": MESSAGES}
    assert {event.correlation_id for event in conversation.events} == {conversation.events[0].correlation_id}


def test_results_are_caused_by_their_call_and_answers_by_what_stands_before() -> None:
    start, system, user, call, second, first, answer, _ = only(read(json.dumps(MESSAGES))).events
    assert (start.causation_id, system.causation_id, user.causation_id) == (None, None, None)
    assert call.causation_id == user.id
    assert second.causation_id == first.causation_id == call.id
    assert answer.causation_id == first.id
    assert call.data == {"tools": ["look", "find"]}


def test_blocks_and_the_older_function_call_are_calls_too() -> None:
    messages = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "seen"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": "{}"}},
        {"role": "function", "name": "find", "content": "found"},
    ]
    events = only(read(json.dumps(messages))).events
    assert [event.type for event in events[1:]] == ["tool_called", "tool_result_received"] * 2
    assert events[2].causation_id == events[1].id
    assert events[4].causation_id == events[3].id


def test_other_members_become_members_of_the_state(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    records = [{"id": "a", "messages": MESSAGES, "cost": 0.5}, {"messages": [], "model": None}]
    path.write_text("\n".join(map(json.dumps, records)))
    first, second = (only([outcome]) for outcome in read_conversations(str(path)))
    assert (first.agent, second.agent) == ("runs/a", "runs/run-2")
    assert state(first) == records[0]
    assert state(second) == records[1]
    assert (first.line, second.line) == (1, 2)


def test_the_same_content_has_the_same_ids_and_other_content_others() -> None:
    again = only(read(json.dumps(MESSAGES)))
    assert again == only(read(json.dumps(MESSAGES)))
    changed = only(read(json.dumps([*MESSAGES[:-1], {"role": "critic", "content": "Ha."}])))
    assert changed.agent != again.agent
    assert not {event.id for event in changed.events} & {event.id for event in again.events}
    assert all(event.id.version == 8 for event in again.events)


def test_ids_depend_on_name_but_not_on_folder(tmp_path: Path) -> None:
    found = []
    for folder in ("one", "two"):
        path = tmp_path / folder / "chat.json"
        path.parent.mkdir()
        path.write_text(json.dumps(MESSAGES))
        found.append(only(list(read_conversations(str(path)))))
    assert found[0].agent == found[1].agent == "chat"
    assert found[0].events == found[1].events


def test_long_and_odd_names_become_names_within_the_limits(tmp_path: Path) -> None:
    path = tmp_path / ("very long " * 20 + "end\u200b.json")
    path.write_text(json.dumps([{"id": "x/\n" * 500, "messages": MESSAGES}]))
    agent = only(list(read_conversations(str(path)))).agent
    assert agent.isprintable()
    assert len(agent) <= AGENT_ID_LENGTH_MAX


def test_a_list_of_runs_is_read_one_by_one_with_their_lines() -> None:
    text = json.dumps([{"messages": MESSAGES}, {"messages": []}], indent=1)
    first, second = read(text)
    assert first.line == 2
    assert second.line == text[: text.rindex("{")].count("\n") + 1


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "notes.txt"):
        (tmp_path / name).write_text(json.dumps(MESSAGES))
    assert [only([outcome]).agent for outcome in read_conversations(str(tmp_path))] == ["a", "b"]
