"""Events as messages: exact both ways, and rubbish is told, never raised."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.bus.cloudevents import format_time, from_message, parse_time, to_message
from perdure.engine.log.records import SealedEvent
from perdure.errors import InvalidEvent

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40)
INTEGERS = st.integers(1, 2**63 - 1)
EVENTS = st.builds(
    SealedEvent,
    tenant=NAMES,
    agent=NAMES,
    tenant_key=st.just(0),
    agent_key=st.just(0),
    partition=st.integers(0, 255),
    offset=INTEGERS,
    version=INTEGERS,
    epoch=st.integers(0, 2**63 - 1),
    id=st.uuids(),
    type=TEXT,
    time_us=st.integers(0, 250_000_000_000_000_000),
    causation_id=st.none() | st.uuids(),
    correlation_id=st.none() | TEXT,
    trace_id=st.none() | TEXT,
    project=st.none() | TEXT,
    module=st.none() | TEXT,
    chain=st.binary(min_size=32, max_size=32),
    payload=st.binary(min_size=1, max_size=200),
)
EVENT = SealedEvent(
    tenant="acme",
    agent="müller/7",
    tenant_key=3,
    agent_key=9,
    partition=5,
    offset=12,
    version=2,
    epoch=1,
    id=UUID("0190163d-8694-739b-aea5-966c26f8ad91"),
    type="message_added",
    time_us=1_763_735_000_000_001,
    causation_id=None,
    correlation_id="run-1",
    trace_id=None,
    project=None,
    module=None,
    chain=bytes(range(32)),
    payload=b"sealed",
)


@given(EVENTS)
def test_an_event_comes_back_as_it_went(event: SealedEvent) -> None:
    key, value, headers, _ = to_message(event)
    assert from_message(event.partition, key, value, headers) == (event, "")


@given(st.integers(0, 250_000_000_000_000_000))
def test_times_come_back_to_the_microsecond(time_us: int) -> None:
    assert parse_time(format_time(time_us)) == time_us


def test_the_message_is_a_cloudevent_in_binary_mode() -> None:
    message = to_message(EVENT)
    headers = dict(message.headers)
    assert message.key == "acme\0müller/7".encode()
    assert message.value == b"sealed"
    assert message.timestamp_ms == 1_763_735_000_000
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_source"] == b"perdure/acme"
    assert headers["ce_time"] == b"2025-11-21T14:23:20.000001Z"
    assert headers["content-type"] == b"application/vnd.perdure.sealed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce_specversion", b"0.3"),
        ("content-type", b"application/json"),
        ("ce_id", b"{0190163d-8694-739b-aea5-966c26f8ad91}"),
        ("ce_id", b"\xff"),
        ("ce_type", b"\xff\xfe"),
        ("ce_source", b"perdure/other"),
        ("ce_source", b"perdure/"),
        ("ce_source", b"perdure/%00"),
        ("ce_subject", b"somebody else"),
        ("ce_time", b"2025-11-21 14:23:20.000001Z"),
        ("ce_time", b"2025-13-21T14:23:20.000001Z"),
        ("ce_time", "2025-11-21T14:23:20.00000١Z".encode()),
        ("ce_perdureversion", b"0"),
        ("ce_perdureversion", b"-1"),
        ("ce_perdureversion", b"01"),
        ("ce_perdureversion", b""),
        ("ce_perdureoffset", b"9223372036854775808"),
        ("ce_perdurepartition", b"6"),
        ("ce_perdurechain", b"AAAA"),
        ("ce_perdurechain", b"not base64!"),
        ("ce_perdurecausation", b"x"),
        ("ce_perduretrace", b"\xff"),
        ("ce_perduretrace", None),
        ("ce_perdurefuture", b"1"),
    ],
)
def test_a_broken_header_is_a_reason(name: str, value: bytes | None) -> None:
    key, payload, headers, _ = to_message(EVENT)
    changed = [(each, content) for each, content in headers if each != name]
    event, problem = from_message(5, key, payload, [*changed, (name, value)])
    assert event is None
    assert problem


def test_every_required_header_is_missed() -> None:
    key, payload, headers, _ = to_message(EVENT)
    for name, _value in headers:
        if name == "ce_perdurecorrelation":
            continue
        event, problem = from_message(5, key, payload, [header for header in headers if header[0] != name])
        assert event is None
        assert name in problem


def test_a_header_twice_a_foreign_key_and_no_value_are_reasons() -> None:
    key, payload, headers, _ = to_message(EVENT)
    assert from_message(5, key, payload, [*headers, headers[3]])[0] is None
    assert from_message(5, b"acme\0other", payload, headers)[0] is None
    assert from_message(5, None, payload, headers)[0] is None
    assert from_message(5, key, None, headers)[0] is None
    assert from_message(5, key, b"", headers)[0] is None


def test_headers_of_other_tools_are_left_alone() -> None:
    key, payload, headers, _ = to_message(EVENT)
    assert from_message(5, key, payload, [*headers, ("traceparent", None), ("x", b"\xff")])[1] == ""


@given(st.binary(max_size=50), st.binary(max_size=50), st.lists(st.tuples(st.text(max_size=12), st.none() | st.binary(max_size=12))))
def test_nothing_on_a_topic_raises(key: bytes, value: bytes, headers: list[tuple[str, bytes | None]]) -> None:
    event, problem = from_message(0, key, value, headers)
    assert event is None
    assert problem


def test_what_cannot_be_read_back_is_not_written() -> None:
    import msgspec

    with pytest.raises(InvalidEvent):
        to_message(msgspec.structs.replace(EVENT, payload=b""))
    with pytest.raises(InvalidEvent):
        to_message(msgspec.structs.replace(EVENT, tenant="a\0b"))
