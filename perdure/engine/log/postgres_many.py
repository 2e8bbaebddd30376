"""Questions about many agents at once, each in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from perdure import limits
from perdure.engine.log.decide import head_after
from perdure.engine.log.heads import first_head
from perdure.engine.log.postgres_forks import PostgresForks
from perdure.engine.log.postgres_rows import EVENT_COLUMNS, event_of
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import AgentRecord, Head, SealedEvent

__all__ = ["FEW_SEGMENTS", "PostgresMany"]

FEW_SEGMENTS: Final = 4
"""Up to so many segments, an agent's events are looked for in all of them; beyond, its own list of segments is asked first."""


class PostgresMany(PostgresForks):
    """The part of `LogStore` that asks about many agents. Their events are found by one probe of the index per agent, whatever the planner
    believes of tables that have just grown."""

    _segments: Segments

    async def heads(self, agents: Sequence[AgentRecord]) -> list[Head]:
        parts: list[str] = []
        values: list[list[int]] = []
        for table, keys in await self._last_tables(agents):
            parts.append(f"""SELECT k.agent_key, e.version, e.epoch, e.type, e.chain FROM unnest(%s::bigint[]) k(agent_key),
                LATERAL (SELECT * FROM {table} e WHERE e.agent_key = k.agent_key ORDER BY e.version DESC LIMIT 1) e""")  # noqa: S608
            values.append(keys)
        rows = await self._rows(" UNION ALL ".join(parts), *values, limit_s=limits.COMMIT_TIMEOUT_S) if parts else []
        heads = {agent: head_after(version, epoch, type, chain) for agent, version, epoch, type, chain in rows}
        return [heads.get(record.agent_key) or first_head(record) for record in agents]

    async def read_many(self, wanted: Sequence[tuple[AgentRecord, int, int]]) -> list[list[SealedEvent]]:
        by_tenant: dict[int, dict[int, tuple[AgentRecord, int, int]]] = {}
        for each in wanted:
            by_tenant.setdefault(each[0].tenant_key, {})[each[0].agent_key] = each
        found: dict[int, list[SealedEvent]] = {}
        for tenant_key, of_tenant in by_tenant.items():
            for event in await self._read_tenants(tenant_key, of_tenant):
                found.setdefault(event.agent_key, []).append(event)
        return [sorted(found.get(record.agent_key, ()), key=lambda event: event.version) for record, _, _ in wanted]

    async def _read_tenants(self, tenant_key: int, wanted: dict[int, tuple[AgentRecord, int, int]]) -> list[SealedEvent]:
        """Under the role that sees no other tenant's rows."""
        parts: list[str] = []
        values: list[Any] = []
        for table, keys in await self._last_tables([record for record, _, _ in wanted.values()]):
            parts.append(f"""SELECT {EVENT_COLUMNS} FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) k(agent_key, first, last), LATERAL
                (SELECT * FROM {table} e WHERE e.tenant_key = %s AND e.agent_key = k.agent_key AND e.version BETWEEN k.first AND k.last
                 ORDER BY e.version LIMIT k.last - k.first + 1) e""")  # noqa: S608 - table names of integers
            values += (keys, [wanted[key][1] for key in keys], [wanted[key][2] for key in keys], tenant_key)
        rows = await self._tenant_rows(tenant_key, " UNION ALL ".join(parts), *values)
        records = {key: record for key, (record, _, _) in wanted.items()}
        # The second column is the agent's key.
        return [event_of(records[row[1]].tenant, records[row[1]].agent, row) for row in rows]

    async def _last_tables(self, agents: Sequence[AgentRecord]) -> list[tuple[str, list[int]]]:
        """Where the newest events of these agents are: tables, and the keys of the agents to be looked for in each."""
        by_partition: dict[int, list[int]] = {}
        for record in agents:
            by_partition.setdefault(record.partition, []).append(record.agent_key)
        tables = []
        for partition, keys in by_partition.items():
            for segment, chosen in (await self._last_segments(partition, keys)).items():
                tables.append((f"events_{partition}" if segment is None else f"events_{partition}_{segment}", chosen))
        return tables

    async def _last_segments(self, partition: int, keys: Sequence[int]) -> dict[int | None, list[int]]:
        if self._segments.newest(partition) < FEW_SEGMENTS:
            return {None: list(keys)}
        sql = """SELECT a.agent_key, coalesce((SELECT max(s.segment) FROM agent_segments s WHERE s.agent_key = a.agent_key), a.first_segment)
                 FROM agents a WHERE a.agent_key = ANY(%s)"""
        segments: dict[int | None, list[int]] = {}
        for agent, segment in await self._rows(sql, list(keys)):
            segments.setdefault(segment, []).append(agent)
        return segments
