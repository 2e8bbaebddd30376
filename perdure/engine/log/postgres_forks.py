"""Forks in Postgres."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.log.floor_rows import check_floor, compacted
from perdure.engine.log.fork_rows import NOTHING_SHARED, check_depth, line, line_from, owner_of, pieces
from perdure.engine.log.postgres_arrays import bigint, bigints, bytea, integer, text
from perdure.engine.log.postgres_exchange import Statement, ask_at_once, rows_of
from perdure.engine.log.postgres_floors import PostgresFloors
from perdure.engine.log.postgres_rows import AGENT_COLUMNS, agent_of
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, Head, Parent, Past, SealedEvent
from perdure.engine.log.versions import no_version
from perdure.errors import IntegrityError
from perdure.limits import FORK_DEPTH_MAX

__all__ = ["PostgresForks"]

_PARENTS: Final = """SELECT a.agent_key,
      n.agent, a.parent_version, coalesce(p.partition, -1), a.parent_offset, a.parent_time_us, a.parent_epoch, a.parent_chain
    FROM agents a JOIN agents n ON n.agent_key = a.parent_key LEFT JOIN agents p ON p.agent_key = a.past_key
    WHERE a.agent_key = ANY(%s)"""
_LINES: Final = f"""WITH RECURSIVE line AS (
    SELECT a.agent_key AS fork, 1 AS depth, p.agent, p.agent_key, p.partition, a.parent_version AS version, p.past_key, p.parent_version AS before
    FROM agents a JOIN agents p ON p.agent_key = a.past_key WHERE a.agent_key = ANY(%s)
    UNION ALL
    SELECT l.fork, l.depth + 1, p.agent, p.agent_key, p.partition, l.before, p.past_key, p.parent_version
    FROM line l JOIN agents p ON p.agent_key = l.past_key WHERE l.depth < {FORK_DEPTH_MAX})
  SELECT fork, agent, agent_key, partition, version FROM line ORDER BY fork, depth"""  # noqa: S608 - an integer
# Whoever raises a floor locks the same row for update: one of the two sees the other.
_LOCK: Final = b"SELECT agent_key FROM agents WHERE agent_key = $1 FOR KEY SHARE"
_COLUMNS: Final = """tenant_key, agent, partition, first_segment, owner, type, labels, data_key, created_us, epoch,
      parent_key, past_key, parent_version, parent_offset, parent_time_us, parent_epoch, parent_chain"""
_MAKE: Final = f"""INSERT INTO agents ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING"""  # noqa: S608 - constants
_MAKE_OF: Final = f"""INSERT INTO agents ({_COLUMNS})
    SELECT $1, $2, $3, $4, $5, $6, $7::jsonb, $8, greatest($9, e.time_us), e.epoch, $10, $11, e.version, e."offset", e.time_us, e.epoch, e.chain
    FROM {{table}} e WHERE e.agent_key = $11 AND e.version = $12 AND NOT EXISTS (SELECT FROM floors WHERE agent_key = ANY($13) AND version > $12)
    ON CONFLICT DO NOTHING
    RETURNING agent_key, created_us, parent_offset, parent_time_us, parent_epoch, parent_chain"""  # noqa: S608 - constants
_CHILDREN: Final = f"""SELECT {AGENT_COLUMNS} FROM agents a JOIN tenants t USING (tenant_key)
    WHERE a.parent_key = %s AND a.agent > %s ORDER BY a.agent LIMIT %s"""  # noqa: S608 - constants


class PostgresForks(PostgresFloors):
    """The part of `LogStore` that is `ForkRows`, and reads that go on into an agent's past."""

    agents: Callable[..., Awaitable[Any]]
    heads: Callable[..., Awaitable[Any]]
    read_agent: Callable[..., Awaitable[Any]]
    find: Callable[..., Awaitable[Any]]
    _tables: Callable[..., Awaitable[list[str]]]
    _first_segment: Callable[[AgentRecord], int]

    # --- rows ---
    async def _agents_of(self, rows: Sequence[tuple[Any, ...]]) -> list[AgentRecord]:
        """Rows as AGENT_COLUMNS; those of forks with their line."""
        records = [agent_of(row) for row in rows]
        forks = [record.agent_key for record, row in zip(records, rows, strict=True) if row[-1] is not None]
        if not forks:
            return records
        parents = {agent_key: Parent(*parent) for agent_key, *parent in await self._rows(_PARENTS, forks)}
        lines: dict[int, list[Past]] = {}
        for fork, *past in await self._rows(_LINES, forks):
            lines.setdefault(fork, []).append(Past(*past))
        return [
            msgspec.structs.replace(record, parent=parents[record.agent_key], past=tuple(lines.get(record.agent_key, ())))
            if record.agent_key in parents
            else record
            for record in records
        ]

    async def create_fork(self, record: AgentRecord, parent: AgentRecord, version: int) -> AgentRecord:
        past = line_from(parent, version)
        check_depth(parent, past)
        made = msgspec.structs.replace(record, tenant_key=parent.tenant_key, past=past)
        if past:
            if (row := await self._make_of(made, parent, past[0])) is not None:
                agent_key, created_us, *stood = row
                at = Parent(parent.agent, version, past[0].partition, *stood)
                return msgspec.structs.replace(made, agent_key=agent_key, created_us=created_us, epoch=at.epoch, parent=at)
        elif version == 0:
            await self._make(msgspec.structs.replace(made, parent=msgspec.structs.replace(NOTHING_SHARED, agent=parent.agent)), parent)
        (standing,) = await self.agents([AgentName(parent.tenant, record.agent)])
        if standing is None:
            floor = (await self.floors([parent]))[0]
            raise compacted(parent, version, floor) if 0 < version < floor.version else no_version(parent, version)
        stands: AgentRecord = standing
        return stands

    async def _make_of(self, record: AgentRecord, parent: AgentRecord, owner: Past) -> tuple[Any, ...] | None:
        """Insert a row from the event that it begins at: what it gives to the row; None: nothing was inserted."""
        where = EventFilter(from_version=owner.version, to_version=owner.version)
        tables = await self._tables(owner_of(parent, owner.version), where, descending=False)
        # Who stands between the fork and that agent may have a floor of its own, and then no longer has what is before it.
        line = [parent.agent_key, *(past.agent_key for past in parent.past if past.version >= owner.version)]
        tenant, agent, partition, segment, by, type, labels, data_key, created_us = self._facts(record)
        values = (
            *(integer(tenant), text(agent), integer(partition), integer(segment), text(by), text(type), text(labels), bytea(data_key)),
            *(bigint(created_us), bigint(parent.agent_key), bigint(owner.agent_key), bigint(owner.version), bigints(line)),
        )
        statements = [Statement(_MAKE_OF.format(table=table).encode(), values) for table in tables]
        async with self._answering(self._pool, limits.COMMIT_TIMEOUT_S) as connection:
            _, *results = await ask_at_once(connection, Statement(_LOCK, [bigint(owner.agent_key)]), *statements)
            return next((row for result in results for row in rows_of(connection, result, tuple)), None)

    async def _make(self, record: AgentRecord, parent: AgentRecord) -> None:
        """Insert a row as it is, where there is none of its name. Of the past only the nearest is looked at."""
        stood = record.parent
        assert stood is not None, "a fork has a parent"
        owner = record.past[0].agent_key if record.past else None
        line = (parent.agent_key, owner, stood.version, stood.offset, stood.time_us, stood.epoch, stood.chain)
        await self._rows(_MAKE, *self._facts(record), record.epoch, *line)

    def _facts(self, record: AgentRecord) -> tuple[Any, ...]:
        place = (record.tenant_key, record.agent, record.partition, self._first_segment(record))
        return (*place, record.owner, record.type, msgspec.json.encode(record.labels).decode(), record.data_key, record.created_us)

    async def load_forks(self, records: Sequence[AgentRecord]) -> list[AgentRecord]:
        for record in records:
            assert record.parent is not None, "a fork has a parent"
            names = [AgentName(record.tenant, record.parent.agent), *(AgentName(record.tenant, past.agent) for past in record.past[:1])]
            found = await self.agents(names)
            if None in found:
                raise IntegrityError("what a fork goes on from is not there", tenant=record.tenant, agent=record.agent)
            parent, *owner = found
            past = (msgspec.structs.replace(record.past[0], agent_key=owner[0].agent_key),) if owner else ()
            await self._make(msgspec.structs.replace(record, tenant_key=parent.tenant_key, past=past), parent)
        standing = await self.agents([AgentName(record.tenant, record.agent) for record in records])
        return [record for record in standing if record is not None]

    async def list_forks(self, agent: AgentRecord, *, after: str = "", limit: int = 100) -> list[AgentRecord]:
        return await self._agents_of(await self._rows(_CHILDREN, agent.agent_key, after, limit))

    # --- events ---
    async def _read_line(self, agent: AgentRecord, where: EventFilter, limit: int, *, descending: bool) -> list[SealedEvent]:
        """A page that begins or ends in the agent's past."""
        floor = await self._floor(agent)
        if not descending:
            check_floor(agent, where, floor)
        where = msgspec.structs.replace(where, from_version=max(where.from_version, floor.version))
        found: list[SealedEvent] = []
        for record, narrowed in pieces(agent, where, descending=descending):
            found += await self.read_agent(record, narrowed, limit - len(found), descending=descending)
            if len(found) >= limit:
                break
        return found

    async def _find_past(self, agent: AgentRecord, ids: Sequence[UUID]) -> list[SealedEvent]:
        floor = await self._floor(agent)
        found: list[SealedEvent] = []
        for record, _, last in line(agent):
            if last is not None:
                found += [event for event in await self.find(record, ids) if floor.version <= event.version <= last]
        return found

    async def version_at(self, agent: AgentRecord, time_us: int) -> int:
        # Time never goes back within a partition, so versions can be halved, in each agent of the line for itself.
        floor = await self._floor(agent)
        if floor.version > 1 and time_us < floor.time_us:
            raise compacted(agent, floor.version - 1, floor)
        heads: list[Head] = await self.heads([agent])
        for record, first, last in reversed(list(line(agent))):
            low = max(first, floor.version) - 1
            if (found := await self._halve(record, low, heads[0].version if last is None else last, time_us)) > low:
                return found
            if first <= floor.version:
                break
        return floor.version - 1

    async def _halve(self, agent: AgentRecord, low: int, high: int, time_us: int) -> int:
        """The greatest version in low+1 … high whose time is at or before `time_us`; low where there is none."""
        while low < high:
            middle = (low + high + 1) // 2
            (event,) = await self.read_agent(agent, EventFilter(from_version=middle, to_version=middle), 1)
            low, high = (middle, high) if event.time_us <= time_us else (low, middle - 1)
        return low
