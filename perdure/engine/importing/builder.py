"""Turns what a format finds in a record into events with ids, causes and a run."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from msgspec import structs

from perdure.engine.changes import Change
from perdure.engine.checks import check_event
from perdure.engine.event import Event
from perdure.engine.importing.contract import Conversation, Place
from perdure.engine.importing.naming import event_id, shortened
from perdure.errors import LimitExceeded
from perdure.limits import EVENTS_PER_APPEND_MAX

__all__ = ["RunBuilder"]

_UNNAMED: Final = UUID(int=0)
_LABEL_SHOWN_MAX: Final = 120


class RunBuilder:
    """The events of one run, in order.

    Every message stands once in the log: as the value of the change that appends it. What an event says beside its changes is a few words.
    """

    def __init__(self, kind: str, agent: str, run: str) -> None:
        self.kind = kind
        self.agent = agent
        self._run = run
        self._events: list[Event] = []
        self._calls: dict[str, UUID] = {}
        self._last_call: UUID | None = None
        self.message_ids: list[UUID] = []

    @property
    def last_id(self) -> UUID | None:
        """The id of the newest event."""
        return self._events[-1].id if self._events else None

    def start(self, facts: dict[str, Any], lists: tuple[str, ...] = ("messages",)) -> None:
        """Begin the run: the record's facts become top-level members, and the lists are there even when nothing follows."""
        changes = [Change("set", (name,), value) for name, value in facts.items()]
        changes += [Change("set", (name,), []) for name in lists]
        self.add("run_started", tuple(changes), source=f"import:{self.kind}")

    def add(
        self,
        type: str,
        changes: tuple[Change, ...],
        *,
        data: dict[str, Any] | None = None,
        cause: UUID | None = None,
        actor: str = "",
        source: str = "",
    ) -> UUID:
        """Add one event and return its id. Raises InvalidEvent and the like when the log would not take it."""
        draft = Event(type, changes, data=data, id=_UNNAMED, source=source, actor=actor, causation_id=cause, correlation_id=self._run)
        # Before the id, which needs canonical bytes: what passes has them.
        check_event(draft)
        content = (type, [(change.op, change.path, change.value) for change in changes], data)
        event = structs.replace(draft, id=event_id(self.kind, self.agent, len(self._events), content))
        self._events.append(event)
        return event.id

    def called(self, event: UUID, call_ids: list[str]) -> None:
        """Remember an event as the cause of the results of its calls."""
        self._last_call = event
        for call_id in call_ids:
            self._calls[call_id] = event

    def caller(self, call_ids: list[str]) -> UUID | None:
        """The event that made the call of a result: by its id, else the newest call."""
        for call_id in call_ids:
            if call_id in self._calls:
                return self._calls[call_id]
        return self._last_call

    def build(self, labels: dict[str, str], place: Place) -> Conversation:
        """The finished conversation. Raises LimitExceeded where it cannot be appended in one piece."""
        if len(self._events) > EVENTS_PER_APPEND_MAX:
            raise LimitExceeded(f"makes {len(self._events)} events, the limit of one conversation is {EVENTS_PER_APPEND_MAX}")
        known = {"format": self.kind, "file": place.stem, **labels}
        fitting = {name: shortened(value, _LABEL_SHOWN_MAX) for name, value in known.items()}
        return Conversation(self.agent, self.kind, fitting, self._events, place.line, place.file)
