"""Store cases: the registry of snapshots. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any
from uuid import UUID

import msgspec

from perdure.engine.log.records import AgentRecord
from perdure.engine.log.snapshot_rows import CHECKPOINT, FULL, SnapshotMark, SnapshotRow
from perdure.identifiers import uuid7
from perdure.testing.log_rows import LogUnderTest, agent_of

__all__ = ["CASES", "snapshot_row"]


def snapshot_row(agent: AgentRecord, version: int, **fields: Any) -> SnapshotRow:
    """A row of an agent with values of its own in every field."""
    facts: dict[str, Any] = {
        "epoch": 2,
        "generation": 1,
        "time_us": 1_700_000_000_000_000 + version,
        "created_us": 1_800_000_000_000_000,
        "kind": FULL,
        "trigger": "manual",
        "creator": "somebody 🙂",
        "codec": "zstd",
        "manifest": f"manifests/x/{version:020}",
        "manifest_digest": hashlib.sha256(b"manifest").digest(),
        "chain": hashlib.sha256(b"chain").digest(),
        "state_digest": hashlib.sha256(b"state").digest(),
        "plain_bytes": 1 << 40,
        "stored_bytes": 1 << 39,
        "written_bytes": 7,
        "chunks": 3,
    }
    keys = (uuid7(), agent.tenant, agent.agent, agent.tenant_key, agent.agent_key, version)
    return SnapshotRow(*keys, **{**facts, **fields})


async def a_snapshot_is_registered_and_found(log: LogUnderTest) -> None:
    """Every field comes back; another opening sees it; another tenant does not."""
    stores = [await log.open(), await log.open()]
    agent = await agent_of(stores[0])
    plain = snapshot_row(agent, 5)
    full = snapshot_row(agent, 9, expires_us=12, permanent=True, critical=True, verified_us=34, replaces=uuid7())
    assert await stores[0].add_snapshot(plain) is None
    assert await stores[0].add_snapshot(full) is None
    for store in stores:
        assert await store.snapshots(agent) == [full, plain]
        assert await store.get_snapshot(agent.tenant, full.id) == full
        assert await store.get_snapshot("other", full.id) is None
        assert await store.get_snapshot(agent.tenant, uuid7()) is None


async def older_versions_are_refused(log: LogUnderTest) -> None:
    """The row that stands in the way is returned, and nothing is written; checkpoints may name earlier versions, once each."""
    store = await log.open()
    agent, other = await agent_of(store), await agent_of(store)
    newest = snapshot_row(agent, 10)
    assert await store.add_snapshot(newest) is None
    assert await store.add_snapshot(snapshot_row(agent, 9)) == newest
    assert await store.add_snapshot(snapshot_row(agent, 10)) == newest
    assert await store.add_snapshot(snapshot_row(agent, 10, kind=CHECKPOINT)) == newest
    checkpoint = snapshot_row(agent, 4, kind=CHECKPOINT)
    assert await store.add_snapshot(checkpoint) is None
    assert await store.add_snapshot(snapshot_row(agent, 4, kind=CHECKPOINT)) == checkpoint
    assert await store.add_snapshot(snapshot_row(other, 4)) is None
    assert await store.snapshots(agent) == [newest, checkpoint]


async def one_of_many_registers_a_version(log: LogUnderTest) -> None:
    """Concurrent writers of one agent: each version is registered once, and never after a newer one."""
    stores = [await log.open(), await log.open()]
    agent = await agent_of(stores[0])
    rows = [snapshot_row(agent, 1 + number % 4) for number in range(12)]
    answers = await asyncio.gather(*(stores[number % 2].add_snapshot(row) for number, row in enumerate(rows)))
    added = [row for row, answer in zip(rows, answers, strict=True) if answer is None]
    standing = await stores[0].snapshots(agent)
    assert sorted(row.version for row in added) == sorted({row.version for row in added})
    assert {row.id for row in standing} == {row.id for row in added}
    assert standing[0].version == 4


async def rows_are_found_by_version(log: LogUnderTest) -> None:
    """Newest first, at or before a version, in pages; the newest of many agents at once."""
    store = await log.open()
    agent, empty = await agent_of(store), await agent_of(store)
    rows = [snapshot_row(agent, version) for version in (3, 6, 9)]
    for row in rows:
        await store.add_snapshot(row)
    assert await store.snapshots(agent, to_version=8, limit=1) == [rows[1]]
    assert await store.snapshots(agent, to_version=6) == [rows[1], rows[0]]
    assert await store.snapshots(agent, to_version=2) == []
    assert await store.newest_snapshots([empty, agent]) == [None, rows[2]]
    assert await store.newest_snapshots([]) == []


async def a_damaged_snapshot_gives_way(log: LogUnderTest) -> None:
    """It is told but not good; its version can be registered anew; it never becomes good again."""
    store = await log.open()
    agent = await agent_of(store)
    first, second = snapshot_row(agent, 3), snapshot_row(agent, 6)
    await store.add_snapshot(first)
    await store.add_snapshot(second)
    damaged = await store.mark_snapshot(second, SnapshotMark(damage="chunk 1: changed"))
    assert damaged == msgspec.structs.replace(second, damage="chunk 1: changed")
    assert await store.newest_snapshots([agent]) == [first]
    assert await store.snapshots(agent, good=True) == [first]
    again = snapshot_row(agent, 6, replaces=second.id)
    assert await store.add_snapshot(again) is None
    for later in ("", "another reason"):
        assert (await store.mark_snapshot(second, SnapshotMark(damage=later))) == damaged
    assert await store.snapshots(agent) == [again, damaged, first]


async def marks_change_what_they_name_alone(log: LogUnderTest) -> None:
    """Concurrent marks of different facts both stand; a row that is gone is told."""
    store = await log.open()
    agent = await agent_of(store)
    row = snapshot_row(agent, 3, expires_us=5, permanent=True)
    await store.add_snapshot(row)
    marks = [SnapshotMark(verified_us=7), SnapshotMark(critical=True), SnapshotMark(expires_us=0), SnapshotMark(permanent=False)]
    await asyncio.gather(*(store.mark_snapshot(row, mark) for mark in marks))
    changed = msgspec.structs.replace(row, verified_us=7, critical=True, expires_us=0, permanent=False)
    assert await store.get_snapshot(agent.tenant, row.id) == changed
    assert await store.mark_snapshot(snapshot_row(agent, 4), marks[0]) is None


async def the_newest_and_the_permanent_stay(log: LogUnderTest) -> None:
    """Deleting never takes the newest good ones, whichever ids are named; permanent ones only when told; another agent's never."""
    store = await log.open()
    agent, other = await agent_of(store), await agent_of(store)
    rows = [snapshot_row(agent, version, permanent=version == 2) for version in range(1, 7)]
    strange = snapshot_row(other, 1)
    for row in (*rows, strange):
        await store.add_snapshot(row)
    await store.mark_snapshot(rows[5], SnapshotMark(damage="cut off"))
    ids = [row.id for row in rows] + [strange.id, uuid7()]
    assert await store.delete_snapshots(agent, ids, keep_newest=3) == [rows[0].id, rows[5].id]
    assert await store.delete_snapshots(agent, ids, keep_newest=3) == []
    assert await store.delete_snapshots(agent, ids, keep_newest=3, even_permanent=True) == [rows[1].id]
    assert [row.version for row in await store.snapshots(agent)] == [5, 4, 3]
    assert await store.delete_snapshots(agent, ids, keep_newest=0) == [row.id for row in rows[2:5]]
    assert await store.snapshots(other) == [strange]


async def one_of_many_deletes_leaves_the_newest(log: LogUnderTest) -> None:
    """Concurrent deletes of different rows leave as many good ones as each was told to keep."""
    stores = [await log.open(), await log.open()]
    agent = await agent_of(stores[0])
    rows = [snapshot_row(agent, version) for version in range(1, 6)]
    for row in rows:
        await stores[0].add_snapshot(row)
    await asyncio.gather(*(stores[number % 2].delete_snapshots(agent, [row.id], keep_newest=3) for number, row in enumerate(rows)))
    assert [row.version for row in await stores[0].snapshots(agent)] == [5, 4, 3]


async def a_tenants_snapshots_are_listed_in_pages(log: LogUnderTest) -> None:
    """In the order of their ids, over all agents, without other tenants'."""
    store = await log.open()
    agents = [await agent_of(store, tenant="t") for _ in range(3)]
    rows = [snapshot_row(agent, version) for version in (1, 2) for agent in agents]
    for row in (*rows, snapshot_row(await agent_of(store, tenant="u"), 1)):
        await store.add_snapshot(row)
    listed: list[SnapshotRow] = []
    after: UUID | None = None
    while page := await store.list_snapshots("t", after=after, limit=4):
        listed += page
        after = page[-1].id
    assert listed == sorted(rows, key=lambda row: row.id)
    assert await store.list_snapshots("nobody") == []


async def a_row_takes_the_place_of_another(log: LogUnderTest) -> None:
    """In one step, with the promises that stand by then; not of one that is damaged, gone, or another tenant's."""
    store = await log.open()
    agent = await agent_of(store)
    old, newer = snapshot_row(agent, 5), snapshot_row(agent, 9)
    for each in (old, newer):
        await store.add_snapshot(each)
    await store.mark_snapshot(old, SnapshotMark(permanent=True, expires_us=77))
    new = snapshot_row(agent, 5, codec="lz4")
    assert await store.replace_snapshot(old, new)
    assert await store.snapshots(agent) == [newer, msgspec.structs.replace(new, permanent=True, expires_us=77)]
    assert not await store.replace_snapshot(old, snapshot_row(agent, 5))
    await store.mark_snapshot(newer, SnapshotMark(damage="cut"))
    assert not await store.replace_snapshot(newer, snapshot_row(agent, 9))
    assert [row.id for row in await store.snapshots(agent)] == [newer.id, new.id]


CASES = (
    a_snapshot_is_registered_and_found,
    older_versions_are_refused,
    one_of_many_registers_a_version,
    rows_are_found_by_version,
    a_damaged_snapshot_gives_way,
    marks_change_what_they_name_alone,
    the_newest_and_the_permanent_stay,
    one_of_many_deletes_leaves_the_newest,
    a_tenants_snapshots_are_listed_in_pages,
    a_row_takes_the_place_of_another,
)
