"""What a log holds, as values: agents and where they stand, events and their places, control documents and leases.

Stores return them and the rest of the engine passes them on; what a store does with them is in `perdure.engine.log.contract`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import msgspec

__all__ = [
    "AgentName",
    "AgentRecord",
    "Document",
    "EventFilter",
    "Head",
    "Lease",
    "Parent",
    "Past",
    "Position",
    "SealedEvent",
    "TailEvent",
    "from_microseconds",
    "rfc3339",
    "to_microseconds",
]

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def from_microseconds(time_us: int) -> datetime:
    """Unix microseconds as an aware UTC datetime."""
    return _UNIX + time_us * _MICROSECOND


def to_microseconds(time: datetime) -> int:
    """An aware datetime as unix microseconds."""
    return (time - _UNIX) // _MICROSECOND


def rfc3339(time: datetime) -> str:
    """An aware datetime as people and JSON have it: UTC, six decimals, `Z`."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class AgentName(NamedTuple):
    """The key of an agent as people write it."""

    tenant: str
    agent: str


class Past(msgspec.Struct, frozen=True, gc=False):
    """An agent whose own events are another one's up to `version`, from where the next in line ends."""

    agent: str
    agent_key: int
    partition: int
    version: int


class Parent(msgspec.Struct, frozen=True, gc=False):
    """What a fork goes on from: the agent that it was forked from, the version, and what stood there. partition: of the agent whose own event it
    is, -1 for version 0."""

    agent: str
    version: int
    partition: int
    offset: int
    time_us: int
    epoch: int
    chain: bytes


class AgentRecord(msgspec.Struct, frozen=True, gc=False):
    """An agent's row: its interned keys, ownership, directory facts and its wrapped data key (empty: erased).

    parent: what a fork goes on from. past: whose events its first versions are, the nearest first (see `ForkRows`).
    """

    tenant: str
    agent: str
    tenant_key: int
    agent_key: int
    partition: int
    owner: str
    epoch: int
    type: str
    labels: dict[str, str]
    data_key: bytes
    created_us: int
    parent: Parent | None = None
    past: tuple[Past, ...] = ()


class Head(msgspec.Struct, frozen=True, gc=False):
    """Where an agent stands: version 0 and 32 zero bytes before its first event. fenced: nobody may append until ownership is settled.
    leaving: and nobody may take it, because it moves to another log, or has."""

    version: int
    epoch: int
    chain: bytes
    fenced: bool = False
    leaving: bool = False


class Position(NamedTuple):
    """Where a partition stands: its newest offset (0: empty) and that event's time in unix microseconds."""

    offset: int
    time_us: int


class SealedEvent(msgspec.Struct, frozen=True, gc=False):
    """One event as the log and the bus hold it: the envelope's indexed columns, and the rest sealed in `payload`.

    agent_key and tenant_key are the log's interned integers, 0 where the source (the bus) does not carry them.
    """

    tenant: str
    agent: str
    tenant_key: int
    agent_key: int
    partition: int
    offset: int
    version: int
    epoch: int
    id: UUID
    type: str
    time_us: int
    causation_id: UUID | None
    correlation_id: str | None
    trace_id: str | None
    project: str | None
    module: str | None
    chain: bytes
    payload: bytes


class TailEvent(NamedTuple):
    """What a writer must know of an event that somebody else appended."""

    partition: int
    offset: int
    time_us: int
    agent_key: int
    version: int
    epoch: int
    type: str
    chain: bytes


class EventFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which events to read; every field narrows. Times are unix microseconds, `until_us` is inclusive."""

    types: tuple[str, ...] = ()
    from_version: int = 1
    to_version: int | None = None
    since_us: int | None = None
    until_us: int | None = None
    correlation_id: str | None = None
    trace_id: str | None = None


class Document(NamedTuple):
    """A small control document (wrapped keys, dictionaries, checkpoints) under compare-and-set."""

    scope: str
    name: str
    revision: int
    value: bytes


class Lease(NamedTuple):
    """A lease on the store's clock. epoch grows whenever the holder changes; expires_in_s counts from the call that returned it."""

    name: str
    holder: str
    epoch: int
    expires_in_s: float
