"""Rows of the Postgres log to sealed events and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.engine.log.contract import AgentRecord, EventFilter, SealedEvent
from perdure.engine.log.postgres_arrays import Packed, bigints, byteas, integers, texts, uuids

__all__ = ["AGENT_COLUMNS", "EVENT_COLUMNS", "agent_of", "conditions", "event_of", "packed_rows"]

AGENT_COLUMNS = (
    "t.name, a.agent, a.tenant_key, a.agent_key, a.partition, a.owner, a.epoch, a.type, a.labels, a.data_key, a.created_us, a.first_segment"
)
EVENT_COLUMNS = (
    'e.tenant_key, e.agent_key, e.partition, e."offset", e.version, e.epoch, e.id, e.type, e.time_us, e.causation, e.correlation, '
    "e.trace, e.project, e.module, e.chain, e.payload"
)


def agent_of(row: Sequence[Any]) -> AgentRecord:
    """An agent's row, selected as AGENT_COLUMNS."""
    return AgentRecord(*row[:-1])


def event_of(tenant: str, agent: str, row: Sequence[Any]) -> SealedEvent:
    """An event's row, selected as EVENT_COLUMNS."""
    return SealedEvent(tenant, agent, *row)


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
