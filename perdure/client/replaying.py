"""A replay: an agent's events once more, from the first, with what came of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from perdure.engine.changes import Change
from perdure.engine.digest import digest
from perdure.engine.event import RecordedEvent
from perdure.engine.fold import fold_into
from perdure.engine.log.codec import Effect
from perdure.engine.log.records import AgentName, EventFilter, SealedEvent
from perdure.engine.readonly import freeze
from perdure.engine.upcasters import UpcasterRegistry
from perdure.errors import InvalidEvent

__all__ = ["KEPT_MAX", "Replayed", "Replaying"]

KEPT_MAX: Final = 100
"""Errors, and warnings, that a result holds; all are counted."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Change, ...])


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did.

    events: handled; skipped: in the range, but not replayable. errors: what the handler or an upcaster raised, the first ones, each one line;
    error_count: all. warnings: what surprised the fold, likewise. version, document, checksum: where it ended, read-only, SHA-256 as hex.
    """

    tenant: str
    agent: str
    version: int
    events: int
    skipped: int
    duration_s: float
    error_count: int
    errors: list[str]
    warning_count: int
    warnings: list[str]
    checksum: str
    document: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether nothing raised."""
        return self.error_count == 0


class Replaying:
    """One replay while it runs. wanted: first version and types of the events that are handed on. document, version: to begin with."""

    def __init__(
        self,
        upcasters: UpcasterRegistry,
        wanted: EventFilter,
        handler: Callable[[RecordedEvent], object] | None,
        document: dict[str, Any],
        version: int,
    ) -> None:
        self._upcasters = upcasters
        self._wanted = wanted
        self._handler = handler
        self._document = document
        self._version = version
        self._events = self._skipped = 0
        self._errors: list[str] = []
        self._warnings: list[str] = []
        self._error_count = self._warning_count = 0

    @property
    def alone(self) -> bool:
        """Whether nobody is to see the events, so that what they do to the state is all that is needed of them."""
        return self._handler is None and not self._upcasters

    async def take(self, page: Sequence[SealedEvent], opened: Sequence[Effect | RecordedEvent]) -> None:
        """Take the events that follow, as they are stored. opened: of each what is inside; all of it, unless the replay is `alone`."""
        types, from_version, alone = self._wanted.types, self._wanted.from_version, self.alone
        surprises: list[str] = []
        for sealed, event in zip(page, opened, strict=True):
            # What a handler was given is in its hands; the state is folded from a copy.
            changes = event.changes if self._handler is None else _copied(event.changes)
            if sealed.version >= from_version and (not types or sealed.type in types):
                if not event.replayable:
                    self._skipped += 1
                else:
                    self._events += 1
                    if not alone:
                        assert isinstance(event, RecordedEvent)
                        await self._hand_on(event)
            self._document = fold_into(self._document, changes, None, surprises)
            if surprises:
                self._warning_count += len(surprises)
                self._warnings += [f"version {sealed.version}: {surprise}" for surprise in surprises[: KEPT_MAX - len(self._warnings)]]
                surprises.clear()
        self._version = page[-1].version

    async def _hand_on(self, event: RecordedEvent) -> None:
        try:
            current = self._upcasters.upcast(event)
            if self._handler is not None:
                answer = self._handler(current)
                if inspect.isawaitable(answer):
                    await answer
        except InvalidEvent as problem:
            self._note(event, problem.message)
        except Exception as problem:
            self._note(event, f"{type(problem).__name__}: {problem}")

    def _note(self, event: RecordedEvent, reason: str) -> None:
        self._error_count += 1
        if len(self._errors) < KEPT_MAX:
            self._errors.append(f"version {event.version}, {event.type}: {reason}")

    def result(self, name: AgentName, duration_s: float) -> Replayed:
        """What came of it."""
        return Replayed(
            name.tenant,
            name.agent,
            self._version,
            self._events,
            self._skipped,
            duration_s,
            self._error_count,
            self._errors,
            self._warning_count,
            self._warnings,
            digest(self._document).hex(),
            freeze(self._document),
        )


def _copied(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    return _decoder.decode(_encoder.encode(changes))
