"""The checks of what a caller hands in: changes, and whole events.

They need no state: everything here holds or fails by the event alone. Whatever passes can be folded over every state for ever, and leaves
no state nested deeper than `limits.NESTING_DEPTH_MAX`: a change's path and the nesting of its value count together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.changes import Change
from perdure.engine.event import Event
from perdure.engine.fold import END, is_index
from perdure.engine.values import MAPS, check_value, is_acceptable, is_text
from perdure.errors import InvalidEvent, InvalidPath, LimitExceeded

__all__ = ["RESERVED_PREFIX", "check_changes", "check_event"]

RESERVED_PREFIX: Final = "perdure."
SCHEMA_VERSION_MAX: Final = 2**31 - 1
_OPERATIONS: Final = frozenset({"set", "delete", "append", "insert", "merge"})
_TYPES_SEEN_MAX: Final = 1_024
_encoder = msgspec.msgpack.Encoder()
_types_seen: set[str] = set()
"""Types that were good for anybody: a program uses the same few over and over."""


def check_changes(changes: Sequence[Change]) -> None:
    """Raise unless every change is well formed. Raises InvalidEvent, InvalidPath, LimitExceeded."""
    if type(changes) is not tuple and type(changes) is not list:
        raise InvalidEvent(f"changes are a {type(changes).__qualname__}, not a list or tuple of Change")
    if len(changes) > limits.CHANGES_PER_EVENT_MAX:
        raise LimitExceeded(f"{len(changes)} changes in one event, the limit is {limits.CHANGES_PER_EVENT_MAX}")
    for position, change in enumerate(changes):
        if type(change) is not Change:
            raise InvalidEvent(
                f"change {position} is a {type(change).__qualname__}, not a Change", hint="make it with perdure.set_value and the like"
            )
        _check_path(change, position)
        _check_operation(change, position)


def check_event(event: Event, *, own_types: bool = False) -> None:
    """Raise unless the event is well formed. own_types: allow the engine's own types, `perdure.*`.

    Raises InvalidEvent, InvalidPath, LimitExceeded.
    """
    if not isinstance(event, Event):
        raise InvalidEvent(f"an event is a {type(event).__qualname__}, not an Event")
    if type(event.type) is not str or event.type not in _types_seen:
        _check_type(event.type, own_types)
    # One line each, and no loop: most events have none of them, and every event comes this way.
    if event.source != "":
        _check_label("source", event.source)
    if event.actor != "":
        _check_label("actor", event.actor)
    if event.correlation_id is not None:
        _check_label("correlation_id", event.correlation_id)
    if event.trace_id is not None:
        _check_label("trace_id", event.trace_id)
    if event.project is not None:
        _check_label("project", event.project)
    if event.module is not None:
        _check_label("module", event.module)
    if not isinstance(event.id, UUID) or not (event.causation_id is None or isinstance(event.causation_id, UUID)):
        raise InvalidEvent("id and causation_id are UUIDs", hint="uuid.UUID(text) makes one of a text")
    if type(event.schema_version) is not int or not 1 <= event.schema_version <= SCHEMA_VERSION_MAX:
        raise InvalidEvent(f"schema_version is {event.schema_version!r:.40}, not a whole number from 1 on")
    if type(event.replayable) is not bool:
        raise InvalidEvent("replayable is not a bool")
    check_changes(event.changes)
    if event.data is not None:
        check_value(event.data, "data")
    if event.metadata or type(event.metadata) is not dict:
        _check_metadata(event.metadata)


def _check_path(change: Change, position: int) -> None:
    path = change.path
    if type(path) is not tuple:
        raise InvalidPath(
            f"change {position} has the path {path!r:.80}, not a tuple of tokens", hint="parse_path('/a/0') makes one of a JSON pointer"
        )
    if len(path) > limits.PATH_DEPTH_MAX:
        raise LimitExceeded(f"change {position} has a path of {len(path)} tokens, the limit is {limits.PATH_DEPTH_MAX}")
    for token in path:
        if type(token) is not str:
            raise InvalidPath(f"change {position} has a path token that is not a str: {token!r:.80}")
        if len(token) > limits.KEY_LENGTH_MAX:
            raise LimitExceeded(f"change {position} has a path token longer than {limits.KEY_LENGTH_MAX} characters")
        if not token.isascii() and not is_text(token):
            raise InvalidPath(f"change {position} has a path token with a lone surrogate, which is not valid UTF-8")


def _check_operation(change: Change, position: int) -> None:
    operation, path, value = change.op, change.path, change.value
    if operation not in _OPERATIONS:
        raise InvalidEvent(f"change {position} has the operation {operation!r:.40}", hint="one of " + ", ".join(sorted(_OPERATIONS)))
    if operation == "delete":
        if value is not None:
            raise InvalidEvent(f"change {position} is a delete with a value")
        return
    if not path:
        if operation in ("append", "insert"):
            raise InvalidEvent(f"change {position} is an {operation} at the root, which is always a map")
        if type(value) not in MAPS:
            raise InvalidEvent(f"change {position} would make the root a {type(value).__qualname__}, the root is always a map")
    if operation == "insert" and not (is_index(path[-1]) or path[-1] == END):
        raise InvalidEvent(
            f"change {position} is an insert before {path[-1]!r:.40}, which is no list index", hint="use set for a map's member"
        )
    # An append puts its value one level below its path.
    depth = len(path) + (operation == "append")
    if not is_acceptable(value, depth):
        check_value(value, f"the value of change {position}", depth=depth)


def _check_type(name: Any, own_types: bool) -> None:
    if type(name) is not str or not name or not name.isprintable():
        raise InvalidEvent(f"type is {name!r:.80}, not a printable name")
    if len(name) > limits.TYPE_LENGTH_MAX:
        raise LimitExceeded(f"type is longer than {limits.TYPE_LENGTH_MAX} characters")
    if name.startswith(RESERVED_PREFIX):
        if not own_types:
            raise InvalidEvent(f"type {name!r} starts with {RESERVED_PREFIX!r}, which is kept for the engine's own events")
        return
    if len(_types_seen) >= _TYPES_SEEN_MAX:
        _types_seen.clear()
    _types_seen.add(name)


def _check_label(name: str, label: Any) -> None:
    if type(label) is not str or not label.isprintable():
        raise InvalidEvent(f"{name} is {label!r:.80}, not a printable text")
    if len(label) > limits.LABEL_LENGTH_MAX:
        raise LimitExceeded(f"{name} is longer than {limits.LABEL_LENGTH_MAX} characters")


def _check_metadata(metadata: Any) -> None:
    if type(metadata) not in MAPS:
        raise InvalidEvent(f"metadata is a {type(metadata).__qualname__}, not a map")
    check_value(metadata, "metadata")
    size_bytes = len(_encoder.encode(metadata))
    if size_bytes > limits.METADATA_BYTES_MAX:
        raise LimitExceeded(f"metadata is {size_bytes} bytes, the limit is {limits.METADATA_BYTES_MAX}", hint="put large things into data")
