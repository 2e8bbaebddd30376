"""Which ids are in the Postgres log already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from perdure.engine.log.contract import Proposal
from perdure.engine.log.postgres_arrays import bigints, uuids
from perdure.engine.log.postgres_segments import Segments

__all__ = ["look_up"]


async def look_up(
    connection: AsyncConnection[Any],
    segments: Segments,
    proposal: Proposal,
    found: Mapping[tuple[int, UUID], int],
    *,
    everything: bool,
) -> dict[tuple[int, UUID], int]:
    """Versions of those of the proposal's lookups that are there and were not found before, by agent key and id.

    One statement for all partitions, over the segments that the ids can be in, and over what was removed. everything: of its rows, too.
    """
    wanted: dict[int, set[tuple[int, UUID]]] = {}
    rows = [(row.partition, row.agent_key, row.id) for row in proposal.rows] if everything else []
    for partition, agent, id in [*proposal.lookups, *rows]:
        if (agent, id) not in found:
            wanted.setdefault(partition, set()).add((agent, id))
    if not wanted:
        return {}
    parts, values = [], []
    for partition, asked in wanted.items():
        ids = [id for _, id in asked]
        after = min(segments.first_for(partition, id) for id in ids) * segments.size
        # Literal, so that segments are left out when the statement is planned.
        parts.append(f'SELECT agent_key, id, version FROM events_{partition:d} WHERE id = ANY(%b) AND "offset" > {after:d}')  # noqa: S608
        values.append(uuids(ids))
    pairs = set().union(*wanted.values())
    parts.append("SELECT agent_key, id, version FROM removed_events WHERE agent_key = ANY(%b) AND id = ANY(%b)")
    values += [bigints([agent for agent, _ in pairs]), uuids([id for _, id in pairs])]
    cursor = await connection.execute(" UNION ALL ".join(parts).encode(), values, binary=True, prepare=False)
    return {(agent, id): version for agent, id, version in await cursor.fetchall() if (agent, id) in pairs}
