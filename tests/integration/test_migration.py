"""Agents move between nodes while they are talked to: nothing is lost or doubled, one node owns each, and every end is told once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perdure import Event, append
from perdure.client import migration_fleet
from perdure.engine import steps
from perdure.engine.log.records import AgentName, SealedEvent, from_microseconds
from perdure.errors import AlreadyExists, Conflict, Fenced, NotFound, NotServed
from perdure.migration.copy import PAGE_EVENTS, Copy
from perdure.migration.keeping import Keeper
from perdure.recovery.commands import Command, CommandResult
from tests.fix_moving_nodes import NAME, World, nodes_on


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with nodes_on(f"sqlite:///{tmp_path}/state", tmp_path) as made:
        await made.say()
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
async def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world on either store."""
    url = request.getfixturevalue("fresh_database") if request.param == "postgres" else f"sqlite:///{tmp_path}/state"
    async with nodes_on(url, tmp_path) as made:
        await made.say()
        yield made


@pytest.fixture
def at_step() -> Any:
    """Call something at a step."""

    def at(step: str, what: Callable[[], None]) -> None:
        steps.install(lambda name: what() if name == step else None)

    yield at
    steps.install(None)


async def test_an_agent_moves_to_and_fro_while_it_is_talked_to(anywhere: World) -> None:
    async with anywhere.talking():
        for target in ("b", "a", "b"):
            done = await anywhere.move(target)
            assert (done.phase, done.integrity, done.error) == ("committed", "verified", "")
            assert await anywhere.owner() == (target, done.final_epoch)
    assert done.digest_source == done.digest_target != ""
    assert [mark.phase for mark in done.marks][:2] == ["preparing", "pre_copy"]
    assert [len(node.names()) for node in anywhere.nodes] == [0, 1]
    entries = await anywhere.migrations.journal()
    assert [entry.type for entry in entries] == ["migration_committed", "migration_started"] * 3
    assert {entry.time[-1] for entry in entries} == {"Z"}
    assert await anywhere.migrations.monitor_migration(done.id) == done
    await anywhere.check()


@pytest.mark.parametrize(("strategy", "transfer"), [("cold", "incremental"), ("blue_green", "incremental"), ("live", "snapshot")])
async def test_the_other_ways_come_to_the_same(world: World, strategy: str, transfer: str) -> None:
    async with world.talking():
        done = await world.move("b", strategy=strategy, transfer=transfer)
        assert (done.phase, done.error) == ("committed", "")
    assert done.path == ("fence" if strategy == "cold" else "held")
    # A snapshot is taken as it is, and the rest of the log with the hand-over.
    assert (done.rounds > 0) == (strategy == "blue_green")
    await world.check()


async def test_a_source_that_does_not_answer_is_fenced(tmp_path: Path) -> None:
    async with nodes_on(f"sqlite:///{tmp_path}/state", tmp_path, with_addresses=False) as world:
        await world.say()
        async with world.talking():
            owner, _ = await world.owner()
            done = await world.move("b" if owner == "a" else "a")
        assert done.phase == "committed"
        assert done.integrity == "chain"
        await world.check()


async def test_a_command_that_is_sent_again_after_the_move_takes_effect_once(anywhere: World) -> None:
    command = Command("said before")
    first = await anywhere.caller.command(NAME, None, command)
    anywhere.acknowledged[command.id] = first.version
    assert (await anywhere.move("b")).phase == "committed"
    again = await anywhere.caller.command(NAME, None, command)
    assert (again.version, again.already) == (first.version, True)
    with pytest.raises(NotServed) as told:
        await anywhere.nodes[0].command(NAME, Command("to the old one"))
    assert told.value.details["address"] == anywhere.nodes[1].address
    await anywhere.check()


@pytest.mark.parametrize("with_old", [False, True])
async def test_commands_that_wait_at_the_target_take_effect_with_the_flip_and_once(world: World, at_step: Any, with_old: bool) -> None:
    """Also where one of them had taken effect at the source already: then each is asked for by itself."""
    old, new = Command("old"), [Command(f"new {number}") for number in range(3)]
    world.acknowledged[old.id] = (await world.caller.command(NAME, None, old)).version
    waiting: list[asyncio.Task[CommandResult]] = []

    def send() -> None:
        commands = [*new, new[0], *([old] if with_old else [])]
        waiting.extend(asyncio.ensure_future(world.nodes[1].command(NAME, command)) for command in commands)

    at_step("migration.target.held", send)
    done = await world.move("b")
    results = await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert done.phase == "committed"
    assert [result.version for result in results[:3]] == [done.version + 1 + number for number in range(3)]
    assert {result.epoch for result in results[:3]} == {done.final_epoch}
    assert (results[3].version, results[3].already) == (results[0].version, True)
    assert not with_old or results[4].already
    world.acknowledged.update({command.id: result.version for command, result in zip(new, results, strict=False)})
    await world.check()


async def test_who_appends_between_the_look_and_the_lock_is_not_overrun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody without an epoch, whom no hold concerns: the flip is refused and tried again, and in the end nobody may append."""
    follow, take, agent = Copy.follow, Copy.take, world.engine.agent(NAME.agent, tenant=NAME.tenant)

    async def beside(copy: Copy) -> None:
        with contextlib.suppress(Fenced):
            await agent.append(Event("beside", changes=(append("/beside", copy.version),)))

    async def too_late(copy: Copy, to_version: int | None = None) -> int:
        more = await follow(copy, to_version)
        await beside(copy)
        return more

    async def taken_too_late(copy: Copy, events: Sequence[SealedEvent]) -> Sequence[SealedEvent]:
        taken = await take(copy, events)
        await beside(copy)
        return taken

    monkeypatch.setattr(Copy, "follow", too_late)
    monkeypatch.setattr(Copy, "take", taken_too_late)
    done = await world.move("b")
    monkeypatch.undo()
    assert (done.phase, done.path, done.attempts) == ("committed", "fence", 3)
    await world.say()
    assert len((await agent.state()).document["beside"]) >= 3
    assert all(event.epoch == 1 for event in await world.engine.log.get_events(NAME) if event.type == "beside")
    await world.check()


async def test_a_hold_that_nobody_ends_runs_out_and_is_no_fence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.nodes[0]
    held = await host.hold(NAME, "b", world.nodes[1].address, with_digest=True)
    assert (held.version, held.digest) == ((await host.stand(NAME)).version, (await host.stand(NAME)).digest)
    with pytest.raises(NotServed) as told:
        await host.command(NAME, Command("refused"))
    assert told.value.details["address"] == world.nodes[1].address
    monkeypatch.setattr("perdure.recovery.handover.HOLD_S", 0.0)
    await world.say()
    assert (await world.owner())[1] == held.epoch
    await world.check()


async def test_a_damaged_copy_stops_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Copy.load

    async def damaged(copy: Copy, *given: Any, **options: Any) -> None:
        await load(copy, *given, **options)
        copy.document["messages"] = ["not what was said"]

    monkeypatch.setattr(Copy, "load", damaged)
    before = await world.owner()
    async with world.talking():
        done = await world.move("b")
        assert done.phase == "aborted"
        assert "digest mismatch" in done.error
        assert await world.owner() == before  # not even a new epoch: the source was never touched
    monkeypatch.undo()
    assert (await world.move("b")).phase == "committed"
    await world.check()


async def test_a_copy_found_wrong_after_the_commit_goes_back_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both looks before the commit are made blind; the one after it is not."""
    load = Copy.load

    async def damaged(copy: Copy, *given: Any, **options: Any) -> None:
        await load(copy, *given, **options)
        if copy.version == 1 + 1:
            copy.document["count"] = 40

    monkeypatch.setattr("perdure.migration.preparation.Preparation.same", lambda *_: None)
    monkeypatch.setattr("perdure.migration.preparation.Preparation.load", lambda prepared, **_: prepared.copy.load())
    monkeypatch.setattr(Copy, "load", damaged)
    done = await world.move("b")
    assert done.phase in ("committed", "rolled_back")
    assert done.integrity == "mismatch"
    monkeypatch.undo()
    async with asyncio.timeout(60):
        while (await world.migrations.monitor_migration(done.id)).phase != "rolled_back":
            await asyncio.sleep(0.02)
    assert (await world.owner())[0] == "a"
    await world.say()
    await world.check()


async def test_a_prepared_migration_waits_and_can_be_completed_or_aborted(world: World) -> None:
    for end in ("abort", "complete"):
        async with world.talking():
            plan = await world.migrations.plan_migration(NAME, "b")
            prepared = await world.migrations.prepare_live_migration(plan)
            assert (await world.owner())[0] == "a"
            with pytest.raises(AlreadyExists):
                await world.migrations.execute_migration(await world.migrations.plan_migration(NAME, "b"))
            synchronized = await world.migrations.synchronize_live_state(prepared.id)
            assert synchronized.copied_version >= prepared.copied_version
            if end == "abort":
                ended = await world.migrations.abort_migration(prepared.id)
                assert ended.phase == "aborted"
            else:
                ended = await world.migrations.complete_live_migration(prepared.id)
                assert ended.phase == "committed"
            with pytest.raises(Conflict):
                await world.migrations.abort_migration(prepared.id)
    assert (await world.owner())[0] == "b"
    await world.check()


async def test_an_abort_under_the_fence_gives_the_agent_back(anywhere: World, at_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target goes on meanwhile; its commit is refused by the log."""
    ids: list[str] = []
    aborting: list[asyncio.Task[Any]] = []
    gate = asyncio.Event()
    plan = await anywhere.migrations.plan_migration(NAME, "b", strategy="cold")
    follow = Copy.follow

    async def held_up(copy: Copy, *given: Any) -> int:
        await gate.wait()
        return await follow(copy, *given)

    def abort() -> None:
        aborting.append(asyncio.ensure_future(anywhere.migrations.abort_migration(ids[0])))
        aborting[0].add_done_callback(lambda _: gate.set())

    at_step("migration.target.fenced", abort)
    monkeypatch.setattr(Copy, "follow", held_up)
    ids.append((await anywhere.migrations.initiate_live_migration(plan)).id)
    async with asyncio.timeout(60):
        while not aborting:
            await asyncio.sleep(0.01)
        assert (await aborting[0]).phase == "aborted"
    monkeypatch.undo()
    assert (await anywhere.owner())[0] == "a"
    await anywhere.say()
    assert (await anywhere.move("b")).phase == "committed"
    await anywhere.check()


async def test_a_completed_migration_is_rolled_back_once(world: World) -> None:
    async with world.talking():
        done = await world.move("b")
        assert (await world.migrations.validate_rollback(done.id)).ok
        back = await world.migrations.rollback_migration(done.id, reason="changed our mind")
        assert (back.phase, back.kind, back.target) == ("committed", "rollback", "a")
    undone = await world.migrations.monitor_migration(done.id)
    assert (undone.phase, undone.rolled_back_by) == ("rolled_back", back.id)
    check = await world.migrations.validate_rollback(done.id)
    assert not check.ok
    with pytest.raises(Conflict):
        await world.migrations.rollback_migration(done.id)
    with pytest.raises(NotFound):
        await world.migrations.monitor_migration("0" * 32)
    await world.check()


async def test_a_migration_whose_target_is_gone_is_aborted_once_by_whoever_is_left(world: World) -> None:
    """Its target stands still for good in the middle; its lease runs out. Several settle it at once."""
    target = world.nodes[1]
    plan = await world.migrations.plan_migration(NAME, "b")
    prepared = await world.migrations.prepare_live_migration(plan)
    await target.stop()
    keepers = [Keeper(world.engine.log) for _ in range(3)]
    async with asyncio.timeout(60):
        while (await world.migrations.monitor_migration(prepared.id)).open:
            await asyncio.gather(*(keeper.look() for keeper in keepers))
    ended = await world.migrations.monitor_migration(prepared.id)
    assert ended.phase == "aborted"
    assert "lost" in ended.error
    assert [entry.type for entry in await world.migrations.journal()] == ["migration_aborted", "migration_started"]
    assert (await world.owner())[0] == "a"
    await world.say()
    await world.check()


async def test_a_node_is_drained_and_takes_nothing_until_it_may(world: World) -> None:
    names = [AgentName("acme", f"agent {number}") for number in range(12)]
    for name in names:
        await world.nodes[0].command(name, Command("hello"))
    await world.migrations.fleet.pin(names[0], reason="needs its hardware")
    report = await world.migrations.drain_node("a", at_once=4)
    assert (report.moved, report.pinned, report.failures, report.ok) == (12, 1, 0, True)
    assert await world.engine.log.store.count_owned("a") == 1
    assert (await world.owner(names[0]))[0] == "a"
    async with asyncio.timeout(60):
        while not world.nodes[0].drained:
            await asyncio.sleep(0.02)
    with pytest.raises(NotServed):
        await world.nodes[0].command(AgentName("acme", "new"), Command("hello"))
    with pytest.raises(Conflict):
        await world.migrations.drain_node("b")
    await world.migrations.fleet.undrain_node("a")
    for name in names:
        result = await world.caller.command(name, "again")
        assert result.version > 1


async def test_nodes_are_rebalanced_without_what_is_pinned_or_was_just_moved(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_fleet, "REST_S", 3_600.0)
    names = [AgentName("acme", f"agent {number}") for number in range(7)]
    for name in names:
        await world.nodes[0].command(name, Command("hello"))
    await world.migrations.fleet.pin(names[0])
    planned, report = await world.migrations.rebalance()
    assert (report.moved, report.ok) == (4, True)
    assert names[0] not in {move.name for move in planned.moves}
    assert [await world.engine.log.store.count_owned(node) for node in ("a", "b")] == [4, 4]
    assert (planned.resting, planned.rest_until) == (0, None)
    again = await world.migrations.fleet.plan_rebalance()
    assert (again.moves, again.resting) == ([], 4)
    newest = max(each.created_us for each in await world.migrations.list_migrations())
    assert again.rest_until == from_microseconds(newest + 3_600_000_000)
    await world.migrations.fleet.pin(planned.moves[0].name)
    assert (await world.migrations.fleet.plan_rebalance()).resting == 3  # who is pinned does not wait for anything
    monkeypatch.setattr(migration_fleet, "REST_S", 0.0)
    assert (await world.migrations.fleet.plan_rebalance()).rest_until is None
    assert (await world.migrations.fleet.plan_rebalance(by="bytes")).before.keys() == {"a", "b"}


@pytest.mark.parametrize(("strategy", "rests"), [("live", 2), ("cold", 0)])
async def test_a_copy_rests_between_pages_unless_its_agent_stands_still(
    world: World, strategy: str, rests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.engine.agent(NAME.agent, tenant=NAME.tenant).append([Event("noted") for _ in range(2 * PAGE_EVENTS)])
    sleep, rested = asyncio.sleep, []

    async def rest(duration_s: float) -> None:
        rested.append(duration_s)
        await sleep(duration_s)

    monkeypatch.setattr("perdure.engine.replay.asyncio", SimpleNamespace(sleep=rest))
    done = await world.move("b", strategy=strategy)
    assert (done.phase, len(rested)) == ("committed", rests)
