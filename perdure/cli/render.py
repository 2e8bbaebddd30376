"""Events, changes and states, as JSON and as lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from perdure.cli.output import cut, plain, room
from perdure.engine.log.records import rfc3339

if TYPE_CHECKING:
    from perdure.engine.changes import Change
    from perdure.engine.event import RecordedEvent

__all__ = ["change_fields", "change_line", "change_lines", "event_fields", "event_line", "excerpt", "pretty"]

EXCERPT_CHARACTERS: Final = 100
_SIGNS: Final = {"set": "=", "delete": "-", "append": "+", "insert": ">", "merge": "~"}


def pretty(value: object) -> str:
    """JSON over several lines."""
    return msgspec.json.format(msgspec.json.encode(plain(value)), indent=2).decode()


def excerpt(value: object, characters: int = EXCERPT_CHARACTERS) -> str:
    """JSON in one line, cut where it gets long."""
    return cut(msgspec.json.encode(plain(value)).decode(), characters)


def change_fields(change: Change) -> dict[str, Any]:
    """{op, path, value}; path is a JSON pointer, a deletion has no value."""
    fields: dict[str, Any] = {"op": change.op, "path": change.pointer}
    return fields if change.op == "delete" else {**fields, "value": plain(change.value)}


def change_line(change: Change) -> str:
    """`+ /messages {"role":…`."""
    head = f"{_SIGNS[change.op]} {change.pointer or '(root)'}"
    return head if change.op == "delete" else f"{head} {excerpt(change.value, room(len(head) + 1, EXCERPT_CHARACTERS))}"


def change_lines(changes: Iterable[Change]) -> str:
    """One line per change."""
    return "\n".join(map(change_line, changes)) or "no difference"


def event_fields(event: RecordedEvent) -> dict[str, Any]:
    """An event as `perdure export` writes it, so that one shape serves all commands."""
    from perdure.engine.importing import encode_line

    fields: dict[str, Any] = msgspec.json.decode(encode_line(event))
    return fields


def event_line(event: RecordedEvent) -> str:
    """version, time, type, and the beginning of what it says."""
    said = event.data if event.data is not None else {change.pointer: change.value for change in event.changes}
    head = f"{event.version:>6}  {rfc3339(event.time)}  {event.type:<23} "
    return head + excerpt(said, room(len(head), EXCERPT_CHARACTERS))
