"""What a document may hold, and what an event may say."""

from __future__ import annotations

import math
from collections import OrderedDict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given, settings

from perdure import limits
from perdure.engine.changes import Change, append, delete, insert, merge, set_value
from perdure.engine.checks import check_changes, check_event
from perdure.engine.event import Event
from perdure.engine.values import check_value
from perdure.errors import InvalidEvent, InvalidPath, LimitExceeded

from .strategies import CHANGES, VALUES


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_every_value_of_a_document_is_accepted_and_survives_storage(value: Any) -> None:
    check_value(value)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) == value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, ""),
        ({"a": [1, math.inf]}, "/a/1"),
        ({"a/b": {"~": -math.inf}}, "/a~1b/~0"),
        ([2**64], "/0"),
        ([-(2**63) - 1], "/0"),
        (["x", "\ud800"], "/1"),
        ({"a": {"\udfff": 1}}, "/a"),
        ({"a": {1: 1}}, "/a"),
        ({"a": {b"x": 1}}, "/a"),
        ([set()], "/0"),
        ([bytearray(b"x")], "/0"),
        ([Decimal(1)], "/0"),
        ([datetime.now(UTC)], "/0"),
        ([uuid4()], "/0"),
        ([OrderedDict()], "/0"),
        ([type("Text", (str,), {})("x")], "/0"),
        ([object()], "/0"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(value: Any, path: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        check_value(value, "data")
    assert caught.value.details["path"] == path
    assert caught.value.message.startswith("data")


def test_one_culprit_of_several_is_named() -> None:
    with pytest.raises(InvalidEvent) as caught:
        check_value({"a": [1, {"b": {3}}], "c": math.nan})
    assert caught.value.details["path"] in ("/a/1/b", "/c")


def test_nesting_is_limited() -> None:
    check_value(nested(limits.NESTING_DEPTH_MAX))
    check_value(nested(limits.NESTING_DEPTH_MAX - 3), depth=3)
    for value, depth in ((nested(limits.NESTING_DEPTH_MAX + 1), 0), (nested(limits.NESTING_DEPTH_MAX - 2), 3), (nested(100_000), 0)):
        with pytest.raises(LimitExceeded):
            check_value(value, depth=depth)


def test_a_value_that_contains_itself_is_refused() -> None:
    wide: list[Any] = []
    wide.extend([wide, wide])
    for value in (wide, {"a": wide}):
        with pytest.raises(LimitExceeded):
            check_value(value)


def test_a_small_value_that_unfolds_without_end_is_refused() -> None:
    value: Any = [1]
    for _ in range(80):
        value = [value] * 2048
    with pytest.raises(LimitExceeded, match="more than"):
        check_value(value)


def test_key_length_is_limited() -> None:
    check_value({"k" * limits.KEY_LENGTH_MAX: 1})
    with pytest.raises(LimitExceeded):
        check_value({"k" * (limits.KEY_LENGTH_MAX + 1): 1})


@given(CHANGES)
@settings(max_examples=50, deadline=None)
def test_well_formed_events_are_accepted(changes: tuple[Change, ...]) -> None:
    check_event(Event("message_added", changes=changes, data={"a": 1}, metadata={"b": [1]}, source="s", trace_id="t"))
    check_event(Event("message_added", changes=list(changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        Change("rotate", ("a",), 1),  # type: ignore[arg-type]
        Change("set", (), [1]),
        Change("merge", (), None),
        Change("append", (), 1),
        Change("insert", (), 1),
        Change("delete", ("a",), 1),
        insert("/a/x", 1),
        insert("/a/01", 1),
        set_value("/a", math.nan),
        "set",
    ],
)
def test_a_change_that_is_none_is_refused(change: Any) -> None:
    with pytest.raises(InvalidEvent):
        check_changes([change])


@pytest.mark.parametrize("path", ["/a", ["a"], ("a", 1), ("\ud800",)])
def test_a_path_that_is_none_is_refused(path: Any) -> None:
    with pytest.raises(InvalidPath):
        check_changes([Change("set", path, 1)])


@pytest.mark.parametrize(
    "changes",
    [
        [delete("/a")] * (limits.CHANGES_PER_EVENT_MAX + 1),
        [Change("set", ("a",) * (limits.PATH_DEPTH_MAX + 1), 1)],
        [Change("set", ("a" * (limits.KEY_LENGTH_MAX + 1),), 1)],
        [set_value("/a/b/c", nested(limits.NESTING_DEPTH_MAX - 2))],
        [append("/a/b/c", nested(limits.NESTING_DEPTH_MAX - 3))],
    ],
)
def test_limits_of_changes_hold(changes: list[Change]) -> None:
    with pytest.raises(LimitExceeded):
        check_changes(changes)


def test_changes_up_to_the_limits_are_accepted() -> None:
    check_changes([delete("/a")] * limits.CHANGES_PER_EVENT_MAX)
    check_changes([set_value("/a/b/c", nested(limits.NESTING_DEPTH_MAX - 3)), append("/a/b/c", nested(limits.NESTING_DEPTH_MAX - 4))])
    check_changes([merge("", {"a": None}), delete("")])


@pytest.mark.parametrize(
    "fields",
    [
        {"type": ""},
        {"type": "a\nb"},
        {"type": "perdure.owner_changed"},
        {"type": 5},
        {"source": "a\0b"},
        {"actor": None},
        {"trace_id": "\ud800"},
        {"correlation_id": uuid4()},
        {"id": "x"},
        {"causation_id": "x"},
        {"schema_version": 0},
        {"schema_version": True},
        {"schema_version": 2**31},
        {"replayable": 1},
        {"metadata": [1]},
        {"metadata": None},
        {"metadata": {1: 2}},
        {"data": {"a": math.nan}},
        {"changes": "set"},
        {"changes": None},
    ],
)
def test_a_broken_envelope_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        check_event(Event(**{"type": "x", **fields}))


def test_the_engines_own_types_are_accepted_from_the_engine() -> None:
    check_event(Event("perdure.owner_changed"), own_types=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "x" * (limits.TYPE_LENGTH_MAX + 1)},
        {"project": "x" * (limits.LABEL_LENGTH_MAX + 1)},
        {"metadata": {"a": "x" * limits.METADATA_BYTES_MAX}},
    ],
)
def test_limits_of_the_envelope_hold(fields: dict[str, Any]) -> None:
    with pytest.raises(LimitExceeded):
        check_event(Event(**{"type": "x", **fields}))


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(InvalidEvent):
        check_event({"type": "x"})  # type: ignore[arg-type]
