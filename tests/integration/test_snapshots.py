"""Snapshots are made, found, shared, kept forward, verified, deleted under their rules."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

import perdure
from perdure import config, limits
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.log.records import AgentName, Lease, to_microseconds
from perdure.engine.log.snapshot_rows import SnapshotMark, SnapshotRow
from perdure.engine.replay import fold_log
from perdure.errors import (
    AgentNotFound,
    ConfigurationError,
    Conflict,
    InvalidInput,
    LimitExceeded,
    SnapshotNotFound,
    Unavailable,
    VersionNotFound,
)
from perdure.snapshots.order import SnapshotOrder
from perdure.snapshots.turns import Turn
from tests.fix_snapshot_engine import TENANT, Shelved

NAME = AgentName(TENANT, "a")
EMBEDDED = pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
"""What has nothing to do with the log is tried on one of them."""
FAR = datetime(2100, 1, 1, tzinfo=UTC)


async def test_a_snapshot_says_what_it_is_and_holds_the_state(shelved: Shelved) -> None:
    await shelved.talk("a", 60)
    until = datetime.now(UTC) + timedelta(days=1)
    made = await shelved.snapshot("a", creator="tests 🙂", trigger="event", expires=until, critical=True)
    assert (made.version, made.kind, made.trigger, made.creator, made.codec) == (60, "full", "event", "tests 🙂", "zstd")
    assert (made.expires, made.critical, made.permanent, made.damage) == (until, True, False, "")
    assert 0 < made.stored_bytes < made.plain_bytes
    assert made.written_bytes == made.stored_bytes
    assert await shelved.snapshots.get_snapshot(TENANT, made.id) == made
    checked = await shelved.snapshots.verify_snapshot(TENANT, made.id, replay=True)
    assert (checked.ok, checked.replayed, checked.problem) == (True, True, "")
    assert made.verified is not None
    assert checked.snapshot.verified is not None
    assert checked.snapshot.verified > made.verified
    assert sorted(path for path in shelved.folder.rglob("*") if path.is_file()) == sorted(await shelved.objects(made))


async def test_the_next_snapshot_shares_what_did_not_change(shelved: Shelved) -> None:
    await shelved.talk("a", 2_000, padding="x" * 200)
    first = await shelved.snapshot("a")
    await shelved.talk("a", 1, start=2_000)
    second = await shelved.snapshot("a")
    full = (await shelved.snapshots.create_snapshot(NAME)).snapshot
    assert full == second
    assert (second.kind, second.version) == ("incremental", 2_001)
    assert second.chunks > 3
    assert second.written_bytes < first.written_bytes / 2
    await shelved.talk("a", 1, start=2_001)
    third = await shelved.snapshot("a", full=True)
    assert third.kind == "full"
    # Chunks have the same names whoever makes them, so that nothing is stored twice even then.
    assert third.written_bytes < first.written_bytes / 2
    assert [each.version for each in await shelved.snapshots.list_snapshots(NAME)] == [2_002, 2_001, 2_000]


@EMBEDDED
async def test_a_snapshot_that_stands_is_returned_and_only_promised_more(shelved: Shelved) -> None:
    await shelved.talk("a", 5)
    made = await shelved.snapshot("a", permanent=True, expires=FAR)
    again = await shelved.snapshots.create_snapshot(NAME, critical=True, expires=datetime(2050, 1, 1, tzinfo=UTC))
    assert again.already
    assert again.snapshot.id == made.id
    assert (again.snapshot.permanent, again.snapshot.critical, again.snapshot.expires) == (True, True, made.expires)
    checkpoint = await shelved.snapshots.create_checkpoint(NAME)
    assert checkpoint.already
    assert checkpoint.snapshot.id == made.id


async def test_a_checkpoint_keeps_an_earlier_version(shelved: Shelved) -> None:
    await shelved.talk("a", 30)
    newest = await shelved.snapshot("a")
    made = await shelved.snapshots.create_checkpoint(NAME, version=10, reason="before the deal")
    assert (made.snapshot.kind, made.snapshot.version) == ("checkpoint", 10)
    assert (await shelved.snapshots.verify_snapshot(TENANT, made.snapshot.id, replay=True)).ok
    row = await shelved.row(made.snapshot)
    assert (await shelved.snapshots.shelf.contents.manifest(row)).reason == "before the deal"
    assert [each.id for each in await shelved.snapshots.list_snapshots(NAME)] == [newest.id, made.snapshot.id]


@EMBEDDED
async def test_bad_orders_are_typed_errors_and_write_nothing(shelved: Shelved) -> None:
    create, writer = shelved.snapshots.create_snapshot, shelved.snapshots.shelf.writer
    with pytest.raises(AgentNotFound):
        await create(NAME)
    await shelved.engine.agent("a").describe(type="support")
    with pytest.raises(InvalidInput, match="no events"):
        await create(NAME)
    await shelved.talk("a", 3)
    with pytest.raises(InvalidInput, match="codec"):
        await create(NAME, codec="middle-out")
    with pytest.raises(InvalidInput, match="zone"):
        await create(NAME, expires=datetime(2100, 1, 1))
    with pytest.raises(InvalidInput, match="kind"):
        await writer.create(NAME, SnapshotOrder(kind="partial"))
    with pytest.raises(InvalidInput, match="checkpoint"):
        await writer.create(NAME, at_version=2)
    for field, longest in (("creator", limits.LABEL_LENGTH_MAX), ("trigger", limits.TYPE_LENGTH_MAX), ("reason", 4_000)):
        with pytest.raises(InvalidInput, match=field):
            await create(NAME, **{field: "a\0b"})
        with pytest.raises(InvalidInput, match=field):
            await create(NAME, **{field: "\ud800"})
        with pytest.raises(LimitExceeded, match=field):
            await create(NAME, **{field: "x" * (longest + 1)})
    for name in (AgentName(TENANT, "a\0b"), AgentName(TENANT, ""), AgentName("\ud800", "a"), AgentName(TENANT, "x" * 10_000)):
        for attempt in (create(name), shelved.snapshots.list_snapshots(name), shelved.snapshots.restore_snapshot(name)):
            with pytest.raises(InvalidInput):
                await attempt
    with pytest.raises(InvalidInput):
        await shelved.snapshots.get_snapshot("t\0", uuid4())
    for version in (0, 4, -1):
        with pytest.raises(VersionNotFound):
            await shelved.snapshots.create_checkpoint(NAME, version=version)
    with pytest.raises(SnapshotNotFound):
        await shelved.snapshots.get_snapshot(TENANT, uuid4())
    assert await shelved.snapshots.list_snapshots(NAME) == []
    assert not shelved.folder.exists()


async def test_without_a_store_snapshots_are_a_configuration_error_and_reads_go_on(fresh_database: str, tmp_path: object) -> None:
    settings = config.load({"log": fresh_database, "keys": f"file://{tmp_path}/root.key"}, {})
    async with perdure.open(settings=settings) as engine:
        await engine.agent("a").append(Event("noted", changes=(perdure.set_value("/x", 1),)))
        assert (await engine.agent("a").state()).document == {"x": 1}
        with pytest.raises(ConfigurationError, match="no store"):
            await engine.snapshots.create_snapshot(NAME)


@EMBEDDED
@pytest.mark.parametrize("codec", ["none", "zstd", "lz4", "snappy", "gzip"])
async def test_every_codec_gives_the_state_back(shelved: Shelved, codec: str) -> None:
    await shelved.talk("a", 40)
    made = await shelved.snapshot("a", codec=codec)
    assert made.codec == codec
    assert (await shelved.snapshots.verify_snapshot(TENANT, made.id, replay=True)).ok


async def test_snapshots_of_many_agents_and_one_agent_at_once(shelved: Shelved) -> None:
    """Two processes and many tasks: one row a version, all of them whole."""
    for number in range(4):
        await shelved.talk(f"a{number}", 10)
    other = await shelved.fresh()
    try:
        orders = [
            engine.snapshots.create_snapshot(AgentName(TENANT, f"a{number}"))
            for number in range(4)
            for engine in (shelved.engine, other) * 2
        ]
        made = await asyncio.gather(*orders)
        assert sum(not each.already for each in made) == 4
        assert len({each.snapshot.id for each in made}) == 4
    finally:
        await other.close()
    found = [each async for each in shelved.snapshots.all_snapshots(TENANT)]
    assert {each.id for each in found} == {each.snapshot.id for each in made}
    for each in found:
        assert (await shelved.snapshots.verify_snapshot(TENANT, each.id, replay=True)).ok
    assert await shelved.engine.log.store.list_leases("snapshots/") == []


async def test_a_snapshot_that_comes_too_late_is_refused(shelved: Shelved) -> None:
    """While one process packs version 5, another registers version 9."""
    await shelved.talk("a", 5)
    shelf = shelved.snapshots.shelf
    registry = shelved.engine.log.store
    overtaken = registry.add_snapshot

    async def overtake(row: object) -> object:
        registry.add_snapshot = overtaken
        await shelved.talk("a", 4, start=5)
        other = await shelved.fresh()
        try:
            assert (await other.snapshots.create_snapshot(NAME)).snapshot.version == 9
        finally:
            await other.close()
        return await overtaken(row)

    registry.add_snapshot = overtake
    with pytest.raises(Conflict, match="newer snapshot, at version 9"):
        await shelf.writer.create(NAME)
    assert [each.version for each in await shelved.snapshots.list_snapshots(NAME)] == [9]


async def test_the_newest_three_and_permanent_snapshots_are_not_deleted(shelved: Shelved) -> None:
    made = []
    for number in range(5):
        await shelved.talk("a", 2, start=2 * number)
        made.append(await shelved.snapshot("a", permanent=number == 0))
    for kept in made[2:]:
        with pytest.raises(Conflict, match="newest 3"):
            await shelved.snapshots.delete_snapshot(TENANT, kept.id, even_permanent=True)
    with pytest.raises(Conflict, match="permanent"):
        await shelved.snapshots.delete_snapshot(TENANT, made[0].id)
    await shelved.engine.log.store.mark_snapshot(await shelved.row(made[1]), SnapshotMark(expires_us=to_microseconds(FAR)))
    with pytest.raises(Conflict, match="promised until 2100"):
        await shelved.snapshots.delete_snapshot(TENANT, made[1].id)
    await shelved.engine.log.store.mark_snapshot(await shelved.row(made[1]), SnapshotMark(expires_us=1))
    await shelved.snapshots.delete_snapshot(TENANT, made[0].id, even_permanent=True)
    await shelved.snapshots.delete_snapshot(TENANT, made[1].id)
    with pytest.raises(SnapshotNotFound):
        await shelved.snapshots.delete_snapshot(TENANT, made[1].id)
    assert [each.version for each in await shelved.snapshots.list_snapshots(NAME)] == [10, 8, 6]


@EMBEDDED
async def test_a_damaged_chunk_in_the_store_is_mended_by_the_next_snapshot(shelved: Shelved) -> None:
    """It is not taken for the one that is to be stored; the older snapshot that lists it is whole again, too."""
    await shelved.talk("a", 50)
    first = await shelved.snapshot("a")
    await shelved.damage(first)
    assert not (await shelved.snapshots.verify_snapshot(TENANT, first.id)).ok
    again = await shelved.snapshot("a")
    assert (again.replaces, again.version) == (first.id, 50)
    assert (await shelved.snapshots.verify_snapshot(TENANT, again.id, replay=True)).ok
    await shelved.snapshots.shelf.contents.read(await shelved.row(first))


@EMBEDDED
async def test_a_snapshot_of_a_state_that_the_log_does_not_give_is_found_by_replay(shelved: Shelved) -> None:
    """A writer with a wrong fold made it: all its seals hold, only the log tells."""
    await shelved.talk("a", 8)
    writer = shelved.snapshots.shelf.writer
    right = writer._fold

    async def wrong(*args: object) -> object:
        state = await right(*args)
        state.folded.document["count"] = 41
        return state

    writer._fold = wrong
    made = await shelved.snapshot("a")
    assert (await shelved.snapshots.verify_snapshot(TENANT, made.id)).ok
    checked = await shelved.snapshots.verify_snapshot(TENANT, made.id, replay=True)
    assert (checked.ok, checked.snapshot.damage) == (False, "its state is not the one that the log gives")


@EMBEDDED
async def test_large_values_come_back(shelved: Shelved) -> None:
    large = {"text": "x" * 300_000, "rows": [list(range(500)) for _ in range(100)]}
    await shelved.engine.log.append_events(NAME, [Event("noted", changes=(perdure.set_value("/large", large),))])
    made = await shelved.snapshot("a")
    record = await shelved.engine.log.vault.record(*NAME)
    folded = await fold_log(shelved.engine.log.store, shelved.engine.log.vault, record)
    opened = await shelved.snapshots.shelf.contents.read(await shelved.row(made))
    assert digest(opened.folded.document) == digest(folded.document)


@EMBEDDED
async def test_the_mark_of_damage_stays_with_the_row_alone(shelved: Shelved) -> None:
    await shelved.talk("a", 3)
    made = await shelved.snapshot("a")
    await shelved.engine.log.store.mark_snapshot(await shelved.row(made), SnapshotMark(damage="by hand"))
    assert (await shelved.snapshots.get_snapshot(TENANT, made.id)).damage == "by hand"
    assert (await shelved.snapshot("a")).replaces == made.id


class Stalled:
    """Stands in for `Turn.lost`: told so many times that all is well, then that the lease ran out."""

    def __init__(self, well: int) -> None:
        self.well = well

    def __get__(self, *_: object) -> bool:
        self.well -= 1
        return self.well < 0


@EMBEDDED
async def test_a_writer_that_stood_still_registers_nothing_that_may_have_been_swept(
    shelved: Shelved, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shelved.talk("a", 5)
    monkeypatch.setattr(Turn, "lost", Stalled(0))
    with pytest.raises(Unavailable, match="stood still"):
        await shelved.snapshots.create_snapshot(NAME)
    assert await shelved.snapshots.list_snapshots(NAME) == []
    # Right after the row: everything is there, so it counts.
    monkeypatch.setattr(Turn, "lost", Stalled(1))
    kept = await shelved.snapshot("a")
    await shelved.talk("a", 5, start=5)
    registry = shelved.engine.log.store
    add = registry.add_snapshot

    async def add_and_sweep(row: SnapshotRow) -> object:
        answer = await add(row)
        (shelved.folder / row.manifest).unlink()
        return answer

    monkeypatch.setattr(Turn, "lost", Stalled(1))
    monkeypatch.setattr(registry, "add_snapshot", add_and_sweep)
    with pytest.raises(Unavailable, match="swept"):
        await shelved.snapshots.create_snapshot(NAME)
    assert [(each.version, bool(each.damage)) for each in await shelved.snapshots.list_snapshots(NAME)] == [(10, True), (5, False)]
    assert (await shelved.snapshots.verify_snapshot(TENANT, kept.id)).ok


@EMBEDDED
async def test_an_attempt_that_failed_leaves_no_state_behind(shelved: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state at hand was folded on before the store failed: the next attempt must not fold onto it."""
    await shelved.talk("a", 10)
    await shelved.snapshot("a")
    objects = shelved.snapshots.shelf.contents.objects
    for number in range(1, 4):
        await shelved.talk("a", 10, start=10 * number)

        async def away(name: str, content: bytes) -> bool:
            raise Unavailable("the store does not answer", object=name, size_bytes=len(content))

        with monkeypatch.context() as patch:
            patch.setattr(objects, "put", away)
            with pytest.raises(Unavailable):
                await shelved.snapshots.create_snapshot(NAME)
        made = await shelved.snapshot("a")
        assert (await shelved.snapshots.verify_snapshot(TENANT, made.id, replay=True)).ok


@EMBEDDED
async def test_a_snapshot_that_is_given_up_while_it_gives_its_turn_back_has_given_it_back(
    shelved: Shelved, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, giving = shelved.engine.log.store, asyncio.Event()
    release = store.release_lease

    async def slowly(lease: Lease) -> None:
        giving.set()
        await asyncio.sleep(0.02)
        await release(lease)

    monkeypatch.setattr(store, "release_lease", slowly)
    await shelved.talk("a", 3)
    making = asyncio.create_task(shelved.snapshots.create_snapshot(NAME))
    await giving.wait()
    making.cancel()
    await asyncio.wait((making,))
    assert await store.list_leases("snapshots/") == []


@EMBEDDED
async def test_snapshots_that_are_given_up_leave_nothing_behind(shelved: Shelved) -> None:
    await shelved.talk("a", 1_000, padding="x" * 300)
    for delay_s in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
        making = asyncio.create_task(shelved.snapshots.create_snapshot(NAME))
        await asyncio.wait((making,), timeout=delay_s)
        making.cancel()
        await asyncio.wait((making,))
        assert await shelved.engine.log.store.list_leases("snapshots/") == []
    made = (await shelved.snapshots.create_snapshot(NAME)).snapshot
    assert (await shelved.snapshots.verify_snapshot(TENANT, made.id, replay=True)).ok
    assert len(await shelved.snapshots.list_snapshots(NAME)) == 1


@EMBEDDED
@pytest.mark.parametrize("how", ["gone", "cut"])
async def test_what_the_store_lost_since_is_stored_again(shelved: Shelved, how: str) -> None:
    """The state is at hand and nothing is read, so the chunks that are taken over are looked for."""
    await shelved.talk("a", 1_500, padding="x" * 300)
    first = await shelved.snapshot("a")
    assert first.chunks > 3
    for file in (await shelved.objects(first))[1:3]:
        content = file.read_bytes()
        file.unlink()
        if how == "cut":
            file.write_bytes(content[:-1])
    await shelved.talk("a", 1, start=1_500)
    second = await shelved.snapshot("a")
    assert (await shelved.snapshots.verify_snapshot(TENANT, second.id, replay=True)).ok
    assert (await shelved.snapshots.verify_snapshot(TENANT, first.id)).ok
