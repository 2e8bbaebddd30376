"""JSON Schema (2020-12 and the drafts that `$schema` names) as a check of states. References stay inside the schema: nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from perdure import limits
from perdure.engine.changes import format_path
from perdure.errors import ConfigurationError, LimitExceeded, MissingDependency

__all__ = ["NotValid", "compile_json_schema"]

_NAMES_ONLY: Final = frozenset({"required", "additionalProperties", "unevaluatedProperties", "dependentRequired"})
"""Keywords whose messages name members; every other message would quote the state itself, which belongs in no log of errors."""
REASON_LENGTH_MAX: Final = 200

_encoder = msgspec.msgpack.Encoder()
_decoder: Any = msgspec.msgpack.Decoder()


class NotValid(Exception):
    """A document does not satisfy a schema. reason: one line without the document's values; pointer: where."""

    def __init__(self, reason: str, pointer: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pointer = pointer


def compile_json_schema(schema: Mapping[str, Any], what: str) -> Callable[[Mapping[str, Any]], None]:
    """A check that raises NotValid. what: names the schema in errors. Raises ConfigurationError, LimitExceeded, MissingDependency."""
    try:
        from jsonschema import exceptions
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
    except ImportError as problem:
        raise MissingDependency(f"{problem.name} is not installed", hint="pip install 'perdure[schemas]'") from problem
    plain = _plain(schema, what)
    kind = validator_for(plain, default=Draft202012Validator)
    try:
        kind.check_schema(plain)
    except exceptions.SchemaError as error:
        place = format_path(tuple(map(str, error.absolute_path)))
        raise ConfigurationError(f"{what} is no JSON Schema at {place!r}: {error.message:.{REASON_LENGTH_MAX}}") from error
    registry: Any = Registry()  # an empty one retrieves nothing, whatever a reference says
    validator = kind(plain, registry=registry)

    def check(document: Mapping[str, Any]) -> None:
        # The document as a reader gets it: events may still hold tuples, which JSON Schema does not know.
        try:
            error = exceptions.best_match(validator.iter_errors(_decoder.decode(_encoder.encode(document))))
        except RecursionError:
            raise NotValid("it is nested too deep for the schema", "") from None
        if error is not None:
            raise NotValid(_reason(error), format_path(tuple(map(str, error.absolute_path))))

    return check


def _plain(schema: Mapping[str, Any], what: str) -> Any:
    """The schema as JSON would bring it, with references to itself only."""
    try:
        text = msgspec.json.encode(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{what} is not JSON: {error}") from error
    if len(text) > limits.SCHEMA_BYTES_MAX:
        raise LimitExceeded(f"{what} has {len(text)} bytes, the limit is {limits.SCHEMA_BYTES_MAX}")
    plain = msgspec.json.decode(text)
    stack = [plain]
    while stack:
        item = stack.pop()
        stack += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        for keyword in ("$ref", "$dynamicRef"):
            target = item.get(keyword) if isinstance(item, dict) else None
            if isinstance(target, str) and not target.startswith("#"):
                raise ConfigurationError(f"{what} refers to {target!r:.100}", hint="put what it refers to under $defs; nothing is fetched")
    return plain


def _reason(error: Any) -> str:
    keyword = str(error.validator)
    if keyword in _NAMES_ONLY:
        return f"{error.message:.{REASON_LENGTH_MAX}}"
    wanted = msgspec.json.encode(error.validator_value).decode()
    return f"does not hold {keyword}: {wanted:.{REASON_LENGTH_MAX}}"
