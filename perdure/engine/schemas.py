"""Schemas of states, registered per agent type and checked when events are written, never when they are replayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.engine.agent_state import pointer_of
from perdure.errors import AlreadyExists, ConfigurationError, SchemaViolation

__all__ = ["SchemaRegistry"]


class SchemaRegistry:
    """Which schema the states of an agent type must satisfy. Each engine has its own."""

    def __init__(self) -> None:
        self._schemas: dict[str, Any] = {}

    def register(self, agent_type: str, schema: Any, *, replace: bool = False) -> None:
        """Register the schema of an agent type: a msgspec Struct, dataclass, TypedDict, or any type that msgspec can check.

        Raises ConfigurationError (no such type), AlreadyExists (another schema is registered, and not `replace`).
        """
        known = self._schemas.get(agent_type)
        if known is not None and known is not schema and not replace:
            raise AlreadyExists(f"agent type {agent_type!r} has a schema already", hint="pass replace=True to put another in its place")
        try:
            msgspec.json.schema(schema)
            msgspec.convert({}, schema)
        except msgspec.ValidationError:
            pass  # the type is sound, an empty state just does not satisfy it
        except (TypeError, RuntimeError) as error:
            raise ConfigurationError(f"the schema of agent type {agent_type!r} cannot be checked: {error}") from error
        self._schemas[agent_type] = schema

    def validate(self, agent_type: str, document: Mapping[str, Any]) -> None:
        """Raise SchemaViolation, with the pointer as `details["path"]`, unless the document satisfies the schema of the agent type.

        An agent type without a schema takes every document.
        """
        schema = self._schemas.get(agent_type)
        if schema is None:
            return
        try:
            msgspec.convert(document, schema)
        except msgspec.ValidationError as error:
            reason, pointer = pointer_of(error)
            raise SchemaViolation(f"a state of type {agent_type!r} does not fit at {pointer!r}: {reason}", path=pointer) from error

    def types(self) -> list[str]:
        """The agent types that have a schema, sorted."""
        return sorted(self._schemas)
