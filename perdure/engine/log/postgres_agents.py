"""Agents in the Postgres log: their rows, and how they are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from perdure import limits
from perdure.engine.log.postgres_arrays import texts
from perdure.engine.log.postgres_forks import PostgresForks
from perdure.engine.log.postgres_rows import AGENT_COLUMNS, CREATE_AGENTS, packed_agents
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.log.together import Together

__all__ = ["PostgresAgents"]


class PostgresAgents(PostgresForks):
    """The part of `LogStore` that is about the rows of agents."""

    _segments: Segments
    _ends: dict[int, int]
    _tenants: set[str]
    _looking: Together[AgentName, AgentRecord | None]

    async def agents(self, names: Sequence[AgentName]) -> list[AgentRecord | None]:
        return [await self._looking.get(names[0])] if len(names) == 1 else await self._look_up(names)

    async def _look_up(self, names: Sequence[AgentName]) -> list[AgentRecord | None]:
        # One probe of the index per name, whatever the planner believes of a table that has just grown.
        sql = f"""SELECT {AGENT_COLUMNS} FROM unnest(%b::text[], %b::text[]) n(tenant, agent)
                  JOIN tenants t ON t.name = n.tenant,
                  LATERAL (SELECT * FROM agents a WHERE a.tenant_key = t.tenant_key AND a.agent = n.agent LIMIT 1) a"""  # noqa: S608
        rows = await self._rows(
            sql, texts([name.tenant for name in names]), texts([name.agent for name in names]), limit_s=limits.COMMIT_TIMEOUT_S
        )
        found = {AgentName(record.tenant, record.agent): record for record in await self._agents_of(rows)}
        return [found.get(name) for name in names]

    async def create_agents(self, records: Sequence[AgentRecord]) -> list[AgentRecord]:
        tenants = {record.tenant for record in records} - self._tenants
        if tenants:
            await self._rows("INSERT INTO tenants (name) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", sorted(tenants))
            self._tenants |= tenants
        segments = [self._first_segment(record) for record in records]
        rows = await self._rows(CREATE_AGENTS, *packed_agents(records, segments), limit_s=limits.COMMIT_TIMEOUT_S)
        if len(rows) == len(records):
            keys = {(tenant, agent): (tenant_key, agent_key) for tenant, agent, tenant_key, agent_key in rows}
            return [_keyed(record, *keys[record.tenant, record.agent]) for record in records]
        made = await self.agents([AgentName(record.tenant, record.agent) for record in records])
        assert None not in made
        return [record for record in made if record is not None]

    def _first_segment(self, record: AgentRecord) -> int:
        """The first that can hold an event of an agent that is made now."""
        return self._segments.of(self._ends.get(record.partition, 0) + 1)

    async def list_agents(
        self, tenant: str, *, type: str | None = None, labels: Mapping[str, str] | None = None, after: str = "", limit: int = 100
    ) -> list[AgentRecord]:
        sql = f"""SELECT {AGENT_COLUMNS} FROM agents a JOIN tenants t USING (tenant_key)
                  WHERE t.name = %s AND a.agent > %s AND (%s::text IS NULL OR a.type = %s) AND a.labels @> %s::jsonb
                  ORDER BY a.agent LIMIT %s"""  # noqa: S608
        wanted = msgspec.json.encode(dict(labels or {})).decode()
        return await self._agents_of(await self._rows(sql, tenant, after, type, type, wanted, limit))

    async def tenants(self) -> list[str]:
        sql = "SELECT t.name FROM tenants t WHERE EXISTS (SELECT FROM agents a WHERE a.tenant_key = t.tenant_key)"
        return sorted(name for (name,) in await self._rows(sql))

    async def list_owned(self, owner: str, *, after: int = 0, limit: int = 1_000) -> list[AgentRecord]:
        sql = f"""SELECT {AGENT_COLUMNS} FROM agents a JOIN tenants t USING (tenant_key)
                  WHERE a.owner = %s AND a.owner <> '' AND a.agent_key > %s ORDER BY a.agent_key LIMIT %s"""  # noqa: S608
        return await self._agents_of(await self._rows(sql, owner, after, limit))

    async def count_owned(self, owner: str) -> int:
        ((count,),) = await self._rows("SELECT count(*) FROM agents WHERE owner = %s AND owner <> ''", owner)
        return int(count)

    async def describe_agent(self, agent: AgentRecord, *, type: str, labels: Mapping[str, str]) -> None:
        encoded = msgspec.json.encode(dict(labels)).decode()
        sql = "UPDATE agents SET type = %s, labels = %s::jsonb WHERE tenant_key = %s AND agent_key = %s"
        await self._rows(sql, type, encoded, agent.tenant_key, agent.agent_key)

    async def swap_data_keys(self, agents: Sequence[AgentRecord], data_keys: Sequence[bytes]) -> int:
        # Locked in the order of their keys: two who swap at once wait for each other, and none for ever.
        sql = """WITH n AS MATERIALIZED (
                   SELECT a.tenant_key, a.agent_key, n.new_key
                   FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[], %s::bytea[]) n(tenant_key, agent_key, old_key, new_key)
                   JOIN agents a ON a.tenant_key = n.tenant_key AND a.agent_key = n.agent_key AND a.data_key = n.old_key
                   ORDER BY a.agent_key FOR NO KEY UPDATE OF a)
                 UPDATE agents a SET data_key = n.new_key FROM n WHERE a.tenant_key = n.tenant_key AND a.agent_key = n.agent_key
                 RETURNING a.agent_key"""
        keys = [agent.tenant_key for agent in agents], [agent.agent_key for agent in agents], [agent.data_key for agent in agents]
        return len(await self._rows(sql, *keys, list(data_keys)))


def _keyed(record: AgentRecord, tenant_key: int, agent_key: int) -> AgentRecord:
    return AgentRecord(
        record.tenant,
        record.agent,
        tenant_key,
        agent_key,
        record.partition,
        record.owner,
        record.epoch,
        record.type,
        record.labels,
        record.data_key,
        record.created_us,
    )
