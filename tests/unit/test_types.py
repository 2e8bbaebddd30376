"""The thirteen typed events, and the typed view of a state."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from perdure.engine import types
from perdure.engine.agent_state import AgentState, Capability, ExecutionState, TaskRecord, from_document, to_document
from perdure.engine.checks import check_event
from perdure.engine.digest import canonical
from perdure.engine.event import Event
from perdure.engine.fold import apply
from perdure.errors import InvalidEvent, SchemaViolation

from .strategies import DOCUMENTS

NAMES = [
    "instance_created",
    "status_changed",
    "configuration_updated",
    "capability_added",
    "capability_removed",
    "task_assigned",
    "task_completed",
    "error_occurred",
    "resource_allocated",
    "resource_deallocated",
    "snapshot_created",
    "migration_started",
    "migration_completed",
]

LIFE: list[types.AgentEvent] = [
    types.InstanceCreated(status="idle", configuration={"model": "large", "limits": {"tokens": 10}}),
    types.CapabilityAdded(name="search", capability={"version": "2", "parameters": {"engine": "x"}, "vendor": "y"}),
    types.CapabilityAdded(name="browse"),
    types.CapabilityRemoved(name="browse", reason="unused"),
    types.ResourceAllocated(resource="memory_mib", amount=512),
    types.ResourceAllocated(resource="gpu", amount=1),
    types.ResourceDeallocated(resource="gpu"),
    types.TaskAssigned(task_id="t1", task={"goal": "find"}),
    types.StatusChanged(status="busy", reason="task"),
    types.ErrorOccurred(code="timeout", message="no answer", task_id="t1"),
    types.ConfigurationUpdated(patch={"limits": {"tokens": None, "calls": 3}}),
    types.TaskCompleted(task_id="t1", duration_s=1.5, result=[1]),
    types.SnapshotCreated(snapshot_id="s", version=12),
    types.MigrationStarted(migration_id="m", source="a", target="b"),
    types.MigrationCompleted(migration_id="m", target="b", downtime_ms=3),
]


def test_there_are_the_thirteen() -> None:
    assert list(types.TYPES) == NAMES
    assert {type(event).type_name for event in LIFE} == set(NAMES)


@pytest.mark.parametrize("typed", LIFE, ids=lambda typed: typed.type_name)
def test_a_typed_event_is_well_formed_and_decodes_to_itself(typed: types.AgentEvent) -> None:
    event = typed.to_event(actor="test", metadata={"a": 1})
    check_event(event)
    assert (event.type, event.actor, event.schema_version) == (typed.type_name, "test", 1)
    assert types.decode(event) == typed
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(event.data))
    assert types.decode(Event(event.type, data=stored)) == typed


def test_a_life_of_typed_events_is_an_agent_state() -> None:
    document: dict[str, Any] = {}
    for typed in LIFE:
        document, warnings = apply(document, typed.to_event().changes)
        assert warnings == []
    state = from_document(document)
    assert state.status == "busy"
    assert state.configuration == {"model": "large", "limits": {"calls": 3}}
    assert state.capabilities == {"search": Capability(version="2", parameters={"engine": "x"})}
    assert state.resource_allocation == {"memory_mib": 512}
    assert state.execution_state.current_task is None
    assert state.execution_state.task_history == [TaskRecord(task_id="t1", duration_s=1.5, result=[1])]
    assert state.execution_state.process_state == {"last_error": {"code": "timeout", "message": "no answer"}}
    assert canonical(to_document(state)) == canonical(document)


def test_any_other_type_has_no_typed_form() -> None:
    assert types.decode(Event("message_added", data={"status": "x"})) is None


@pytest.mark.parametrize("data", [None, {}, {"status": 5}, [1]])
def test_data_that_does_not_fit_its_type_is_an_error(data: Any) -> None:
    with pytest.raises(InvalidEvent, match="status_changed"):
        types.decode(Event("status_changed", data=data))


def test_data_of_a_newer_writer_is_read_without_its_new_fields() -> None:
    assert types.decode(Event("status_changed", data={"status": "x", "mood": "y"})) == types.StatusChanged(status="x")


@given(DOCUMENTS)
@settings(max_examples=100, deadline=None)
def test_the_typed_view_gives_every_free_document_back(document: dict[str, Any]) -> None:
    assert canonical(to_document(from_document(document))) == canonical(document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"status": None, "capabilities": {}, "execution_state": {}, "performance": {"error_rate": None}},
        {"execution_state": {"task_history": [], "current_task": "t", "extra": [1]}, "messages": [1]},
        {"execution_state": {"task_history": [{"task_id": "a"}, {"task_id": "b", "outcome": "completed", "x": 1}]}},
        {"performance": {"error_rate": 1, "task_completion_rate": 1.0, "more": {"a": None}}},
        {"capabilities": {"a": {"x": b"1"}, "b": {"version": "1", "parameters": {}}}},
        {"document": {"a": 1}},
        {"configuration": {"a": {}, "b": [], "c": None, "d": b"x"}},
    ],
)
def test_the_typed_view_gives_the_document_back(document: dict[str, Any]) -> None:
    assert canonical(to_document(from_document(document))) == canonical(document)


def test_the_typed_view_can_be_changed() -> None:
    state = from_document({"status": "idle", "execution_state": {"current_task": "t", "note": 1}, "messages": [1]})
    state.status = "busy"
    state.execution_state.current_task = None
    state.capabilities["a"] = Capability(version="1")
    assert to_document(state) == {
        "status": "busy",
        "execution_state": {"note": 1},
        "capabilities": {"a": {"version": "1"}},
        "messages": [1],
    }
    assert to_document(AgentState(status="x", execution_state=ExecutionState())) == {"status": "x"}


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"status": 5}, "/status"),
        ({"execution_state": {"task_history": [{"task_id": "a"}, {}]}}, "/execution_state/task_history/1"),
        ({"capabilities": {"a": 1}}, "/capabilities/*"),
    ],
)
def test_a_document_that_is_no_agent_state_is_named_by_its_place(document: Any, path: str) -> None:
    with pytest.raises(SchemaViolation) as caught:
        from_document(document)
    assert caught.value.details["path"] == path
