"""Our own JSON lines: what is written is read again, grouped by agent, and a broken line costs its agent only."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.changes import Change, append, delete, insert, merge, set_value
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.importing import BrokenRecord, Conversation, batches, decode_line, encode_line, read_conversations
from perdure.errors import InvalidInput

NOW = datetime(2031, 5, 4, 3, 2, 1, 7, tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12)
keys = texts | st.sampled_from(["$bytes", "$$bytes", "$bytesx", "bytes"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)
paths = st.lists(texts, min_size=1, max_size=4).map(tuple)
changes = st.one_of(
    st.builds(set_value, paths, values),
    st.builds(append, paths, values),
    st.builds(merge, paths, values),
    st.builds(delete, paths),
    st.builds(lambda path, value: insert((*path, "0"), value), paths, values),
)
events = st.builds(
    RecordedEvent,
    type=names,
    changes=st.lists(changes, max_size=4).map(tuple),
    data=values,
    metadata=st.dictionaries(keys, values, max_size=3),
    id=st.uuids(),
    source=names | st.just(""),
    actor=names | st.just(""),
    causation_id=st.none() | st.uuids(),
    correlation_id=st.none() | names,
    trace_id=st.none() | names,
    project=st.none() | names,
    module=st.none() | names,
    schema_version=st.integers(1, 1000),
    replayable=st.booleans(),
    tenant=names,
    agent=names,
    version=st.integers(1, 2**40),
    epoch=st.integers(0, 9),
    partition=st.integers(0, 15),
    offset=st.integers(1, 2**40),
    time=st.integers(0, 10**15).map(lambda microseconds: NOW + timedelta(microseconds=microseconds)),
    chain=st.binary(min_size=32, max_size=32),
)


def line(agent: str, version: int | None = None, **fields: Any) -> str:
    known = {"agent": agent, "type": "ticked", "id": str(uuid4()), **({} if version is None else {"version": version}), **fields}
    return json.dumps(known)


def read(lines: list[str]) -> list[Conversation | BrokenRecord]:
    return list(read_conversations("-", stdin=io.BytesIO("\n".join(lines).encode())))


def read_file(path: Path, lines: list[str]) -> list[Conversation | BrokenRecord]:
    path.write_text("\n".join(lines))
    return list(read_conversations(str(path), format="events"))


def plain(event: Event) -> Event:
    return Event(**{name: getattr(event, name) for name in Event.__struct_fields__})


@given(events)
def test_every_event_comes_back_as_it_was(event: RecordedEvent) -> None:
    encoded = encode_line(event)
    assert encoded.count(b"\n") == 1
    tenant, agent, found = decode_line(encoded)
    assert (tenant, agent) == (event.tenant, event.agent)
    assert msgspec.msgpack.encode(found) == msgspec.msgpack.encode(plain(event))


def test_a_line_is_readable_and_says_its_place() -> None:
    event = RecordedEvent(
        "noted",
        (set_value("/a/b~1c", b"\x00"), delete("")),
        id=UUID(int=7),
        tenant="acme",
        agent="a",
        version=3,
        epoch=1,
        partition=2,
        offset=9,
        time=NOW,
        chain=b"\x01" * 32,
    )
    assert json.loads(encode_line(event)) == {
        "tenant": "acme",
        "agent": "a",
        "version": 3,
        "type": "noted",
        "id": str(UUID(int=7)),
        "time": "2031-05-04T03:02:01.000007Z",
        "changes": [{"op": "set", "path": "/a/b~1c", "value": {"$bytes": "AA=="}}, {"op": "delete", "path": ""}],
        "epoch": 1,
        "partition": 2,
        "offset": 9,
        "chain": "01" * 32,
    }


def test_a_line_without_an_id_gets_one_from_content_and_place() -> None:
    text = json.dumps({"agent": "a", "type": "ticked"}).encode()
    assert decode_line(text, 1) == decode_line(text, 1)
    assert decode_line(text, 1)[2].id != decode_line(text, 2)[2].id


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": 5}, "no type"),
        ({"type": ""}, "type"),
        ({"agent": ""}, "names no agent"),
        ({"agent": "a" * 257}, "at most 256"),
        ({"tenant": 5}, "tenant"),
        ({"id": "x"}, "not a UUID"),
        ({"causation_id": 5}, "not a UUID"),
        ({"chagnes": []}, "'chagnes'"),
        ({"changes": {}}, "not a list"),
        ({"changes": [{"op": "put", "path": "/a", "value": 1}]}, "op and path"),
        ({"changes": [{"op": ["set"], "path": "/a", "value": 1}]}, "op and path"),
        ({"changes": [{"op": "set", "path": "/a"}]}, "has the members"),
        ({"changes": [{"op": "delete", "path": "/a", "value": 1}]}, "has the members"),
        ({"changes": [{"op": "set", "path": "a", "value": 1}]}, "start with"),
        ({"data": {"$bytes": "?"}}, "base64"),
        ({"data": {"$bytes": 5}}, "base64"),
        ({"metadata": 5}, "metadata"),
        ({"schema_version": "1"}, "schema_version"),
        ({"replayable": 1}, "replayable"),
        ({"source": "a\nb"}, "source"),
        ({"data": "\ud800"}, "surrogate"),
    ],
)
def test_a_broken_line_says_why(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_line(json.dumps({"agent": "a", "type": "ticked", **fields}).encode())
    assert reason in caught.value.message


def test_events_are_grouped_by_tenant_and_agent_in_their_order() -> None:
    outcomes = read([line("a", 1), line("b", 5), line("a", 2), line("a", 1, tenant="acme"), line("b", 6)])
    assert [
        (found.tenant, found.agent, len(found.events), found.line, found.whole) for found in outcomes if isinstance(found, Conversation)
    ] == [
        (None, "a", 2, 1, False),
        (None, "b", 2, 2, False),
        ("acme", "a", 1, 4, False),
    ]


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_EVENTS_MAX", 3)
    outcomes = read([line("a", version) for version in range(1, 9)])
    assert [len(found.events) for found in outcomes if isinstance(found, Conversation)] == [3, 3, 2]


def test_a_pipe_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_EVENTS_MAX", 2)
    stream = io.BytesIO("\n".join(line("a", version) for version in range(1, 7)).encode())
    first = next(iter(read_conversations("-", format="events", stdin=stream)))
    assert isinstance(first, Conversation)
    assert stream.tell() < len(stream.getvalue())


def test_nothing_of_an_agent_with_a_broken_line_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_EVENTS_MAX", 2)
    cut = line("b", 2)[:40]
    outcomes = read_file(tmp_path / "log.jsonl", [line("a", 1), line("b", 1), line("a", 2), cut, line("a", 3), line("b", 3)])
    assert [(found.line, "not JSON" in found.reason) for found in outcomes if isinstance(found, BrokenRecord)] == [(4, True)]
    assert {found.agent for found in outcomes if isinstance(found, Conversation)} == {"a"}
    assert sum(len(found.events) for found in outcomes if isinstance(found, Conversation)) == 3


def test_a_gap_in_the_versions_is_a_broken_record(tmp_path: Path) -> None:
    outcomes = read_file(tmp_path / "log.jsonl", [line("a", 4), line("b"), line("a", 6), line("a", 7)])
    assert [type(found) for found in outcomes] == [BrokenRecord, Conversation]
    assert outcomes[0].line == 3
    assert isinstance(outcomes[0], BrokenRecord)
    assert "version 6 of agent 'a' follows version 4" in outcomes[0].reason


def test_an_empty_stream_of_events_is_no_error() -> None:
    assert list(read_conversations("-", format="events", stdin=io.BytesIO(b""))) == []


def test_operations_of_all_kinds_come_back(tmp_path: Path) -> None:
    made = [Change("set", ("a",), None), Change("insert", ("a", "-"), 1), Change("merge", (), {"x": None})]
    text = line("a", changes=[{"op": change.op, "path": change.pointer, "value": change.value} for change in made])
    (found,) = read_file(tmp_path / "log.ndjson", [text])
    assert isinstance(found, Conversation)
    assert list(found.events[0].changes) == made
