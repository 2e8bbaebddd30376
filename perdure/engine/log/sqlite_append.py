"""One append to the SQLite log: lock, look, propose, insert, commit. Blocking; runs on the store's writer thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from perdure.engine.log.contract import Proposal, Propose, StaleWriter
from perdure.engine.log.records import Position, SealedEvent, TailEvent
from perdure.engine.log.sqlite_connection import patiently, transaction
from perdure.engine.log.sqlite_events import position
from perdure.engine.log.sqlite_floors import partition_floor
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


class _Refused(Exception):
    """An index or the trigger refused a row of the proposal; the transaction that it was in must not be committed."""

    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal


def append(connection: sqlite3.Connection, known: Mapping[int, Position], propose: Propose) -> dict[int, Position]:
    """Commit the proposal that nothing contradicts; where the partitions in `known` then stand.

    What was refused is undone whole, and it begins again: a savepoint around the rows would undo as much, but keeps a copy of every page that
    they touch, which costs a quarter of the append. Ends: each further round needs an id that was not found before, and a log holds finitely many.
    """
    found: Found = {}
    refused: Proposal | None = None
    while True:
        try:
            with transaction(connection):
                return _append(connection, known, propose, found, refused)
        except _Refused as again:
            refused = again.proposal


def _append(
    connection: sqlite3.Connection, known: Mapping[int, Position], propose: Propose, found: Found, refused: Proposal | None
) -> dict[int, Position]:
    """One try, within a transaction. found: grows by what is found. refused: what was refused before, and why is asked first."""
    standing = {partition: position(connection, partition) for partition in sorted(known)}
    tail = _tail(connection, known, standing)
    if refused is not None:
        # What refused a row is still there, for nothing is ever taken out without its id being kept.
        hits = _look_up(connection, {(row.agent_key, row.id) for row in refused.rows} - found.keys())
        if not hits:
            raise IntegrityError(
                "the index refuses rows whose ids are not in the log", hint="a version or an id stands twice in one append"
            )
        found.update(hits)
    proposal = _settle(connection, propose, tail, found)
    _check(proposal.rows, standing)
    _insert(connection, proposal)
    return {**standing, **_ends(proposal.rows)}


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


def _settle(connection: sqlite3.Connection, propose: Propose, tail: Sequence[TailEvent], found: Found) -> Proposal:
    """Propose until every id that the proposal relies on is known to be absent, or was told."""
    now_us = time.time_ns() // 1000
    asked: set[tuple[int, UUID]] = set()
    while True:
        proposal = propose(now_us, tail, dict(found))
        fresh = {(agent_key, id_) for _, agent_key, id_ in proposal.lookups} - asked
        asked |= fresh
        hits = _look_up(connection, fresh)
        if not hits:
            return proposal
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


def _insert(connection: sqlite3.Connection, proposal: Proposal) -> None:
    """Put the proposal in. Raises _Refused; then a part of it may be in."""
    rows = [_row(event) for event in proposal.rows]
    try:
        written = connection.executemany(_INSERT, rows).rowcount if rows else 0
    except sqlite3.IntegrityError as error:
        # The trigger refuses ids of events that were removed.
        if error.sqlite_errorcode not in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_TRIGGER):
            raise
        raise _Refused(proposal) from error
    if written != len(rows):
        raise IntegrityError(f"{written} rows were written, not {len(rows)}")
    if proposal.ownership:
        owners = [(owner, epoch, agent_key) for agent_key, owner, epoch in proposal.ownership]
        connection.executemany("UPDATE agents SET owner = ?, epoch = ? WHERE agent_key = ?", owners)


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
