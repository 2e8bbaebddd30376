"""Commands: what somebody asks of an agent, and what came of it.

A command's first event carries the command's id. The log holds an id once for ever, so a command that is sent again, to whichever node, in
whichever epoch, takes effect once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from perdure.engine.event import Event
from perdure.errors import InvalidInput
from perdure.identifiers import uuid7

__all__ = ["COMMAND_BYTES_MAX", "Command", "CommandResult", "Handler", "Waiting", "events_of"]

COMMAND_BYTES_MAX: Final = 1024 * 1024
"""One command's body as JSON."""

_VARIANT_BITS: Final = 62


class Command(msgspec.Struct, frozen=True):
    """id: makes sending it again safe; a UUIDv7, made when the command was. body: any JSON-like value, for the handler."""

    body: Any
    id: UUID = msgspec.field(default_factory=uuid7)


class CommandResult(msgspec.Struct, frozen=True):
    """version: the agent's after the command. events: how many it wrote. already: it had taken effect before; nothing was written now."""

    version: int
    events: int
    epoch: int
    already: bool = False


class Waiting(NamedTuple):
    """A command, and where its result goes."""

    command: Command
    answer: asyncio.Future[CommandResult]


Handler = Callable[[dict[str, Any], Any], Sequence[Event] | Awaitable[Sequence[Event]]]
"""handler(state, body) -> events: decides what a command comes to; the state is read-only (`perdure.thaw` gives a copy to change).
What it raises refuses the command, and nothing else."""


def events_of(command: Command, decided: Sequence[Event]) -> list[Event]:
    """The events as they are appended: the first under the command's id, the others under ids that derive from it.

    Raises InvalidInput when the handler gave something else than events.
    """
    if not all(isinstance(event, Event) for event in decided):
        raise InvalidInput("the handler returned something that is no event", hint="return a list of perdure.Event")
    return [_under(event, _id(command.id, number), command.id if number else event.causation_id) for number, event in enumerate(decided)]


def _under(event: Event, id: UUID, causation_id: UUID | None) -> Event:
    fields = {name: getattr(event, name) for name in Event.__struct_fields__}
    return Event(**{**fields, "id": id, "causation_id": causation_id})


def _id(command_id: UUID, number: int) -> UUID:
    """The same time as the command's, another tail: so the log looks for it where it looks for the command's own."""
    if number == 0:
        return command_id
    tail = hashlib.sha256(command_id.bytes + number.to_bytes(4, "big")).digest()
    mask = (1 << _VARIANT_BITS) - 1
    return UUID(int=command_id.int & ~mask | int.from_bytes(tail, "big") & mask)
