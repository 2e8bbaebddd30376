"""Retention, compaction, sweep and scrub of real snapshots and logs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import perdure
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.log.contract import AgentName, EventFilter
from perdure.engine.replay import fold_log
from perdure.errors import Compacted, Conflict, InvalidInput, ProjectionNotFound, Unavailable
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader
from perdure.snapshots.holds import COMPACTIONS_MAX, compacting, holding, keep_version, release_version
from perdure.snapshots.retention import RetentionPolicy
from perdure.snapshots.sweep import Sweeper
from perdure.testing.log_rows import agent_of
from tests.fix_snapshot_engine import TENANT, Shelved

NAME = AgentName(TENANT, "a")
NEWEST = RetentionPolicy(days=0)


async def states(shelved: Shelved, versions: range) -> dict[int, bytes]:
    """Digests of the states at these versions, from the log alone."""
    log = shelved.engine.log
    agent = await log.vault.record(*NAME)
    return {version: digest((await fold_log(log.store, log.vault, agent, to_version=version)).document) for version in versions}


async def state_at(shelved: Shelved, version: int) -> bytes:
    return digest((await shelved.engine.agent("a").state(at_version=version)).document)


async def built(shelved: Shelved, *snapshots: int, head: int = 60, before: int = 0) -> None:
    """An agent with snapshots at these versions."""
    for version in dict.fromkeys([*snapshots, head]):
        if version > before:
            await shelved.talk("a", version - before, start=before)
        before = version
        if version in snapshots:
            await shelved.snapshot("a")


async def versions(shelved: Shelved) -> list[int]:
    return [each.version for each in await shelved.snapshots.list_snapshots(NAME)]


def age(folder: Path, days: float) -> None:
    """Let every object be so old."""
    then = time.time() - days * 86_400
    for file in folder.rglob("*"):
        os.utime(file, (then, then))


# --- retention ---


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


# --- compaction ---


async def test_compaction_removes_what_snapshots_stand_for_and_nothing_else(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, 40, 50)
    right = await states(shelved, range(61))
    would = await shelved.engine.upkeep.compact_events(NAME, keep_last=30, dry_run=True)
    assert (would.first_version, would.events, would.removed, would.checkpoints) == (31, 30, 0, ())
    assert await state_at(shelved, 3) == right[3]
    done = await shelved.engine.upkeep.compact_events(NAME, keep_last=30)
    assert (done.first_version, done.events, done.removed, done.limited_by) == (31, 30, 30, "")
    other = await shelved.fresh()
    try:
        for version in (0, 10, 20, *range(30, 61)):
            assert digest((await other.agent("a").state(at_version=version)).document) == right[version], version
        for version in (1, 9, 11, 29):
            with pytest.raises(Compacted) as caught:
                await other.agent("a").state(at_version=version)
            assert caught.value.details["first_version"] == 31
        report = await other.verify()
        assert (report.ok, report.log.problems) == (True, [])
        for snapshot in await other.snapshots.list_snapshots(NAME):
            assert (await other.snapshots.verify_snapshot(TENANT, snapshot.id, replay=True)).ok
    finally:
        await other.close()
    assert await shelved.talk("a", 5, start=60) == 65
    assert (await shelved.engine.agent("a").state()).version == 65


async def test_a_checkpoint_is_made_where_the_kept_events_begin(shelved: Shelved) -> None:
    await built(shelved, 30, 40, 50)
    right = await states(shelved, range(61))
    done = await shelved.engine.upkeep.compact_events(NAME, keep_last=43)
    assert (done.first_version, done.checkpoints) == (18, (17,))
    assert await state_at(shelved, 17) == right[17]
    assert await state_at(shelved, 18) == right[18]
    anchor = next(each for each in await shelved.snapshots.list_snapshots(NAME) if each.version == 17)
    with pytest.raises(Conflict):
        await shelved.snapshots.delete_snapshot(TENANT, anchor.id, even_permanent=True)


async def test_an_agent_without_snapshots_gets_those_that_it_needs(shelved: Shelved) -> None:
    await built(shelved)
    right = await states(shelved, range(61))
    nothing = await shelved.engine.upkeep.delete_events(NAME, 40)
    assert (nothing.events, nothing.limited_by) == (0, "fewer than three sound snapshots")
    done = await shelved.engine.upkeep.compact_events(NAME, critical_only=True)
    assert (done.first_version, done.checkpoints, done.limited_by) == (59, (58, 59, 60), "the newest three snapshots")
    assert [await state_at(shelved, version) for version in (58, 59, 60)] == [right[58], right[59], right[60]]


async def test_a_merge_keeps_the_end_of_every_step(shelved: Shelved) -> None:
    await built(shelved, 40, 50, 60)
    right = await states(shelved, range(61))
    done = await shelved.engine.upkeep.compact_events(NAME, strategy="merge", step_versions=8, keep_last=25)
    assert (done.first_version, done.checkpoints) == (36, (8, 16, 24, 32, 35))
    for version in (8, 16, 24, 32, 35, 36, 60):
        assert await state_at(shelved, version) == right[version]
    with pytest.raises(Compacted):
        await state_at(shelved, 9)


async def test_events_since_a_time_stay(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, head=30)
    await asyncio.sleep(0.002)
    await shelved.talk("a", 30, start=30)
    (first,) = await shelved.engine.log.get_events(NAME, EventFilter(from_version=31, to_version=31))
    moment = first.time
    for count in (60, 61):
        await shelved.talk("a", 1, start=count)
        await shelved.snapshot("a")
    done = await shelved.engine.upkeep.compact_events(NAME, keep_since=moment)
    assert (done.first_version, done.limited_by) == (31, "")
    assert (await shelved.engine.upkeep.compact_events(NAME, keep_since=moment - timedelta(days=1))).events == 0
    assert (await shelved.engine.agent("a").state(at_time=moment)).version >= 31
    assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=2, strategy="delete")).limited_by == "the newest three snapshots"


async def test_what_a_fork_or_a_restore_needs_stays(shelved: Shelved) -> None:
    await built(shelved, 30, 40, 50)
    right = await states(shelved, range(61))
    store = shelved.engine.log.store
    agent = await shelved.engine.log.vault.record(*NAME)
    await keep_version(store, agent, 12, "a fork")
    held = await shelved.engine.upkeep.delete_events(NAME, 31)
    assert (held.events, held.limited_by) == (0, "a fork or a restore")
    async with holding(store, agent, 7):
        done = await shelved.engine.upkeep.compact_events(NAME, keep_last=30)
    assert (done.first_version, done.checkpoints) == (31, (7, 12))
    await release_version(store, agent, 12)
    for version in (7, 12, 30):
        assert await state_at(shelved, version) == right[version]


async def test_a_damaged_snapshot_stands_for_nothing(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, 40, 50)
    right = await states(shelved, range(61))
    by_version = {each.version: each for each in await shelved.snapshots.list_snapshots(NAME)}
    await shelved.damage(by_version[30], which=0)
    await shelved.damage(by_version[50], which=0)
    done = await shelved.engine.upkeep.compact_events(NAME, keep_last=25, strategy="delete")
    assert (done.first_version, done.limited_by) == (11, "the newest three snapshots")
    for version in (10, 11, 30, 60):
        assert await state_at(shelved, version) == right[version]


async def test_verify_tells_when_nothing_stands_for_removed_events(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, 40)
    assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=40)).first_version == 21
    anchor = next(each for each in await shelved.snapshots.list_snapshots(NAME) if each.version == 20)
    await shelved.damage(anchor, which=0)
    assert not (await shelved.snapshots.verify_snapshot(TENANT, anchor.id)).ok
    report = await shelved.engine.verify()
    assert not report.ok
    assert report.log.problems == [f"{TENANT}/a version 20: no whole snapshot stands for the events that were removed"]
    assert (await shelved.engine.agent("a").state()).version == 60, "the newest state needs it no more"


async def test_a_compaction_waits_its_turn(shelved: Shelved) -> None:
    await built(shelved, 30, 40, 50)
    store, agent = shelved.engine.log.store, await shelved.engine.log.vault.record(*NAME)
    async with compacting(store, agent):
        waiting = asyncio.create_task(shelved.engine.upkeep.compact_events(NAME, keep_last=30))
        with pytest.raises(Conflict):
            async with compacting(store, agent, wait_s=0.2):
                raise AssertionError("two at once")
        with pytest.raises(Unavailable):
            async with holding(store, agent, 7, wait_s=0.2):
                raise AssertionError("held while it is compacted")
        assert not waiting.done()
        assert (await store.floors([agent]))[0].version == 1
    assert (await waiting).events == 30


async def test_agents_that_share_a_lease_are_compacted_one_after_the_other(shelved: Shelved) -> None:
    store = shelved.engine.log.store
    agents = [await agent_of(store, tenant=TENANT) for _ in range(2)]
    while agents[0].agent_key % COMPACTIONS_MAX != agents[-1].agent_key % COMPACTIONS_MAX:
        agents[1:] = [await agent_of(store, tenant=TENANT)]
    at_once: list[int] = []

    async def work(number: int) -> None:
        async with compacting(store, agents[number]):
            at_once.append(number)
            await asyncio.sleep(0)
            assert at_once.pop() == number

    await asyncio.gather(work(0), work(1))


async def test_the_same_import_adds_nothing_after_a_compaction(shelved: Shelved) -> None:
    events = [Event("said", changes=(perdure.append("/messages", number),)) for number in range(30)]
    log = shelved.engine.log
    await log.append_events(NAME, events)
    assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=10)).events == 20
    for engine in (shelved.engine, await shelved.fresh()):
        again = await engine.log.append_events(NAME, events[3:9])
        assert (again.already, again.versions) == (True, (4, 5, 6, 7, 8, 9))
        assert await engine.log.version(NAME) == 30
        if engine is not shelved.engine:
            await engine.close()


async def test_only_what_is_on_the_bus_goes(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30)
    await shelved.engine.run(relay=True, projector=False, until_drained=True)
    await shelved.talk("a", 30, start=60)
    for count in (90, 91, 92):
        await shelved.talk("a", 1, start=count)
        await shelved.snapshot("a")
    done = await shelved.engine.upkeep.compact_events(NAME, keep_last=10)
    assert (done.first_version, done.limited_by) == (61, "events that the relay has not handled yet")
    await shelved.engine.run(relay=True, projector=False, until_drained=True)
    assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=10)).first_version == 84


async def test_relay_projector_and_projections_meet_a_compacted_log(shelved: Shelved) -> None:
    """A bus that lost everything is filled with what is left, states are right, and a projection that would miss events stands still."""
    await built(shelved, 10, 20, 30)
    await shelved.talk("b", 20)
    assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=40)).events == 10
    other = await shelved.fresh()
    try:
        await other.run(until_drained=True)
        for agent, version in (("a", 60), ("b", 20)):
            state = await other.agent(agent).state(consistency="eventual")
            assert (state.version, state.document["count"]) == (version, version - 1)
        seen: list[int] = []

        async def note(events: list[object]) -> None:
            seen.append(len(events))

        other.projections.register("mine", note)  # type: ignore[arg-type]
        await other.projections.drain("mine")
        status = await other.projections.status("mine")
        assert status.paused
        assert "removed" in status.reason
        with pytest.raises(ProjectionNotFound):
            await other.projections.drain("another")
    finally:
        await other.close()


async def test_a_reader_with_an_old_state_at_hand_goes_on_from_a_snapshot(shelved: Shelved) -> None:
    """What it knows is older than what the log still has."""
    await built(shelved, head=5)
    other = await shelved.fresh()
    try:
        assert (await other.agent("a").state()).version == 5
        await built(shelved, 30, 40, 50, before=5)
        assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=20)).first_version == 31
        state = await other.agent("a").state()
        assert (state.version, state.document["count"]) == (60, 59)
        assert digest(state.document) == await state_at(shelved, 60)
    finally:
        await other.close()


async def test_recovery_and_time_travel_know_a_compacted_agent(shelved: Shelved) -> None:
    await built(shelved, 30, 40, 50)
    right = await states(shelved, range(61))
    assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=30)).first_version == 31
    recovery = shelved.engine.recovery
    assert [each for each in (await recovery.analyze_failure(NAME)).failures if "log" in each.kind or "damaged" in each.kind] == []
    recovered = await recovery.recover_agent_state(NAME)
    assert (recovered.version, recovered.digest) == (60, right[60].hex())
    assert (await recovery.validate_recovered_state(recovered)).ok
    await recovery.rollback_to_version(NAME, 35)
    assert await state_at(shelved, 61) == right[35]
    anchor = next(each for each in await shelved.snapshots.list_snapshots(NAME) if each.version == 30)
    await shelved.damage(anchor, which=0)
    assert not (await shelved.snapshots.verify_snapshot(TENANT, anchor.id)).ok
    assert "log_damaged" in {each.kind for each in (await recovery.analyze_failure(NAME)).failures}


async def test_reads_go_on_while_events_are_removed(shelved: Shelved) -> None:
    await built(shelved, 100, 200, 300, head=320)
    other = await shelved.fresh()
    done = False

    async def read() -> int:
        reads = 0
        while not done:
            for version in (300, 320):
                fresh = StateReader(other.log.store, MemoryCache(), other.log.vault, base=other.snapshots.base)
                assert (await fresh.state_at_version(*NAME, version)).document["count"] == version - 1
                reads += 1
        return reads

    try:
        reading = asyncio.create_task(read())
        for keep in (300, 250, 221, 219):
            await shelved.engine.upkeep.compact_events(NAME, keep_last=keep)
        done = True
        assert await reading > 0
    finally:
        await other.close()


async def test_wrong_requests_are_refused(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30)
    upkeep = shelved.engine.upkeep
    wrong: list[Callable[[], Awaitable[object]]] = [
        lambda: upkeep.compact_events(NAME),
        lambda: upkeep.compact_events(NAME, keep_last=3, critical_only=True),
        lambda: upkeep.compact_events(NAME, keep_last=-1),
        lambda: upkeep.compact_events(NAME, keep_since=datetime(2026, 1, 1)),
        lambda: upkeep.compact_events(NAME, keep_last=3, strategy="merge"),
        lambda: upkeep.delete_events(NAME, 0),
        lambda: upkeep.sweep(grace_s=1),
        lambda: upkeep.scrub(0),
        lambda: upkeep.scrub(1.5),
    ]
    for each in wrong:
        with pytest.raises(InvalidInput):
            await each()
    assert len(await shelved.engine.log.get_events(NAME, EventFilter())) == 60


async def test_a_projection_of_ones_own_is_waited_for(shelved: Shelved) -> None:
    await built(shelved, 10, 20, 30, head=30)

    async def take(events: list[object]) -> None:
        return None

    projections = shelved.engine.projections
    projections.register("mine", take)  # type: ignore[arg-type]
    await projections.drain("mine")
    await built(shelved, 50, 55, head=60, before=30)
    await shelved.snapshot("a")
    done = await shelved.engine.upkeep.compact_events(NAME, keep_last=15)
    assert (done.first_version, done.limited_by) == (31, "events that projection 'mine' has not handled yet")
    await projections.drain("mine")
    assert (await shelved.engine.upkeep.compact_events(NAME, keep_last=15)).first_version == 46


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


@pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
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
