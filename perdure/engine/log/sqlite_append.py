"""One append to the SQLite log: lock, look, propose, insert, commit. Blocking; runs on the store's writer thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from perdure.engine.log.contract import Position, Proposal, Propose, SealedEvent, StaleWriter, TailEvent
from perdure.engine.log.sqlite_connection import patiently, transaction
from perdure.engine.log.sqlite_floors import partition_floor
from perdure.engine.log.sqlite_rows import position
from perdure.errors import IntegrityError
from perdure.limits import TAIL_EVENTS_MAX

__all__ = ["append", "insert", "insert_alone"]

Found = dict[tuple[int, UUID], int]

_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# The offset is NULL, which its column refuses, unless the partition's newest event is the one at the offset before, of the time ?17.
# As a value it costs next to nothing; an INSERT … SELECT with this as its condition would go through a temporary table.
_INSERT_ALONE = """
INSERT INTO events VALUES (?1, CASE WHEN
  (SELECT (offset, time_us) = (?2 - 1, ?17) FROM events WHERE partition = ?1 ORDER BY offset DESC LIMIT 1)
THEN ?2 END, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
"""
_TAIL = """
SELECT partition, offset, time_us, agent_key, version, epoch, type, chain FROM events
WHERE partition = ? AND offset > ? ORDER BY offset LIMIT ?
"""


def append(connection: sqlite3.Connection, known: Mapping[int, Position], propose: Propose) -> dict[int, Position]:
    """Commit the proposal that nothing contradicts; where the partitions in `known` then stand."""
    with transaction(connection):
        standing = {partition: position(connection, partition) for partition in sorted(known)}
        tail = _tail(connection, known, standing)
        proposal = _settle(connection, propose, tail, standing)
        expected = {**standing, **_ends(proposal.rows)}
        # The pair of the check before the insert: what is about to be committed stands where it must.
        for partition, end in expected.items():
            stands = position(connection, partition)
            if stands != end:
                raise IntegrityError(f"partition {partition} stands at {stands}, not at {end}", partition=partition)
    return expected


def insert_alone(connection: sqlite3.Connection, row: SealedEvent, after: Position) -> bool:
    """Commit one row where its partition stands at `after`; False, and nothing is written, where it does not or something refuses the row.

    One statement is a transaction of its own: it takes the log's lock, looks, inserts and commits.
    """
    if row.offset != after.offset + 1 or row.time_us < after.time_us:
        raise IntegrityError(f"offset {row.offset} at {row.time_us} µs cannot follow {after}", partition=row.partition)
    try:
        patiently(connection, _INSERT_ALONE, (*_row(row), after.time_us))
    except sqlite3.IntegrityError:
        return False  # which of its rules it was, the long way tells
    return True


def _tail(connection: sqlite3.Connection, known: Mapping[int, Position], standing: Mapping[int, Position]) -> list[TailEvent]:
    newer = 0
    for partition, stands in standing.items():
        if stands.offset < known[partition].offset:
            raise IntegrityError(
                f"partition {partition} stands at offset {stands.offset}, but {known[partition].offset} was seen before",
                hint="an older copy of the log was put in its place: restart everything that has it open",
                partition=partition,
            )
        newer += stands.offset - known[partition].offset
    if newer > TAIL_EVENTS_MAX:
        raise StaleWriter(f"{newer} events are newer than what the writer knows")
    tail: list[TailEvent] = []
    for partition, stands in standing.items():
        after = known[partition].offset
        if stands.offset > after:
            rows = connection.execute(_TAIL, (partition, after, stands.offset - after)).fetchall()
            tail += [TailEvent(*row) for row in rows]
    if len(tail) != newer:
        if any(partition_floor(connection, partition) > known[partition].offset for partition in standing):
            raise StaleWriter("events that the writer does not know were removed")
        raise IntegrityError("the log has a hole in its offsets", hint="run `perdure verify`")
    return tail


def _settle(connection: sqlite3.Connection, propose: Propose, tail: Sequence[TailEvent], standing: Mapping[int, Position]) -> Proposal:
    """Propose until every id that the proposal relies on is known to be absent or was told, and its rows are in.

    Ends: each further round needs an id that was not found before, and a log holds finitely many of them.
    """
    now_us = time.time_ns() // 1000
    asked: set[tuple[int, UUID]] = set()
    found: Found = {}
    while True:
        proposal = propose(now_us, tail, dict(found))
        fresh = {(agent_key, id_) for _, agent_key, id_ in proposal.lookups} - asked
        asked |= fresh
        hits = _look_up(connection, fresh)
        if hits:
            found.update(hits)
            continue
        _check(proposal.rows, standing)
        if _insert(connection, proposal):
            return proposal
        hits = _look_up(connection, {(row.agent_key, row.id) for row in proposal.rows} - found.keys())
        if not hits:
            raise IntegrityError(
                "the index refuses rows whose ids are not in the log", hint="a version or an id stands twice in one append"
            )
        found.update(hits)


def _look_up(connection: sqlite3.Connection, ids: set[tuple[int, UUID]]) -> Found:
    sql = """SELECT version FROM events WHERE agent_key = ?1 AND id = ?2
             UNION ALL SELECT version FROM removed_events WHERE agent_key = ?1 AND id = ?2"""
    hits: Found = {}
    for agent_key, id_ in ids:
        for (version,) in connection.execute(sql, (agent_key, id_.bytes)).fetchall():
            hits[agent_key, id_] = version
    return hits


def _check(rows: Sequence[SealedEvent], standing: Mapping[int, Position]) -> None:
    """Offsets go on from where the partitions stand, and time does not go back."""
    ends = dict(standing)
    for row in rows:
        end = ends.get(row.partition)
        if end is None or row.offset != end.offset + 1 or row.time_us < end.time_us:
            raise IntegrityError(
                f"offset {row.offset} at {row.time_us} µs cannot follow {end} in partition {row.partition}",
                tenant=row.tenant,
                agent=row.agent,
                version=row.version,
            )
        ends[row.partition] = Position(row.offset, row.time_us)


def _ends(rows: Sequence[SealedEvent]) -> dict[int, Position]:
    return {row.partition: Position(row.offset, row.time_us) for row in rows}


def _insert(connection: sqlite3.Connection, proposal: Proposal) -> bool:
    """Put the proposal in; False, and nothing of it is in, when a unique index refuses."""
    try:
        if len(proposal.rows) == 1:
            connection.execute(_INSERT, _row(proposal.rows[0]))  # a statement that is refused undoes itself
        else:
            _insert_all(connection, proposal.rows)
    except sqlite3.IntegrityError as error:
        # The trigger refuses ids of events that were removed.
        if error.sqlite_errorcode not in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_TRIGGER):
            raise
        return False
    if proposal.ownership:
        owners = [(owner, epoch, agent_key) for agent_key, owner, epoch in proposal.ownership]
        connection.executemany("UPDATE agents SET owner = ?, epoch = ? WHERE agent_key = ?", owners)
    return True


def _insert_all(connection: sqlite3.Connection, rows: Sequence[SealedEvent]) -> None:
    connection.execute("SAVEPOINT proposal")
    try:
        connection.executemany(_INSERT, [_row(event) for event in rows])
    except sqlite3.IntegrityError:
        connection.execute("ROLLBACK TO proposal")
        raise
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE proposal")


def insert(connection: sqlite3.Connection, events: Sequence[SealedEvent]) -> None:
    """Put rows in as they are; the indexes refuse what stands twice."""
    connection.executemany(_INSERT, [_row(event) for event in events])


def _row(event: SealedEvent) -> tuple[Any, ...]:
    return (
        event.partition,
        event.offset,
        event.agent_key,
        event.version,
        event.tenant_key,
        event.epoch,
        event.id.bytes,
        event.type,
        event.time_us,
        None if event.causation_id is None else event.causation_id.bytes,
        event.correlation_id,
        event.trace_id,
        event.project,
        event.module,
        event.chain,
        event.payload,
    )
