"""What is broken: file, line and reason, nothing of the record, and never a traceback."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.importing import FORMATS, BrokenRecord, Conversation, contract, read_conversations
from perdure.errors import ImportFailed

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


def read(content: str | bytes, format: str = "auto") -> list[Conversation | BrokenRecord]:
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return list(read_conversations("-", format=format, stdin=io.BytesIO(raw)))


def broken(content: str | bytes, format: str = "auto") -> BrokenRecord:
    (outcome,) = read(content, format)
    assert isinstance(outcome, BrokenRecord), outcome
    assert "\n" not in outcome.reason
    return outcome


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", None, "is empty"),
        (" \n\n ", None, "is empty"),
        ("[]", 1, "is an empty list"),
        (
            '{"messages": [{"role": "user", "content": "cut',
            1,
            "not JSON: Unterminated string at line 1 column 43 (the text ends here: was it cut off?)",
        ),
        ('{\n "messages": [\n  {"role": "user"}\n', 4, "cut off"),
        ('[{"role": "user", "content": "a"}, {"role": ', 1, "not JSON"),
        ('{"messages": [{"role": "user", "content": NaN}]}', 1, "NaN"),
        ('{"messages": [{"role": "user", "content": 1e999}]}', 1, "inf"),
        ('{"messages": [{"role": "user", "role": "tool"}]}', 1, "stands twice"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', 1, "surrogate"),
        ('{"messages": [{"content": "a"}]}', 1, "has no role"),
        ('{"messages": ["a"]}', 1, "is not an object"),
        ('{"messages": 5}', 1, "no known format"),
        ('{"what": "ever"}', 1, "'what'"),
        ("5", 1, "a bare int"),
        ('{"messages": [{"role": "user", "n": ' + "9" * 5000 + "}]}", 1, "digit"),
        ('{"messages": [{"role": "user", "n": ' + "9" * 30 + "}]}", 1, "integer"),
        ('{"messages": [{"role": "user", "n": ' + "[" * 200 + "]" * 200 + "}]}", 1, "nest"),
        ('{"messages": ' + "[" * 100_000, 1, "nest"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", 1, "not UTF-8 text: byte 0x89 at line 1 column 1"),
        (b"\x00" * 100, 1, "not JSON"),
        (b'{"messages": [\n {"role": "\xff"}]}', 2, "line 2 column 12"),
        (gzip.compress(b"{}", mtime=0), 1, "decompress it"),
        ('{"traj": [], "messages": []}', 1, "of its own"),
        ('{"messages_display": "hello"}', 1, "role"),
        ('{"trajectory": [5]}', 1, "step 0"),
        ('{"history": 5, "question": "?"}', 1, "no known format"),
    ],
)
def test_a_broken_document_is_named_with_line_and_reason(content: str | bytes, line: int | None, reason: str) -> None:
    found = broken(content)
    assert found.line == line
    assert reason.lower() in found.reason.lower()


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("auto", "events")])
def test_a_record_of_another_shape_is_refused_by_every_named_format(format: str) -> None:
    assert "is not a" in broken('{"what": "ever"}', format).reason


def test_a_broken_line_costs_only_its_own_record(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([json.dumps(CHAT), '{"messages": [', "", json.dumps(CHAT), '{"messages": [{}]}']))
    outcomes = list(read_conversations(str(path)))
    assert [(type(outcome), outcome.line) for outcome in outcomes] == [
        (Conversation, 1),
        (BrokenRecord, 2),
        (Conversation, 4),
        (BrokenRecord, 5),
    ]
    assert [outcome.agent for outcome in outcomes if isinstance(outcome, Conversation)] == ["runs/run-1", "runs/run-3"]


def test_a_truncated_list_gives_its_whole_records_and_where_it_broke_off() -> None:
    text = json.dumps([CHAT, CHAT, CHAT], indent=1)
    *whole, last = read(text[: text.rindex("role")])
    assert [type(outcome) for outcome in whole] == [Conversation, Conversation]
    assert isinstance(last, BrokenRecord)
    assert last.line == text[: text.rindex("role")].count("\n") + 1


@pytest.mark.parametrize("cut", range(1, 60, 3))
def test_a_cut_conversation_is_never_half_read(cut: int) -> None:
    assert not [outcome for outcome in read(json.dumps(CHAT)[:-1][:cut]) if isinstance(outcome, Conversation)]


def test_a_message_a_line_is_whole_or_broken() -> None:
    found = broken('{"role": "user", "content": "a"}\n{"role": "assistant", "content": "b"}\n{"role": ')
    assert found.line == 3


def test_missing_files_folders_and_formats_are_outcomes_too(tmp_path: Path) -> None:
    for path, format, reason in (
        (str(tmp_path / "none.json"), "auto", "no such file"),
        (str(tmp_path), "auto", "holds no file"),
        ("a\x00b", "auto", "null"),
        ("-", "yaml", "there is no format 'yaml'"),
    ):
        (found,) = read_conversations(path, format=format, stdin=io.BytesIO(b""))
        assert isinstance(found, BrokenRecord)
        assert reason in found.reason


def test_a_line_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "LINE_BYTES_MAX", 50)
    assert "longer than 50 bytes" in broken(json.dumps(CHAT) * 2).reason


def test_a_document_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "DOCUMENT_BYTES_MAX", 50)
    assert "larger than 50 bytes" in broken(json.dumps([CHAT, CHAT], indent=1)).reason


@pytest.mark.parametrize("spelling", ["[%s]", "%s"])
def test_a_conversation_that_cannot_be_appended_in_one_piece_is_refused(spelling: str) -> None:
    separator = "," if "[" in spelling else "\n"
    text = spelling % separator.join(['{"role": "user", "content": ""}'] * 10_001)
    assert "the limit of one conversation is 10000" in broken(text).reason


def test_a_broken_record_is_an_error_that_can_be_raised() -> None:
    error = BrokenRecord("a.json", 3, "is empty").as_error()
    assert isinstance(error, ImportFailed)
    assert error.message == "a.json:3: is empty"
    assert error.details == {"file": "a.json", "line": 3}


@given(st.binary(max_size=200), st.sampled_from(FORMATS))
def test_any_bytes_give_outcomes_and_no_exception(content: bytes, format: str) -> None:
    for outcome in read(content, format):
        assert isinstance(outcome, BrokenRecord)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["role", "messages", "traj", "history", "trajectory", "info", "content", "tool_calls", "id", "agent", "type", "action"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(_json, st.sampled_from(FORMATS))
def test_any_json_gives_outcomes_and_no_exception(value: object, format: str) -> None:
    for outcome in read(json.dumps(value), format):
        assert isinstance(outcome, Conversation | BrokenRecord)
