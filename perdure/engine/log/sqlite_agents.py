"""Agents in the SQLite log: their rows, where they stand, and how they are found. Plain functions on a connection; they block."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from perdure.engine.log.chain import EMPTY_CHAIN
from perdure.engine.log.decide import FENCED, LEAVING, OWNED
from perdure.engine.log.records import AgentName, AgentRecord, Head
from perdure.engine.log.sqlite_lines import line_of
from perdure.errors import IntegrityError

__all__ = [
    "agents_of",
    "count_owned",
    "create_agents",
    "describe_agent",
    "get_agents",
    "heads",
    "list_agents",
    "list_owned",
    "swap_data_keys",
    "tenants",
]

# The types are literals, so that SQLite sees that the little index of ownership events answers it.
_HEAD = f"""
SELECT a.epoch, coalesce(e.version, a.parent_version), coalesce(e.chain, a.parent_chain), '{FENCED}' IS
  (SELECT type FROM events WHERE agent_key = a.agent_key AND type IN ('{OWNED}', '{FENCED}') ORDER BY version DESC LIMIT 1),
  e.type IS '{LEAVING}'
FROM agents a LEFT JOIN events e
  ON e.agent_key = a.agent_key AND e.version = (SELECT max(version) FROM events WHERE agent_key = a.agent_key)
WHERE a.agent_key = ? AND a.tenant_key = ?
"""  # noqa: S608

_AGENT = """
SELECT t.name, a.agent, a.tenant_key, a.agent_key, a.partition, a.owner, a.epoch, a.type, a.labels, a.data_key, a.created_us, a.parent_key
FROM agents a JOIN tenants t USING (tenant_key)
"""


def agents_of(connection: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[AgentRecord]:
    """The agents' rows that a condition names; those of forks with their line."""
    return [_agent(connection, row) for row in connection.execute(_AGENT + where, values).fetchall()]


def _agent(connection: sqlite3.Connection, row: tuple[Any, ...]) -> AgentRecord:
    tenant, agent, tenant_key, agent_key, partition, owner, epoch, type_, labels, data_key, created_us, parent_key = row
    decoded = msgspec.json.decode(labels, type=dict[str, str])
    parent, past = line_of(connection, agent_key) if parent_key is not None else (None, ())
    return AgentRecord(tenant, agent, tenant_key, agent_key, partition, owner, epoch, type_, decoded, data_key, created_us, parent, past)


def get_agents(connection: sqlite3.Connection, names: Sequence[AgentName]) -> list[AgentRecord | None]:
    """The rows of these agents, in order; None where there is none."""
    found: list[AgentRecord | None] = []
    for name in names:
        rows = agents_of(connection, "WHERE t.name = ? AND a.agent = ?", name)
        found.append(rows[0] if rows else None)
    return found


def create_agents(connection: sqlite3.Connection, records: Sequence[AgentRecord]) -> list[AgentRecord]:
    """Insert the rows that are missing, inside the caller's transaction; the rows that then stand, in order."""
    tenants_named = {(record.tenant,) for record in records}
    connection.executemany("INSERT INTO tenants (name) VALUES (?) ON CONFLICT DO NOTHING", sorted(tenants_named))
    connection.executemany(
        "INSERT INTO agents (tenant_key, agent, partition, owner, epoch, type, labels, data_key, created_us)"
        " SELECT tenant_key, ?, ?, ?, ?, ?, ?, ?, ? FROM tenants WHERE name = ? ON CONFLICT DO NOTHING",
        [(r.agent, r.partition, r.owner, r.epoch, r.type, _labels(r.labels), r.data_key, r.created_us, r.tenant) for r in records],
    )
    standing = get_agents(connection, [AgentName(record.tenant, record.agent) for record in records])
    return [_same_partition(record, row) for record, row in zip(records, standing, strict=True)]


def _same_partition(asked: AgentRecord, standing: AgentRecord | None) -> AgentRecord:
    if standing is None or standing.partition != asked.partition:
        raise IntegrityError("an agent's row is not where it was put", tenant=asked.tenant, agent=asked.agent)
    return standing


def _labels(labels: Mapping[str, str]) -> str:
    return msgspec.json.encode(dict(labels), order="sorted").decode()


def heads(connection: sqlite3.Connection, agents: Sequence[AgentRecord]) -> list[Head]:
    """Where these agents stand; each is one statement, so ownership and newest version are of one moment."""
    return [_head(connection, agent) for agent in agents]


def _head(connection: sqlite3.Connection, agent: AgentRecord) -> Head:
    rows = connection.execute(_HEAD, (agent.agent_key, agent.tenant_key)).fetchall()
    if not rows:
        raise IntegrityError("the log does not have this agent's row", tenant=agent.tenant, agent=agent.agent)
    epoch, version, chain, fenced, leaving = rows[0]
    return Head(version or 0, epoch, chain or EMPTY_CHAIN, bool(fenced or leaving), bool(leaving))


def list_agents(
    connection: sqlite3.Connection, tenant: str, type_: str | None, labels: Mapping[str, str], after: str, limit: int
) -> list[AgentRecord]:
    """A page of a tenant's agents in order of their ids (UTF-8 bytes)."""
    clauses, values = ["t.name = ?", "a.agent > ?"], [tenant, after]
    if type_ is not None:
        clauses.append("a.type = ?")
        values.append(type_)
    for key, value in labels.items():
        clauses.append("EXISTS (SELECT 1 FROM json_each(a.labels) label WHERE label.key = ? AND label.value = ?)")
        values += [key, value]
    return agents_of(connection, f"WHERE {' AND '.join(clauses)} ORDER BY a.agent LIMIT ?", (*values, limit))


def list_owned(connection: sqlite3.Connection, owner: str, after: int, limit: int) -> list[AgentRecord]:
    """Agents of every tenant that belong to an owner, in order of their keys."""
    return agents_of(
        connection, "WHERE a.owner = ? AND a.owner <> '' AND a.agent_key > ? ORDER BY a.agent_key LIMIT ?", (owner, after, limit)
    )


def count_owned(connection: sqlite3.Connection, owner: str) -> int:
    """How many agents belong to an owner."""
    ((count,),) = connection.execute("SELECT count(*) FROM agents WHERE owner = ? AND owner <> ''", (owner,)).fetchall()
    return int(count)


def tenants(connection: sqlite3.Connection) -> list[str]:
    """Every tenant that has agents, sorted."""
    rows = connection.execute(
        "SELECT name FROM tenants t WHERE EXISTS (SELECT 1 FROM agents a WHERE a.tenant_key = t.tenant_key) ORDER BY name"
    ).fetchall()
    return [name for (name,) in rows]


def describe_agent(connection: sqlite3.Connection, agent: AgentRecord, type_: str, labels: Mapping[str, str]) -> None:
    """Set the directory facts of an agent."""
    connection.execute(
        "UPDATE agents SET type = ?, labels = ? WHERE agent_key = ? AND tenant_key = ?",
        (type_, _labels(labels), agent.agent_key, agent.tenant_key),
    )


def swap_data_keys(connection: sqlite3.Connection, agents: Sequence[AgentRecord], data_keys: Sequence[bytes]) -> int:
    """Put other wrapped data keys in place of the records'; how many rows still had them."""
    sql = "UPDATE agents SET data_key = ? WHERE agent_key = ? AND tenant_key = ? AND data_key = ?"
    rows = [(new, agent.agent_key, agent.tenant_key, agent.data_key) for agent, new in zip(agents, data_keys, strict=True)]
    return connection.executemany(sql, rows).rowcount if rows else 0
