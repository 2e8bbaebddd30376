"""Retention, stored states anew, sweep and scrub of real snapshots."""

from __future__ import annotations

import asyncio

import pytest

import perdure
from perdure.engine.event import Event
from perdure.errors import InvalidInput
from perdure.snapshots.sweep import Sweeper
from tests.fix_snapshot_engine import TENANT, Shelved
from tests.fix_upkeep import NAME, NEWEST, age, built, embedded_only, state_at, states, versions

# --- retention ---


@embedded_only
async def test_snapshots_that_no_rule_keeps_are_forgotten(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, 40, 50)
    await shelved.snapshots.create_checkpoint(NAME, version=15)
    would = await shelved.engine.upkeep.cleanup_old_states(NAME, NEWEST, dry_run=True)
    assert [each.version for each in would.deleted] == [20, 10]
    assert await versions(shelved) == [50, 40, 30, 20, 15, 10]
    done = await shelved.engine.upkeep.cleanup_old_states(NAME, NEWEST)
    assert [(each.version, reason) for each, reason in done.kept] == [(50, "newest"), (40, "newest"), (30, "newest"), (15, "checkpoint")]
    assert await versions(shelved) == [50, 40, 30, 15]
    assert (await shelved.engine.upkeep.cleanup_old_states(NAME)).deleted == ()


# --- stored states anew ---


async def test_stored_states_are_compressed_anew(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, 40)
    await shelved.snapshots.create_checkpoint(NAME, version=15)
    right = await states(shelved, range(61))
    before = {each.version: each for each in await shelved.snapshots.list_snapshots(NAME)}
    compress = shelved.engine.upkeep.compress_states
    would = await compress(NAME, codec="gzip", dry_run=True)
    assert (would.snapshots, would.rewritten) == (5, 5)
    assert {each.version: each for each in await shelved.snapshots.list_snapshots(NAME)} == before
    done = await compress(NAME, codec="gzip")
    assert (done.snapshots, done.rewritten, done.bytes_before) == (5, 5, would.bytes_before)
    after = {each.version: each for each in await shelved.snapshots.list_snapshots(NAME)}
    assert [(each.version, each.codec, each.kind) for each in after.values()] == [
        *((version, "gzip", "full") for version in (40, 30, 20)),
        (15, "gzip", "checkpoint"),
        (10, "gzip", "full"),
    ]
    for version, each in after.items():
        assert (each.state_digest == before[version].state_digest, each.created) == (True, before[version].created)
        assert (await shelved.snapshots.verify_snapshot(TENANT, each.id, replay=True)).ok
        assert await state_at(shelved, version) == right[version]
    assert (await compress(NAME, codec="gzip")).rewritten == 0
    age(shelved.folder, days=2)
    assert (await shelved.engine.upkeep.sweep()).gone > 0
    assert (await shelved.engine.verify()).ok
    with pytest.raises(InvalidInput):
        await compress(NAME, codec="rar")


# --- the sweep ---


@embedded_only
async def test_what_no_snapshot_names_is_swept_after_the_grace(shelved: Shelved) -> None:
    await shelved.talk("a", 100, padding="x" * 2000)
    first = await shelved.snapshot("a", full=True)
    for turn in range(1, 5):
        await shelved.talk("a", 100, start=100 * turn, padding="y" * 2000 * turn)
        await shelved.snapshot("a")
    before = {file for file in shelved.folder.rglob("*") if file.is_file()}
    await shelved.engine.upkeep.cleanup_old_states(NAME, NEWEST)
    assert len(await versions(shelved)) == 3
    sweep = shelved.engine.upkeep.sweep
    young = await sweep()
    assert (young.gone, young.young > 0) == (0, True)
    age(shelved.folder, days=2)
    would = await sweep(dry_run=True)
    assert would.gone == young.young
    assert {file for file in shelved.folder.rglob("*") if file.is_file()} == before
    done = await sweep()
    assert (done.gone, done.gone_bytes) == (would.gone, would.gone_bytes)
    left = {file for file in shelved.folder.rglob("*") if file.is_file()}
    assert left < before
    assert not any(f"{first.version:020}" in file.name for file in left)
    assert (await sweep()).gone == 0
    for each in await shelved.snapshots.list_snapshots(NAME):
        assert (await shelved.snapshots.verify_snapshot(TENANT, each.id, replay=True)).ok


async def test_a_sweep_never_takes_what_is_being_written(shelved: Shelved) -> None:
    """Snapshots that adopt old chunks of forgotten ones, while the sweep runs again and again."""
    other = await shelved.fresh()
    stop = False

    async def sweeping() -> None:
        while not stop:
            age(shelved.folder, days=2)
            await Sweeper(other.log, other.snapshots.shelf).sweep(grace_s=600)

    running = asyncio.create_task(sweeping())
    try:
        for turn in range(8):
            # The same state comes back again and again, so its chunks are forgotten and needed in turns.
            await shelved.engine.log.append_event(NAME, Event("set", changes=(perdure.set_value("/text", "xy"[turn % 2] * 100_000),)))
            await shelved.snapshots.create_snapshot(NAME)
            await shelved.engine.upkeep.cleanup_old_states(NAME, NEWEST)
            for each in await shelved.snapshots.list_snapshots(NAME):
                assert (await shelved.snapshots.verify_snapshot(TENANT, each.id)).ok
    finally:
        stop = True
        await running
        await other.close()


@embedded_only
async def test_a_tenant_whose_manifest_cannot_be_read_is_left_out(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, 40)
    by_version = {each.version: each for each in await shelved.snapshots.list_snapshots(NAME)}
    await shelved.damage(by_version[40], which=0)
    await shelved.snapshots.delete_snapshot(TENANT, by_version[10].id)
    age(shelved.folder, days=2)
    before = sorted(shelved.folder.rglob("*"))
    done = await shelved.engine.upkeep.sweep()
    assert done.gone == 0
    assert list(done.skipped) == [TENANT]
    assert sorted(shelved.folder.rglob("*")) == before
    assert not (await shelved.snapshots.verify_snapshot(TENANT, by_version[40].id)).ok
    assert (await shelved.engine.upkeep.sweep()).gone > 0, "what is known to be damaged names nothing"


# --- the scrub ---


@embedded_only
async def test_a_scrub_reads_everything_in_turn(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, 40, 50)
    read: set[int] = set()
    for _ in range(4):
        before = {each.version: each.verified for each in await shelved.snapshots.list_snapshots(NAME)}
        done = await shelved.engine.upkeep.scrub(0.3)
        assert (done.ok, done.snapshots, done.read) == (True, 5, 2)
        after = {each.version: each.verified for each in await shelved.snapshots.list_snapshots(NAME)}
        read |= {version for version in after if after[version] != before[version]}
    assert read == {10, 20, 30, 40, 50}


@embedded_only
async def test_damage_is_found_and_mended_from_the_log(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, 40)
    promised = await shelved.snapshots.create_checkpoint(NAME, version=15)
    right = await states(shelved, range(61))
    by_version = {each.version: each for each in await shelved.snapshots.list_snapshots(NAME)}
    for version in (10, 15, 40):
        await shelved.damage(by_version[version], which=0)
    found = await shelved.engine.upkeep.scrub()
    assert not found.ok
    outcomes = {each.snapshot.version: (each.outcome, each.rebuilt is not None) for each in found.damaged}
    assert outcomes == {10: ("newer ones stand", False), 15: ("made anew", True), 40: ("made anew", True)}
    again = await shelved.engine.upkeep.scrub()
    assert again.ok
    good = {each.version: each for each in await shelved.snapshots.list_snapshots(NAME) if not each.damage}
    assert sorted(good) == [15, 20, 30, 60]
    assert (good[15].replaces, good[15].kind) == (promised.snapshot.id, "checkpoint")
    assert await state_at(shelved, 15) == right[15]
