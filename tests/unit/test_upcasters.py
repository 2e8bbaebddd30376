"""Upcasters: chained, pure, on read."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from perdure.engine.changes import Change, append, set_value
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.upcasters import Payload, UpcasterRegistry
from perdure.errors import AlreadyExists, ConfigurationError, InvalidEvent


def _rename(payload: Payload) -> Payload:
    payload["data"]["content"] = payload["data"].pop("text")
    return payload


def _move(payload: Payload) -> Payload:
    changes = tuple(Change(change.op, ("dialog", *change.path), change.value) for change in payload["changes"])
    return {**payload, "changes": changes}


def registry() -> UpcasterRegistry:
    registry = UpcasterRegistry()
    registry.register("said", 1, _rename)
    registry.register("said", 2, _move)
    return registry


def test_an_event_goes_through_every_step_from_its_own_version() -> None:
    event = Event("said", changes=(append("/messages", {"a": [1]}),), data={"text": "hi"})
    kept = copy.deepcopy(event)
    raised = registry().upcast(event)
    assert raised.schema_version == 3
    assert raised.data == {"content": "hi"}
    assert raised.changes == (append("/dialog/messages", {"a": [1]}),)
    assert raised.id == event.id
    assert event == kept
    assert registry().upcast(Event("said", data={"content": "x"}, schema_version=2)).schema_version == 3


def test_an_event_that_no_step_concerns_is_the_same_object() -> None:
    for event in (Event("said", schema_version=3), Event("heard"), Event("said", schema_version=9)):
        assert registry().upcast(event) is event


def test_a_recorded_event_keeps_its_place() -> None:
    recorded = RecordedEvent(
        "said",
        data={"text": "hi"},
        tenant="t",
        agent="a",
        version=7,
        epoch=1,
        partition=2,
        offset=9,
        time=datetime.now(UTC),
        chain=b"x" * 32,
    )
    raised = registry().upcast(recorded)
    assert type(raised) is RecordedEvent
    assert (raised.version, raised.offset, raised.chain, raised.data) == (7, 9, recorded.chain, {"content": "hi"})


@pytest.mark.parametrize(
    "broken",
    [
        lambda payload: None,
        lambda payload: {"data": 1},
        lambda payload: {**payload, "metadata": None},
        lambda payload: {**payload, "data": {1, 2}},
        lambda payload: {**payload, "changes": [set_value("/a", float("nan"))]},
        lambda payload: payload["missing"],
    ],
)
def test_a_broken_upcaster_is_an_error_of_its_own(broken: Any) -> None:
    registry = UpcasterRegistry()
    registry.register("said", 1, broken)
    with pytest.raises(InvalidEvent):
        registry.upcast(Event("said", data={}))


def test_a_step_is_registered_once() -> None:
    full = registry()
    with pytest.raises(AlreadyExists):
        full.register("said", 1, _move)
    full.register("said", 1, _rename)
    for version in (0, -1, True, "1"):
        with pytest.raises(ConfigurationError):
            full.register("said", version, _move)  # type: ignore[arg-type]
    assert bool(full)
    assert not UpcasterRegistry()
