"""JSON Schema (2020-12, and the older drafts that `$schema` names) as a check of states.

References stay inside the schema: nothing is fetched. Patterns are matched in linear time, without looking around. Bytes in a state count as their
base64 text, as they do in the JSON Schema that is made of a type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from perdure import limits
from perdure.engine.changes import format_path
from perdure.errors import ConfigurationError, LimitExceeded, MissingDependency

__all__ = ["NotValid", "compile_json_schema"]

REASON_LENGTH_MAX: Final = 200
_MASK: Final = "the value"
"""Stands for the state's values in what is said of them: they belong in no log of errors."""


class NotValid(Exception):
    """A document does not satisfy a schema. reason: one line without the document's values; pointer: where."""

    def __init__(self, reason: str, pointer: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pointer = pointer


def compile_json_schema(schema: Mapping[str, Any], what: str) -> Callable[[Mapping[str, Any]], None]:
    """A check that raises NotValid. what: names the schema in errors. Raises ConfigurationError, LimitExceeded, MissingDependency."""
    try:
        import jsonschema_rs
    except ImportError as problem:
        raise MissingDependency(f"{problem.name} is not installed", hint="pip install 'perdure[schemas]'") from problem
    plain = _plain(schema, what)
    try:
        validator = jsonschema_rs.validator_for(plain, mask=_MASK, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except ValueError as error:
        message = getattr(error, "message", str(error))
        place = format_path(tuple(map(str, getattr(error, "instance_path", ()))))
        hint = "references stay within the schema, patterns do not look around"
        raise ConfigurationError(f"{what} is no JSON Schema at {place!r}: {message:.{REASON_LENGTH_MAX}}", hint=hint) from error

    def check(document: Mapping[str, Any]) -> None:
        try:
            valid = validator.is_valid(document)
        except ValueError:
            document = msgspec.to_builtins(document)  # it holds bytes
            valid = validator.is_valid(document)
        if not valid:
            error = next(iter(validator.iter_errors(document)))
            raise NotValid(f"{error.message:.{REASON_LENGTH_MAX}}", format_path(tuple(map(str, error.instance_path))))

    return check


def _plain(schema: Mapping[str, Any], what: str) -> Any:
    """The schema as JSON would bring it."""
    try:
        text = msgspec.json.encode(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{what} is not JSON: {error}") from error
    if len(text) > limits.SCHEMA_BYTES_MAX:
        raise LimitExceeded(f"{what} has {len(text)} bytes, the limit is {limits.SCHEMA_BYTES_MAX}")
    return msgspec.json.decode(text)
