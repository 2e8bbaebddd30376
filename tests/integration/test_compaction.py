"""Compaction of real logs: what is removed is what snapshots stand for, and everybody who meets such a log goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import pytest

import perdure
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.log.records import EventFilter
from perdure.errors import Compacted, Conflict, InvalidInput, ProjectionNotFound, Unavailable
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader
from perdure.snapshots.holds import COMPACTIONS_MAX, compacting, holding, keep_version, release_version
from perdure.testing.log_rows import agent_of
from tests.fix_snapshot_engine import TENANT, Shelved
from tests.fix_upkeep import NAME, built, embedded_only, state_at, states


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


@embedded_only
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


@embedded_only
async def test_an_agent_without_snapshots_gets_those_that_it_needs(shelved: Shelved) -> None:
    await built(shelved)
    right = await states(shelved, range(61))
    nothing = await shelved.engine.upkeep.delete_events(NAME, 40)
    assert (nothing.events, nothing.limited_by) == (0, "fewer than three sound snapshots")
    done = await shelved.engine.upkeep.compact_events(NAME, critical_only=True)
    assert (done.first_version, done.checkpoints, done.limited_by) == (59, (58, 59, 60), "the newest three snapshots")
    assert [await state_at(shelved, version) for version in (58, 59, 60)] == [right[58], right[59], right[60]]


@embedded_only
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


@embedded_only
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


@embedded_only
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


@embedded_only
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


@embedded_only
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


@embedded_only
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


@embedded_only
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
