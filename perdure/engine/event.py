"""Events: what a caller hands in, and what the log hands out.

`Event` is the fact as its author knows it; `RecordedEvent` is the same fact with its place in the log. Neither is ever changed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from perdure.engine.changes import Change
from perdure.identifiers import uuid7

__all__ = ["Event", "RecordedEvent"]


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One fact about one agent, not yet recorded.

    type: a name of the author's, e.g. `message_added` (names that start with `perdure.` are the engine's own).
    changes: what it does to the agent's state, applied in order.
    data: the domain fact for people and analytics, any JSON-like value. metadata: anything else, a map.
    id: makes a retry safe: an agent holds an id once, for ever. UUIDv7, made here, unless you give one.
    source, actor: which program says it, and who did it. causation_id: the event that led to this one; correlation_id: the run that it belongs to;
    trace_id: of your tracing. project, module: yours to group by.
    schema_version: of data and changes, for upcasters. replayable: whether `replay_events` hands it to a handler.
    """

    type: str
    changes: tuple[Change, ...] = ()
    data: Any = None
    metadata: dict[str, Any] = {}
    id: UUID = msgspec.field(default_factory=uuid7)
    source: str = ""
    actor: str = ""
    causation_id: UUID | None = None
    correlation_id: str | None = None
    trace_id: str | None = None
    project: str | None = None
    module: str | None = None
    schema_version: int = 1
    replayable: bool = True


class RecordedEvent(Event, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One fact in the log.

    version: 1, 2, 3 … within the agent. partition, offset: its place in the global order. epoch: the ownership under which it was written.
    time: the log's clock, UTC; it never goes back within a partition. chain: SHA-256 over this event and the agent's event before it.
    """

    tenant: str
    agent: str
    version: int
    epoch: int
    partition: int
    offset: int
    time: datetime
    chain: bytes
