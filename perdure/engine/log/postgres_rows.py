"""Rows of the Postgres log to sealed events and back."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import starmap
from typing import Any

import msgspec

from perdure.engine.log.postgres_arrays import Packed, bigints, byteas, integers, texts, uuids
from perdure.engine.log.records import AgentRecord, EventFilter, SealedEvent

__all__ = [
    "AGENT_COLUMNS",
    "CREATE_AGENTS",
    "EVENT_COLUMNS",
    "agent_of",
    "conditions",
    "event_of",
    "events_of",
    "packed_agents",
    "packed_row",
    "packed_rows",
]

AGENT_COLUMNS = (
    "t.name, a.agent, a.tenant_key, a.agent_key, a.partition, a.owner, a.epoch, a.type, a.labels, a.data_key, a.created_us, a.parent_key"
)
_INTEGER = struct.Struct(">i").pack
_BIGINT = struct.Struct(">q").pack
EVENT_COLUMNS = (
    'e.tenant_key, e.agent_key, e.partition, e."offset", e.version, e.epoch, e.id, e.type, e.time_us, e.causation, e.correlation, '
    "e.trace, e.project, e.module, e.chain, e.payload"
)


def agent_of(row: Sequence[Any]) -> AgentRecord:
    """An agent's row, selected as AGENT_COLUMNS; of a fork without its line."""
    return AgentRecord(*row[:-1])


def event_of(tenant: str, agent: str, row: Sequence[Any]) -> SealedEvent:
    """An event's row, selected as EVENT_COLUMNS."""
    return SealedEvent(tenant, agent, *row)


def events_of(tenant: str, agent: str, rows: Iterable[Sequence[Any]]) -> list[SealedEvent]:
    """As `event_of`, of many rows of one agent."""
    return list(starmap(partial(SealedEvent, tenant, agent), rows))


CREATE_AGENTS = """WITH made AS (
  INSERT INTO agents (tenant_key, agent, partition, first_segment, owner, epoch, type, labels, data_key, created_us)
  SELECT t.tenant_key, n.agent, n.partition, n.first_segment, n.owner, n.epoch, n.type, n.labels::jsonb, n.data_key, n.created_us
  FROM unnest(%b::text[], %b::text[], %b::int[], %b::int[], %b::text[], %b::bigint[], %b::text[], %b::text[], %b::bytea[], %b::bigint[])
    n(tenant, agent, partition, first_segment, owner, epoch, type, labels, data_key, created_us)
  JOIN tenants t ON t.name = n.tenant
  ORDER BY t.tenant_key, n.agent
  ON CONFLICT DO NOTHING
  RETURNING tenant_key, agent, agent_key)
SELECT t.name, m.agent, m.tenant_key, m.agent_key FROM made m JOIN tenants t USING (tenant_key)"""


def packed_agents(records: Sequence[AgentRecord], segments: Sequence[int]) -> list[Packed]:
    """The parameters of CREATE_AGENTS. segments: per agent, the first that can hold an event of it."""
    return [
        texts([record.tenant for record in records]),
        texts([record.agent for record in records]),
        integers([record.partition for record in records]),
        integers(segments),
        texts([record.owner for record in records]),
        bigints([record.epoch for record in records]),
        texts([record.type for record in records]),
        texts([msgspec.json.encode(record.labels).decode() if record.labels else "{}" for record in records]),
        byteas([record.data_key for record in records]),
        bigints([record.created_us for record in records]),
    ]


def packed_rows(rows: Sequence[SealedEvent]) -> list[Packed]:
    """The column arrays of `append_events`, in its order."""
    return [
        bigints([row.agent_key for row in rows]),
        bigints([row.offset for row in rows]),
        bigints([row.time_us for row in rows]),
        integers([row.version for row in rows]),
        integers([row.epoch for row in rows]),
        integers([row.tenant_key for row in rows]),
        integers([row.partition for row in rows]),
        uuids([row.id for row in rows]),
        uuids([row.causation_id for row in rows]),
        texts([row.type for row in rows]),
        byteas([row.chain for row in rows]),
        texts([row.correlation_id for row in rows]),
        texts([row.trace_id for row in rows]),
        texts([row.project for row in rows]),
        texts([row.module for row in rows]),
        byteas([row.payload for row in rows]),
    ]


def packed_row(row: SealedEvent, segment: int | None) -> list[bytes | None]:
    """The parameters of `append_event` from the agent on, in its order: of one row there is nothing to gather."""
    optional = row.correlation_id, row.trace_id, row.project, row.module
    return [
        _BIGINT(row.agent_key),
        _BIGINT(row.offset),
        _INTEGER(row.version),
        _INTEGER(row.epoch),
        _INTEGER(row.tenant_key),
        row.id.bytes,
        None if row.causation_id is None else row.causation_id.bytes,
        row.type.encode(),
        row.chain,
        *(None if text is None else text.encode() for text in optional),
        row.payload,
        None if segment is None else _INTEGER(segment),
    ]


def conditions(where: EventFilter) -> tuple[str, list[Any]]:
    """The filter as SQL (`AND …`) and its parameters."""
    parts: list[str] = []
    values: list[Any] = []
    for sql, value in (
        ("e.version >= %s", where.from_version if where.from_version > 1 else None),
        ("e.version <= %s", where.to_version),
        ("e.time_us >= %s", where.since_us),
        ("e.time_us <= %s", where.until_us),
        ("e.correlation = %s", where.correlation_id),
        ("e.trace = %s", where.trace_id),
        ("e.type = ANY(%s)", list(where.types) or None),
    ):
        if value is not None:
            parts.append(f" AND {sql}")
            values.append(value)
    return "".join(parts), values
