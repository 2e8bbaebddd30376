"""What callers say about which events they want, checked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from perdure import limits
from perdure.engine.checks import check_event
from perdure.engine.log.expected import Expected
from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName, EventFilter, to_microseconds
from perdure.errors import InvalidEvent, InvalidInput, LimitExceeded

__all__ = ["check_events", "check_expected", "check_limit", "check_name", "check_version", "event_filter", "moment"]


def event_filter(
    *,
    from_version: int = 1,
    to_version: int | None = None,
    types: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    correlation_id: str | None = None,
    trace_id: str | None = None,
) -> EventFilter:
    """The filter; every field narrows. Raises InvalidInput."""
    if isinstance(types, str):
        raise InvalidInput(f"types is the text {types!r:.80}, not a list of types", hint="types=['message_added']")
    texts = {"a type": tuple(types), "correlation_id": (correlation_id,), "trace_id": (trace_id,)}
    for what, values in texts.items():
        for value in values:
            if not (isinstance(value, str) or (value is None and what != "a type")):
                raise InvalidInput(f"{what} is {value!r:.80}, not a text")
    return EventFilter(
        types=tuple(types),
        from_version=check_version("from_version", from_version, least=1),
        to_version=None if to_version is None else check_version("to_version", to_version),
        since_us=None if since is None else moment("since", since),
        until_us=None if until is None else moment("until", until),
        correlation_id=correlation_id,
        trace_id=trace_id,
    )


def moment(what: str, time: object) -> int:
    """An aware datetime as unix microseconds. Raises InvalidInput."""
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise InvalidInput(f"{what} is {time!r:.80}, not a time with a zone", hint="e.g. datetime.now(UTC)")
    return to_microseconds(time)


def check_version(what: str, version: object, *, least: int = 0) -> int:
    """A version number. Raises InvalidInput."""
    if type(version) is not int or not least <= version < 2**63:
        raise InvalidInput(f"{what} is {version!r:.40}, not a whole number from {least} on")
    return version


def check_limit(limit: object, most: int = limits.READ_PAGE_EVENTS) -> int:
    """The length of a page. Raises InvalidInput, LimitExceeded."""
    if type(limit) is not int or limit < 1:
        raise InvalidInput(f"limit is {limit!r:.40}, not a whole number from 1 on")
    if limit > most:
        raise LimitExceeded(f"limit is {limit}, at most {most}", hint="read page by page, or stream")
    return limit


def check_expected(expected: object) -> None:
    """Raise InvalidInput unless it is a version, or one of ANY, NO_STREAM, STREAM_EXISTS."""
    if not isinstance(expected, Expected):
        check_version("expected", expected)


def check_events(events: object) -> None:
    """Raise unless these are well-formed events in a list or tuple. Raises InvalidEvent, InvalidPath, LimitExceeded."""
    if not isinstance(events, list | tuple):
        raise InvalidEvent(f"events are a {type(events).__qualname__}, not a list or tuple of Event")
    for event in events:
        check_event(event)


def check_name(name: object) -> None:
    """Raise InvalidInput or LimitExceeded unless it names an agent."""
    if not isinstance(name, AgentName) or not (isinstance(name.tenant, str) and isinstance(name.agent, str)):
        raise InvalidInput(f"{name!r:.80} names no agent", hint="hand in agent.name, or perdure.AgentName(tenant, agent)")
    check_names(name)
