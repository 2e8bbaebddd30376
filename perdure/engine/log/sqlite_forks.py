"""Forks in the SQLite log. The functions block; writes run in the caller's transaction, which is the log's one lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from perdure.engine.log.floor_rows import compacted
from perdure.engine.log.fork_rows import NOTHING_SHARED, check_depth, line_from
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, Parent
from perdure.engine.log.sqlite_agents import agents_of, get_agents
from perdure.engine.log.sqlite_events import read_agent
from perdure.engine.log.sqlite_floors import first_forked, floor_of
from perdure.engine.log.versions import no_version
from perdure.errors import IntegrityError

__all__ = ["SqliteForks"]

_INSERT: Final = """
INSERT INTO agents (tenant_key, agent, partition, owner, epoch, type, labels, data_key, created_us,
  parent_key, past_key, parent_version, parent_offset, parent_time_us, parent_epoch, parent_chain)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""


class SqliteForks:
    """The part of `LogStore` that is `ForkRows`."""

    _read: Callable[..., Awaitable[Any]]
    _commit: Callable[..., Awaitable[Any]]

    async def create_fork(self, record: AgentRecord, parent: AgentRecord, version: int) -> AgentRecord:
        """See `ForkRows.create_fork`."""
        made: AgentRecord = await self._commit(_create, record, parent, version)
        return made

    async def load_forks(self, records: Sequence[AgentRecord]) -> list[AgentRecord]:
        """See `ForkRows.load_forks`."""
        made: list[AgentRecord] = await self._commit(_load, records)
        return made

    async def list_forks(self, agent: AgentRecord, *, after: str = "", limit: int = 100) -> list[AgentRecord]:
        """See `ForkRows.list_forks`."""
        where = "WHERE a.parent_key = ? AND a.agent > ? ORDER BY a.agent LIMIT ?"
        found: list[AgentRecord] = await self._read(agents_of, where, (agent.agent_key, after, limit))
        return found

    async def first_forked(self, agent: AgentRecord) -> int | None:
        """See `ForkRows.first_forked`."""
        version: int | None = await self._read(first_forked, agent)
        return version


def _create(connection: sqlite3.Connection, record: AgentRecord, parent: AgentRecord, version: int) -> AgentRecord:
    past = line_from(parent, version)
    check_depth(parent, past)
    stood = _stood(connection, parent, version)
    facts = {"tenant_key": parent.tenant_key, "epoch": stood.epoch, "created_us": max(record.created_us, stood.time_us)}
    _insert(connection, msgspec.structs.replace(record, parent=stood, past=past, **facts), parent.agent_key)
    return _standing(connection, record)


def _stood(connection: sqlite3.Connection, parent: AgentRecord, version: int) -> Parent:
    """What the fork goes on from; Compacted where it was removed."""
    if version == 0:
        return msgspec.structs.replace(NOTHING_SHARED, agent=parent.agent)
    floor = floor_of(connection, parent)
    if 0 < version < floor.version:
        raise compacted(parent, version, floor)
    where = EventFilter(from_version=version, to_version=version)
    events = read_agent(connection, parent, where, 1, False) if version > 0 else []
    if not events:
        raise no_version(parent, version)
    (event,) = events
    return Parent(parent.agent, version, event.partition, event.offset, event.time_us, event.epoch, event.chain)


def _insert(connection: sqlite3.Connection, record: AgentRecord, parent_key: int) -> None:
    """Of the past only the nearest is looked at."""
    stood = record.parent
    assert stood is not None, "a fork has a parent"
    owner = record.past[0].agent_key if record.past else None
    labels = msgspec.json.encode(record.labels, order="sorted").decode()
    facts = (record.owner, record.epoch, record.type, labels, record.data_key, record.created_us)
    line = (parent_key, owner, stood.version, stood.offset, stood.time_us, stood.epoch, stood.chain)
    connection.execute(_INSERT, (record.tenant_key, record.agent, record.partition, *facts, *line))


def _load(connection: sqlite3.Connection, records: Sequence[AgentRecord]) -> list[AgentRecord]:
    for record in records:
        assert record.parent is not None, "a fork has a parent"
        (parent,) = get_agents(connection, [AgentName(record.tenant, record.parent.agent)])
        nearest = get_agents(connection, [AgentName(record.tenant, past.agent) for past in record.past[:1]])
        if parent is None or None in nearest:
            raise IntegrityError("what a fork goes on from is not there", tenant=record.tenant, agent=record.agent)
        past = tuple(
            msgspec.structs.replace(before, agent_key=owner.agent_key)
            for before, owner in zip(record.past, nearest, strict=False)
            if owner is not None
        )
        _insert(connection, msgspec.structs.replace(record, tenant_key=parent.tenant_key, past=past), parent.agent_key)
    return [_standing(connection, record) for record in records]


def _standing(connection: sqlite3.Connection, record: AgentRecord) -> AgentRecord:
    (standing,) = get_agents(connection, [AgentName(record.tenant, record.agent)])
    assert standing is not None, "it was inserted, or in the way"
    return standing
