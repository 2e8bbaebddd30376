"""`AgentState`: the typed view of a state that describes an agent at work.

A state is a free document. An agent whose document has these members can be read and written through types; whatever else the document
holds, on any level, is kept in `document` and comes back unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.errors import SchemaViolation

__all__ = ["AgentState", "Capability", "ExecutionState", "Performance", "TaskRecord", "from_document", "pointer_of", "to_document"]

Number = int | float


class Capability(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Something that the agent can do. A state keeps capabilities as a map by name, so that taking one away needs no index."""

    version: str | None = None
    description: str | None = None
    parameters: dict[str, Any] = {}


class TaskRecord(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A task that has ended. duration_s: seconds."""

    task_id: str
    outcome: str = "completed"
    duration_s: Number | None = None
    result: Any = None


class ExecutionState(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the agent does now, and what it did."""

    current_task: str | None = None
    task_history: list[TaskRecord] = []
    memory_usage: dict[str, Any] = {}
    process_state: dict[str, Any] = {}
    communication_state: dict[str, Any] = {}


class Performance(msgspec.Struct, omit_defaults=True, kw_only=True):
    """How well it goes. task_completion_rate, error_rate: 0 … 1; average_execution_time: seconds."""

    task_completion_rate: Number | None = None
    average_execution_time: Number | None = None
    error_rate: Number | None = None
    resource_utilization: dict[str, Any] = {}


class AgentState(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An agent's state. resource_allocation: amounts by resource. document: all that has no typed field, nested as it stood."""

    status: str | None = None
    configuration: dict[str, Any] = {}
    capabilities: dict[str, Capability] = {}
    resource_allocation: dict[str, Any] = {}
    execution_state: ExecutionState = msgspec.field(default_factory=ExecutionState)
    performance: Performance = msgspec.field(default_factory=Performance)
    document: dict[str, Any] = {}


_FIELDS = frozenset(AgentState.__struct_fields__) - {"document"}


def from_document(document: Mapping[str, Any]) -> AgentState:
    """The typed view of a document. Raises SchemaViolation with the pointer of what does not fit as `details["path"]`."""
    try:
        state = msgspec.convert({key: value for key, value in document.items() if key in _FIELDS}, AgentState)
    except msgspec.ValidationError as error:
        reason, pointer = pointer_of(error)
        raise SchemaViolation(f"the state is no AgentState: {reason} at {pointer!r}", path=pointer) from error
    state.document = _rest(dict(document), _typed(state))
    return state


def to_document(state: AgentState) -> dict[str, Any]:
    """The document of a typed view; `to_document(from_document(document))` is the document again."""
    merged = _overlay(state.document, _typed(state))
    return dict(merged)


def pointer_of(error: msgspec.ValidationError) -> tuple[str, str]:
    """The reason of a validation error, and its place as a JSON pointer (`*` stands for a map's member that msgspec does not name)."""
    reason, _, place = str(error).partition(" - at `")
    steps = re.findall(r"\.([^.\[\]]+)|\[(\d+)\]|\[(\.\.\.)\]", place.rstrip("`"))
    return reason, "".join("/" + (name or index or "*") for name, index, _ in steps)


def _typed(state: AgentState) -> dict[str, Any]:
    """The typed fields as plain values, defaults left out."""
    known = {name: getattr(state, name) for name in _FIELDS}
    plain = {name: msgspec.to_builtins(value, builtin_types=(bytes,)) for name, value in known.items()}
    return {name: value for name, value in plain.items() if value is not None and value != {}}


def _rest(value: Any, typed: Any) -> Any:
    """What of a document its typed view does not carry. Lists are compared element by element."""
    if isinstance(value, dict) and isinstance(typed, dict):
        rest = {key: _rest(item, typed[key]) if key in typed else item for key, item in value.items()}
        return {key: item for key, item in rest.items() if key not in typed or item not in ({}, [])}
    if isinstance(value, list | tuple) and isinstance(typed, list | tuple):
        rests = [_rest(item, other) for item, other in zip(value, typed, strict=True)]
        return rests if any(item != {} for item in rests) else {}
    return {}


def _overlay(rest: Any, typed: Any) -> Any:
    """The typed values over the rest. A list that has got another length since has lost the places of its elements' rests."""
    if isinstance(rest, dict) and isinstance(typed, dict):
        merged = dict(rest)
        for key, item in typed.items():
            merged[key] = _overlay(rest[key], item) if key in rest else item
        return merged
    if isinstance(rest, list) and isinstance(typed, list) and len(rest) == len(typed):
        return [_overlay(*pair) for pair in zip(rest, typed, strict=True)]
    return typed
