"""perdure append"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final
from uuid import UUID

from cyclopts import Parameter

import perdure
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit
from perdure.engine import changes
from perdure.engine.changes import Change
from perdure.engine.event import Event
from perdure.engine.importing.text import parse
from perdure.engine.log.expected import Expected, ExpectedVersion
from perdure.errors import ImportFailed, InvalidInput

__all__ = ["append"]

TYPE_DEFAULT: Final = "state_updated"
Pairs = Annotated[tuple[str, ...], Parameter(negative=(), allow_leading_hyphen=True, show_default=False)]


async def append(
    agent: str,
    /,
    *,
    type: str = TYPE_DEFAULT,
    data: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    set: Pairs = (),
    add: Pairs = (),
    delete: Pairs = (),
    merge: str | None = None,
    expected: str = "any",
    id: str | None = None,
    correlation_id: str | None = None,
    agent_type: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Append one event to an agent; prints its version.

    Parameters
    ----------
    agent
        The agent's id.
    type
        Type of the event.
    data
        The domain fact, as JSON; `-` reads it from stdin.
    set
        PATH=JSON: set the value at a path. Changes apply in the order set, add, delete, merge; each may be repeated.
    add
        PATH=JSON: append a value to the list at a path.
    delete
        PATH: delete what is there.
    merge
        An RFC 7396 merge patch of the whole state, as JSON.
    expected
        Where the agent must stand: a version, `any`, `no-stream` or `stream-exists`; else exit code 4.
    id
        UUID of the event: the same id again changes nothing, so a retry is safe.
    correlation_id
        What this belongs to, e.g. a run.
    agent_type
        The type that a new agent gets, before its first event; an agent of another type refuses the event.
    """
    made = [changes.set_value(*_pair(text)) for text in set]
    made += [changes.append(*_pair(text)) for text in add]
    made += [changes.delete(path) for path in delete]
    made += [changes.merge("", parsed(merge, "--merge"))] if merge is not None else []
    if not made and data is None and type == TYPE_DEFAULT:
        raise InvalidInput("what shall the event say?", hint="--set /status='\"busy\"', --add, --delete, --merge, --data or a --type")
    event = _event(type, tuple(made), data, id, correlation_id)
    async with session(options, create=True) as engine:
        done = await engine.agent(agent, tenant=options.tenant_name, type=agent_type).append([event], expected=expectation(expected))
    facts = {"tenant": options.tenant_name, "agent": agent, "version": done.version, "id": event.id, "already": done.already}
    emit(facts, as_json=options.json, text=f"version {done.version}" + (" (was there already)" if done.already else ""))


def parsed(text: str, what: str) -> Any:
    """JSON of the command line, read strictly: nothing that could not be kept as it is written."""
    try:
        return parse(text)
    except ImportFailed as error:
        raise InvalidInput(f"{what} is {error.message}", hint="quote strings twice: '\"text\"'") from error


def expectation(text: str) -> ExpectedVersion:
    """`any`, `no-stream`, `stream-exists` or a version."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return Expected(text)
    except ValueError:
        raise InvalidInput(f"--expected {text!r} is neither a version nor any, no-stream, stream-exists") from None


def _pair(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"{text!r} is not PATH=JSON", hint="for example: --set /status='\"busy\"'")
    return path, parsed(value, path or "the root's value")


def _event(type: str, made: tuple[Change, ...], data: str | None, id: str | None, correlation_id: str | None) -> Event:
    said = None if data is None else parsed(sys.stdin.read() if data == "-" else data, "--data")
    try:
        known: dict[str, Any] = {} if id is None else {"id": UUID(id)}
    except ValueError:
        raise InvalidInput(f"--id {id!r} is not a UUID") from None
    return perdure.Event(type, changes=made, data=said, correlation_id=correlation_id, **known)
