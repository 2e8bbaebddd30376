"""Schemas of states, registered per agent type and checked when events are written, never when they are replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from perdure.engine.agent_state import AgentState, from_document, pointer_of
from perdure.engine.json_schemas import NotValid, compile_json_schema
from perdure.errors import AlreadyExists, ConfigurationError, SchemaViolation

__all__ = ["Check", "SchemaRegistry", "json_schema_of"]

Check = Callable[[Mapping[str, Any]], None]


class SchemaRegistry:
    """Which schema the states of an agent type must satisfy. Each engine has its own."""

    def __init__(self) -> None:
        self._schemas: dict[str, tuple[Any, Check]] = {}

    def __contains__(self, agent_type: str) -> bool:
        return agent_type in self._schemas

    def register(self, agent_type: str, schema: Any, *, replace: bool = False) -> None:
        """Register the schema of an agent type: a msgspec Struct, dataclass, TypedDict, any type that msgspec can check, or a JSON Schema (a map).

        Raises ConfigurationError (no such schema), AlreadyExists (another schema is registered, and not `replace`), MissingDependency.
        """
        if not isinstance(agent_type, str) or not agent_type:
            raise ConfigurationError(f"an agent type is a name, not {agent_type!r:.80}")
        known = self._schemas.get(agent_type)
        if known is not None and known[0] is not schema and known[0] != schema and not replace:
            raise AlreadyExists(f"agent type {agent_type!r} has a schema already", hint="pass replace=True to put another in its place")
        what = f"the schema of agent type {agent_type!r}"
        check = compile_json_schema(schema, what) if isinstance(schema, Mapping) else _compile_type(schema, what)
        self._schemas[agent_type] = (schema, check)

    def forget(self, agent_type: str) -> None:
        """Let states of the type be as they like again."""
        self._schemas.pop(agent_type, None)

    def schema(self, agent_type: str) -> Any:
        """What was registered; None where nothing was."""
        known = self._schemas.get(agent_type)
        return None if known is None else known[0]

    def validate(self, agent_type: str, document: Mapping[str, Any]) -> None:
        """Raise SchemaViolation, with the pointer as `details["path"]`, unless the document satisfies the schema of the agent type.

        An agent type without a schema takes every document.
        """
        known = self._schemas.get(agent_type)
        if known is None:
            return
        try:
            known[1](document)
        except NotValid as error:
            place = repr(error.pointer) if error.pointer else "the root"
            message = f"a state of type {agent_type!r} does not fit at {place}: {error.reason}"
            raise SchemaViolation(message, hint="nothing was stored", path=error.pointer) from error

    def types(self) -> list[str]:
        """The agent types that have a schema, sorted."""
        return sorted(self._schemas)


def json_schema_of(schema: Any, what: str) -> dict[str, Any]:
    """A schema as JSON Schema, for processes that do not have the type. Raises ConfigurationError."""
    if isinstance(schema, Mapping):
        return dict(schema)
    try:
        found: dict[str, Any] = msgspec.json.schema(schema)
    except (TypeError, RuntimeError) as error:
        raise ConfigurationError(f"{what} cannot be written as JSON Schema: {error}") from error
    return found


def _compile_type(schema: Any, what: str) -> Check:
    try:
        msgspec.json.schema(schema)
        msgspec.convert({}, schema)
    except msgspec.ValidationError:
        pass  # the type is sound, an empty state just does not satisfy it
    except (TypeError, RuntimeError) as error:
        raise ConfigurationError(f"{what} cannot be checked: {error}", hint="give a type that msgspec knows, or a JSON Schema") from error
    if schema is AgentState:
        return _check_agent_state

    def check(document: Mapping[str, Any]) -> None:
        try:
            msgspec.convert(document, schema)
        except msgspec.ValidationError as error:
            raise NotValid(*pointer_of(error)) from error

    return check


def _check_agent_state(document: Mapping[str, Any]) -> None:
    """As `from_document` reads it: the member `document` of the type is what has no field, not a field itself."""
    try:
        from_document(document)
    except SchemaViolation as error:
        raise NotValid(error.message, error.details["path"]) from error
