"""Upcasters: events of an older schema version, brought up to date when they are read. What is stored never changes.

An upcaster takes the payload of an event at one schema version, `{"changes": tuple[Change, ...], "data": …, "metadata": {…}}`, and returns
it for the next. It must be pure: the same payload gives the same result, today and in ten years.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from perdure.engine.changes import Change
from perdure.engine.checks import check_changes
from perdure.engine.event import Event
from perdure.engine.values import check_value
from perdure.errors import AlreadyExists, ConfigurationError, InvalidEvent

__all__ = ["Payload", "Upcaster", "UpcasterRegistry"]

Payload = dict[str, Any]
Upcaster = Callable[[Payload], Payload]
AnyEvent = TypeVar("AnyEvent", bound=Event)

_PAYLOAD: Final = frozenset({"changes", "data", "metadata"})


class UpcasterRegistry:
    """The upcasters by event type and the version they start from. Each engine has its own."""

    def __init__(self) -> None:
        self._upcasters: dict[tuple[str, int], Upcaster] = {}

    def __bool__(self) -> bool:
        return bool(self._upcasters)

    def register(self, event_type: str, from_version: int, upcaster: Upcaster) -> None:
        """Register the step from a schema version to the next. Raises AlreadyExists, ConfigurationError."""
        if type(from_version) is not int or from_version < 1:
            raise ConfigurationError(f"an upcaster starts from a schema version, 1 or greater, not from {from_version!r}")
        if self._upcasters.setdefault((event_type, from_version), upcaster) is not upcaster:
            raise AlreadyExists(f"{event_type!r} version {from_version} has an upcaster already")

    def upcast(self, event: AnyEvent) -> AnyEvent:
        """The event at the newest version that upcasters lead to; the same object where none applies.

        Raises InvalidEvent where an upcaster fails or returns what is no payload.
        """
        version = event.schema_version
        upcaster = self._upcasters.get((event.type, version))
        if upcaster is None:
            return event
        payload: Payload = {
            "changes": tuple(_copy(change) for change in event.changes),
            "data": _plain(event.data),
            "metadata": _plain(event.metadata),
        }
        while upcaster is not None:
            payload = _step(event.type, version, upcaster, payload)
            version += 1
            upcaster = self._upcasters.get((event.type, version))
        return msgspec.structs.replace(event, schema_version=version, **payload)


def _step(event_type: str, version: int, upcaster: Upcaster, payload: Payload) -> Payload:
    name = f"the upcaster of {event_type!r} from version {version}"
    try:
        result = upcaster(payload)
    except Exception as error:
        raise InvalidEvent(f"{name} failed: {type(error).__name__}: {error}") from error
    if type(result) is not dict or result.keys() != _PAYLOAD or type(result["metadata"]) is not dict:
        raise InvalidEvent(f"{name} returned no payload", hint="return a dict with changes, data and metadata (a dict)")
    result["changes"] = tuple(result["changes"])
    check_changes(result["changes"])
    check_value(result["data"], f"data from {name}")
    check_value(result["metadata"], f"metadata from {name}")
    return result


def _copy(change: Change) -> Change:
    return Change(change.op, change.path, _plain(change.value))


def _plain(value: Any) -> Any:
    """A deep copy, so that no upcaster can reach the event that it was given."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))
