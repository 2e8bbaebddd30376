"""Reads event lines and groups them by agent, in batches of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from perdure.engine.event import Event
from perdure.engine.importing.contract import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, BrokenRecord, Conversation
from perdure.engine.importing.event_lines import agent_of, decode_record
from perdure.engine.importing.text import decode_text, parse
from perdure.errors import InvalidEvent, InvalidInput

__all__ = ["Line", "broken_agents", "read_batches"]

Line = tuple[int, bytes]
Name = tuple[str | None, str]


class _Decoded(msgspec.Struct, frozen=True):
    name: Name
    event: Event


def broken_agents(lines: Iterable[Line]) -> frozenset[Name]:
    """The agents of which a line is broken: nothing of them may be taken. It reads all lines and keeps names and versions only."""
    versions: dict[Name, int] = {}
    broken: set[Name] = set()
    for number, line in lines:
        outcome = _decode(number, line, versions)
        if isinstance(outcome, tuple) and outcome[0] is not None:
            broken.add(outcome[0])
    return frozenset(broken)


def read_batches(lines: Iterable[Line], file: str, refused: frozenset[Name] = frozenset()) -> Iterator[Conversation | BrokenRecord]:
    """Event lines as conversations, each agent's in order; agents that are refused or turn out broken are left out from there on."""
    versions: dict[Name, int] = {}
    broken = set(refused)
    held: dict[Name, list[tuple[int, Event]]] = {}
    events = size_bytes = 0
    for number, line in lines:
        outcome = _decode(number, line, versions)
        if isinstance(outcome, tuple):
            name, reason = outcome
            if name is not None:
                broken.add(name)
                held.pop(name, None)
            yield BrokenRecord(file, number, reason)
        elif outcome.name not in broken:
            held.setdefault(outcome.name, []).append((number, outcome.event))
            events, size_bytes = events + 1, size_bytes + len(line)
        if events >= BATCH_EVENTS_MAX or size_bytes >= BATCH_BYTES_MAX:
            yield from _grouped(held, file)
            held, events, size_bytes = {}, 0, 0
    yield from _grouped(held, file)


def _decode(number: int, line: bytes, versions: dict[Name, int]) -> _Decoded | tuple[Name | None, str]:
    """The event of a line, or whose it was (None: nobody can say) and what is wrong with it."""
    try:
        record = parse(decode_text(line, number), number)
        tenant, agent, event = decode_record(record, number)
        _check_version(record.get("version"), (tenant, agent), versions)
    except InvalidInput as error:
        name = agent_of(line)
        if name is not None:
            # One fault is told once: the next line of the agent is measured by itself.
            versions.pop(name, None)
        return name, error.message
    return _Decoded((tenant, agent), event)


def _check_version(version: object, name: Name, versions: dict[Name, int]) -> None:
    if version is None:
        return
    if type(version) is not int or version < 1:
        raise InvalidEvent(f"version is {version!r:.40}, not a whole number from 1 on")
    expected = versions.get(name, version - 1) + 1
    if version != expected:
        raise InvalidEvent(f"version {version} of agent {name[1]!r:.80} follows version {expected - 1}: a line is missing or out of order")
    versions[name] = version


def _grouped(held: dict[Name, list[tuple[int, Event]]], file: str) -> Iterator[Conversation]:
    for (tenant, agent), events in held.items():
        yield Conversation(agent, "", {}, [event for _, event in events], events[0][0], file, whole=False, tenant=tenant)
