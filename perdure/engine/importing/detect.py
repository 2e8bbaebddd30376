"""Which format a record has, by its shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from perdure.engine.importing import chat, swe_agent, tau_bench, who_and_when
from perdure.engine.importing.contract import Conversation, Place
from perdure.errors import ImportFailed, InvalidEvent

__all__ = ["convert", "detect"]

_CONVERTERS: Final[dict[str, Callable[[Any, Place], Conversation]]] = {
    "tau-bench": tau_bench.convert,
    "who-and-when": who_and_when.convert,
    "swe-agent": swe_agent.convert,
    "chat": chat.convert,
}
# The more particular shapes come first.
_RECOGNISERS: Final[tuple[tuple[str, Callable[[Any], bool]], ...]] = (
    ("tau-bench", tau_bench.recognises),
    ("who-and-when", who_and_when.recognises),
    ("swe-agent", swe_agent.recognises),
    ("chat", chat.recognises),
)


def detect(record: Any) -> str | None:
    """The format of a record, None if it looks like none of them."""
    for name, recognises in _RECOGNISERS:
        if recognises(record):
            return name
    if isinstance(record, dict) and isinstance(record.get("agent"), str) and isinstance(record.get("type"), str):
        return "events"
    return None


def convert(record: Any, kind: str, place: Place) -> Conversation:
    """The conversation of a record in a format or, with `auto`, in the one that it looks like. Raises InvalidInput."""
    found = detect(record) if kind == "auto" else kind
    if found == "events":
        raise InvalidEvent("is an event line among records of another format")
    if found is None:
        raise ImportFailed(f"has no known format: {_shape(record)}")
    return _CONVERTERS[found](record, place)


def _shape(record: Any) -> str:
    if isinstance(record, dict):
        return "an object with " + (", ".join(sorted(map(repr, record))[:8]) or "no members")
    return f"a list of {len(record)}" if isinstance(record, list) else f"a bare {type(record).__name__}"
