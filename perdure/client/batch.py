"""Events that wait to be merged, and the one event that they become. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.changes import Change
from perdure.engine.diff import diff
from perdure.engine.event import Event
from perdure.engine.fold import apply
from perdure.engine.log.records import rfc3339
from perdure.errors import InvalidInput
from perdure.identifiers import uuid7

__all__ = ["MERGED", "Batch", "FastMode"]

MERGED: Final = "events_merged"
"""Type of the event that stands for a batch; its data says how many events of which types it merges, and from when to when."""

_encode = msgspec.msgpack.Encoder().encode
Value = TypeVar("Value")


class FastMode(msgspec.Struct, frozen=True):
    """How agents of a type are written on the fast path.

    critical: types of events that are written at once, each as it is. events_max, age_max_s: a batch of the others is written when it has so
    many, or when its first has waited so long.
    """

    critical: frozenset[str]
    events_max: int = limits.FAST_EVENTS_DEFAULT
    age_max_s: float = limits.FAST_AGE_DEFAULT_S

    def __post_init__(self) -> None:
        if type(self.events_max) is not int or not 1 <= self.events_max <= limits.FAST_EVENTS_MAX:
            raise InvalidInput(f"events_max is {self.events_max!r:.40}", hint=f"1 to {limits.FAST_EVENTS_MAX}")
        if not isinstance(self.age_max_s, int | float) or not 0 < self.age_max_s <= limits.FAST_AGE_MAX_S:
            raise InvalidInput(f"age_max_s is {self.age_max_s!r:.40}", hint=f"above 0, at most {limits.FAST_AGE_MAX_S:g} seconds")
        if not all(isinstance(name, str) for name in self.critical):
            raise InvalidInput("critical are names of event types")


class Batch:
    """Events of one agent that are not in the log yet, all under one epoch."""

    def __init__(self, mode: FastMode, epoch: int | None) -> None:
        self.mode = mode
        self.epoch = epoch
        self.events: list[Event] = []
        self.id: UUID = uuid7()
        """Of the event that it becomes: the same at every attempt, so that one of unknown outcome is recognized."""
        self.tried = False
        """Whether it may be in the log already; it takes no more events then."""
        self.pending: dict[str, Any] | None = None
        """What its events lead to, where that is asked before it is written."""
        self.size_bytes = 0
        self._changes = 0
        self._ids: set[UUID] = set()
        self._times = (datetime.now(UTC), datetime.now(UTC))

    def add(self, events: Sequence[Event], size_bytes: int) -> None:
        """Take events; one whose id it holds already is a retry and is left out."""
        for event in events:
            if event.id not in self._ids:
                self._ids.add(event.id)
                self.events.append(event)
                self._changes += len(event.changes)
        self.size_bytes += size_bytes
        self._times = (self._times[0], datetime.now(UTC))

    @property
    def full(self) -> bool:
        """Whether it must be written now."""
        return (
            len(self.events) >= self.mode.events_max
            or self.size_bytes >= limits.FAST_BYTES_MAX
            or self._changes >= limits.CHANGES_PER_EVENT_MAX // 2
        )

    @property
    def shut(self) -> bool:
        """Whether it takes no more events."""
        return self.tried or self.full

    def without_known(self, events: Sequence[Event]) -> list[Event]:
        """Those that are not in it."""
        return [event for event in events if event.id not in self._ids]

    def fits(self, events: Sequence[Event]) -> bool:
        """Whether these events can join it."""
        return self._changes + sum(len(event.changes) for event in events) <= limits.CHANGES_PER_EVENT_MAX

    def applied(self, document: dict[str, Any], events: Sequence[Event]) -> dict[str, Any]:
        """The document after events."""
        return apply(document, (change for event in events for change in event.changes))[0]

    def merged(self, before: dict[str, Any]) -> Event | None:
        """The event that leads from the document to what all events together lead to; None: they change nothing."""
        every = self._every()
        after, _warnings = apply(before, every)
        changes = self._smaller(every, diff(before, after))
        return self._event(changes) if changes else None

    def concatenated(self) -> Event:
        """The event with all changes of all events, which does on any state what they do one by one."""
        return self._event(self._every())

    def _every(self) -> tuple[Change, ...]:
        return tuple(change for event in self.events for change in event.changes)

    def _event(self, changes: tuple[Change, ...]) -> Event:
        return Event(
            MERGED,
            changes=changes,
            data={
                "events": len(self.events),
                "types": dict(Counter(event.type for event in self.events)),
                "first": rfc3339(self._times[0]),
                "last": rfc3339(self._times[1]),
            },
            id=self.id,
            source=_common([event.source for event in self.events]) or "",
            actor=_common([event.actor for event in self.events]) or "",
            correlation_id=_common([event.correlation_id for event in self.events]),
            trace_id=_common([event.trace_id for event in self.events]),
            project=_common([event.project for event in self.events]),
            module=_common([event.module for event in self.events]),
        )

    def _smaller(self, every: tuple[Change, ...], difference: tuple[Change, ...]) -> tuple[Change, ...]:
        # Both lead to the same document. A difference may set a long list as a whole, where the changes themselves are a few bytes.
        return difference if not difference or len(_encode(difference)) <= len(_encode(every)) else every


def _common(values: list[Value]) -> Value | None:
    """What all have in common."""
    return values[0] if all(value == values[0] for value in values) else None
