"""Events in the SQLite log, as structs: every read of them, by agent, by tenant and by partition. Plain functions on a connection; they block."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec

from perdure.engine.log.arrival_rows import HAS_ARRIVALS
from perdure.engine.log.floor_rows import check_floor, compacted, compacted_offsets
from perdure.engine.log.fork_rows import line, pieces
from perdure.engine.log.records import AgentRecord, EventFilter, Position, SealedEvent
from perdure.engine.log.sqlite_connection import reading
from perdure.engine.log.sqlite_floors import floor_of, partition_floor
from perdure.errors import IntegrityError

__all__ = [
    "find",
    "has_arrivals",
    "position",
    "positions",
    "read",
    "read_agent",
    "read_tails",
    "read_tenant",
    "version_at",
]

_NO_END = 1 << 62
# CROSS JOIN keeps SQLite from driving a query from the agents: events come in the order of their index, and a page stops at its limit.
_EVENT = """
SELECT t.name, a.agent, e.tenant_key, e.agent_key, e.partition, e.offset, e.version, e.epoch, e.id, e.type, e.time_us,
  e.causation, e.correlation, e.trace, e.project, e.module, e.chain, e.payload
FROM events e CROSS JOIN agents a USING (agent_key) CROSS JOIN tenants t ON t.tenant_key = a.tenant_key
"""


def _event(row: tuple[Any, ...]) -> SealedEvent:
    tenant, agent, tenant_key, agent_key, partition, offset, version, epoch, id_, type_, time_us, causation, *rest = row
    parent = None if causation is None else UUID(bytes=causation)
    return SealedEvent(
        tenant, agent, tenant_key, agent_key, partition, offset, version, epoch, UUID(bytes=id_), type_, time_us, parent, *rest
    )


def position(connection: sqlite3.Connection, partition: int) -> Position:
    """Where one partition stands."""
    rows = connection.execute(
        "SELECT offset, time_us FROM events WHERE partition = ? ORDER BY offset DESC LIMIT 1", (partition,)
    ).fetchall()
    return Position(*rows[0]) if rows else Position(0, 0)


def has_arrivals(connection: sqlite3.Connection) -> bool:
    """Whether agents came from elsewhere, so that times may go back within a partition."""
    return bool(connection.execute(HAS_ARRIVALS).fetchall())


def positions(connection: sqlite3.Connection, partitions: int) -> dict[int, Position]:
    """Where every partition stands, at one moment."""
    with reading(connection):
        return {partition: position(connection, partition) for partition in range(partitions)}


def read(connection: sqlite3.Connection, partition: int, after: int, limit: int, sparse: bool) -> list[SealedEvent]:
    """Offsets after+1 and on, of all tenants; checked to be dense unless sparse."""
    rows = connection.execute(
        f"{_EVENT} WHERE e.partition = ? AND e.offset > ? ORDER BY e.offset LIMIT ?", (partition, after, limit)
    ).fetchall()
    events = [_event(row) for row in rows]
    if sparse or (events and events[-1].offset == after + len(events)):
        return events
    if (floor := partition_floor(connection, partition)) > after:
        raise compacted_offsets(partition, after, floor)
    for expected, event in enumerate(events, after + 1):
        if event.offset != expected:
            raise IntegrityError(f"partition {partition} has no offset {expected}", hint="run `perdure verify`", partition=partition)
    return events


def read_tails(connection: sqlite3.Connection, after: Mapping[int, int], limit: int) -> list[SealedEvent]:
    """Of each partition, offsets after its own and on."""
    return [event for partition, offset in sorted(after.items()) for event in read(connection, partition, offset, limit, True)]


def read_agent(connection: sqlite3.Connection, agent: AgentRecord, where: EventFilter, limit: int, descending: bool) -> list[SealedEvent]:
    """A page of one agent's events in order of version."""
    if agent.past and where.from_version <= agent.past[0].version:
        return _read_line(connection, agent, where, limit, descending)
    first, last = where.from_version, where.to_version
    if where.since_us is not None:
        first = max(first, version_at(connection, agent, where.since_us - 1) + 1)
    if where.until_us is not None:
        newest = version_at(connection, agent, where.until_us)
        last = newest if last is None else min(last, newest)
    clauses, values = _narrow(where)
    clauses += ["e.agent_key = ?", "e.tenant_key = ?", "e.version >= ?"]
    values += [agent.agent_key, agent.tenant_key, first]
    if last is not None:
        clauses.append("e.version <= ?")
        values.append(last)
    order = "DESC" if descending else "ASC"
    sql = f"{_EVENT} WHERE {' AND '.join(clauses)} ORDER BY e.version {order} LIMIT ?"
    events = [_event(row) for row in connection.execute(sql, (*values, limit)).fetchall()]
    if not descending and not (events and events[0].version == where.from_version):
        check_floor(agent, where, floor_of(connection, agent))
    return events


def _read_line(connection: sqlite3.Connection, agent: AgentRecord, where: EventFilter, limit: int, descending: bool) -> list[SealedEvent]:
    """A page that begins or ends in the agent's past."""
    floor = floor_of(connection, agent)
    if not descending:
        check_floor(agent, where, floor)
    where = msgspec.structs.replace(where, from_version=max(where.from_version, floor.version))
    found: list[SealedEvent] = []
    for record, narrowed in pieces(agent, where, descending=descending):
        found += read_agent(connection, record, narrowed, limit - len(found), descending)
        if len(found) >= limit:
            break
    return found


def read_tenant(
    connection: sqlite3.Connection, tenant: str, partition: int, after: int, where: EventFilter, limit: int
) -> list[SealedEvent]:
    """A page of one tenant's events of a partition in order of offset."""
    newest = position(connection, partition).offset
    if (floor := partition_floor(connection, partition, tenant)) > after:
        raise compacted_offsets(partition, after, floor)
    clauses, values = _narrow(where)
    if has_arrivals(connection):
        # Not in order of time: each event is looked at.
        bounds = ((">=", where.since_us), ("<=", where.until_us))
        clauses += [f"e.time_us {sign} ?" for sign, time_us in bounds if time_us is not None]
        values += [time_us for _, time_us in bounds if time_us is not None]
    else:
        if where.since_us is not None:
            after = max(after, _offset_at(connection, partition, newest, where.since_us - 1))
        if where.until_us is not None:
            newest = _offset_at(connection, partition, newest, where.until_us)
    # The unary plus keeps SQLite on the index of offsets whatever it thinks of the other terms.
    clauses += ["e.partition = ?", "e.offset > ?", "e.offset <= ?", "t.name = ?", "+e.tenant_key = t.tenant_key", "e.version >= ?"]
    values += [partition, after, newest, tenant, where.from_version]
    if where.to_version is not None:
        clauses.append("e.version <= ?")
        values.append(where.to_version)
    sql = f"{_EVENT} WHERE {' AND '.join(clauses)} ORDER BY e.offset LIMIT ?"
    return [_event(row) for row in connection.execute(sql, (*values, limit)).fetchall()]


def _narrow(where: EventFilter) -> tuple[list[str], list[Any]]:
    """The terms of a filter that are not a range of versions, offsets or time."""
    clauses: list[str] = []
    values: list[Any] = []
    if where.types:
        clauses.append("e.type IN (SELECT value FROM json_each(?))")
        values.append(msgspec.json.encode(where.types).decode())
    for column, value in (("correlation", where.correlation_id), ("trace", where.trace_id)):
        if value is not None:
            clauses.append(f"e.{column} = ?")
            values.append(value)
    return clauses, values


def find(connection: sqlite3.Connection, agent: AgentRecord, ids: Sequence[UUID]) -> list[SealedEvent]:
    """The agent's events with these ids, in order of version."""
    sql = f"{_EVENT} WHERE e.agent_key = ? AND e.id = ? AND e.tenant_key = ? AND e.version BETWEEN ? AND ?"
    floor = floor_of(connection, agent).version if agent.past else 1
    found = []
    for record, _, last in line(agent):
        for id_ in set(ids):
            values = (record.agent_key, id_.bytes, agent.tenant_key, floor, _NO_END if last is None else last)
            found += connection.execute(sql, values).fetchall()
    return sorted((_event(row) for row in found), key=lambda event: event.version)


def version_at(connection: sqlite3.Connection, agent: AgentRecord, time_us: int) -> int:
    """The newest version whose time is at or before `time_us`: a binary search, because times never go back, in each agent of the line."""
    newest = "SELECT max(version) FROM events WHERE agent_key = ?"
    (high,) = connection.execute(newest, (agent.agent_key,)).fetchall()[0]
    floor = floor_of(connection, agent)
    if floor.version > 1 and time_us < floor.time_us:
        raise compacted(agent, floor.version - 1, floor)
    time_of = "SELECT time_us FROM events WHERE agent_key = ? AND version = ? AND tenant_key = ?"
    for record, first, last in reversed(list(line(agent))):
        low, end = max(first, floor.version) - 1, (high or 0) if last is None else last
        if (found := _bisect(connection, time_of, record.agent_key, (agent.tenant_key,), end, time_us, low)) > low:
            return found
        if first <= floor.version:
            break
    return floor.version - 1


def _offset_at(connection: sqlite3.Connection, partition: int, newest: int, time_us: int) -> int:
    # Where events were removed, the time of the next one that is there stands in: times never go back.
    time_of = "SELECT time_us FROM events WHERE partition = ? AND offset >= ? ORDER BY offset LIMIT 1"
    return _bisect(connection, time_of, partition, (), newest, time_us)


def _bisect(connection: sqlite3.Connection, sql: str, key: int, more: tuple[int, ...], high: int, time_us: int, low: int = 0) -> int:
    """The greatest number in low+1 … high whose time is at or before `time_us`; low where there is none."""
    while low < high:
        middle = (low + high + 1) // 2
        rows = connection.execute(sql, (key, middle, *more)).fetchall()
        if not rows:
            raise IntegrityError(f"the log has no number {middle} where it must have one", hint="run `perdure verify`")
        low, high = (middle, high) if rows[0][0] <= time_us else (low, middle - 1)
    return low
