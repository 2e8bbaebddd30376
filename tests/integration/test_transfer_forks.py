"""Forks move between engines as what they are: their first versions stay other agents' events, by reference, and are the same to the last byte."""

from __future__ import annotations

import pytest

from perdure.client.engine import Engine
from perdure.engine.changes import set_value
from perdure.engine.event import Event
from perdure.engine.log.records import AgentName, SealedEvent
from perdure.errors import AgentMoved, Conflict, InvalidInput, NotServed
from tests.fix_transfers import ALICE, BOB, Pair, assert_sound, digest_of, put, refused, sealed, without_place

CAROL, DORA, EVE = (AgentName("default", agent) for agent in ("carol", "dora", "eve"))
FAMILY = (ALICE, BOB, CAROL, DORA, EVE)
Known = dict[AgentName, tuple[list[SealedEvent], bytes]]


async def family(engine: Engine) -> Known:
    """A line of forks of forks, one that shares an older agent's version, and one without a change of its own."""
    await put(engine, ALICE, 8)
    await engine.log.append_event(ALICE, Event("large", changes=(set_value("/large", "x" * 200_000),)))
    await engine.keys.rotate_encryption_key("default")
    await put(engine, ALICE, 3, size=30)
    for parent, version, name, own in ((ALICE, 9, BOB, 4), (BOB, 12, CAROL, 3), (BOB, 4, DORA, 2), (CAROL, 15, EVE, 0)):
        await engine.recovery.fork(parent, name.agent, version=version)
        await put(engine, name, own, size=10 + own)
    return {name: (await sealed(engine, name), await digest_of(engine, name)) for name in FAMILY}


async def assert_same(engine: Engine, known: Known, *names: AgentName) -> None:
    for name in names:
        events, state = known[name]
        assert without_place(await sealed(engine, name))[: len(events)] == without_place(events)
        assert await digest_of(engine, name) == state
        assert (await engine.states.project_state(name, 3)).version == 3


async def parent_of(engine: Engine, name: AgentName) -> tuple[str, int] | None:
    parent = (await engine.log.vault.record(*name)).parent
    return None if parent is None else (parent.agent, parent.version)


@pytest.mark.parametrize("pair", ["sqlite-postgres"], indirect=True)
async def test_a_family_of_forks_moves_to_a_second_engine_and_back(pair: Pair) -> None:
    source, target = pair.source, pair.target
    known = await family(source)
    parents = {name: await parent_of(source, name) for name in FAMILY}
    size = sum(len(events) for events, _ in known.values())
    there = await source.transfers.run(target, list(reversed(FAMILY)), at_once=2)
    assert (there.moved, there.failed) == (5, 0)
    assert there.events < size  # what is shared goes once
    await assert_same(target, known, *FAMILY)
    assert {name: await parent_of(target, name) for name in FAMILY} == parents
    assert [fork.agent for fork in await target.recovery.forks(BOB)] == ["carol", "dora"]
    # What the past holds is known there, too; and they go on, and are forked, there.
    first = known[ALICE][0][0]
    assert (await target.log.append_event(EVE, Event("again", id=first.id))).already
    await put(target, CAROL, 1)
    await target.recovery.fork(EVE, "finn")
    await assert_sound(source, target)
    back = await target.transfers.run(source, at_once=4)
    assert (back.moved, back.failed) == (6, 0)
    await assert_same(source, known, ALICE, BOB, DORA, EVE)
    assert await parent_of(source, AgentName("default", "finn")) == ("eve", (await parent_version(target, "finn")))
    await assert_sound(source, target)


async def parent_version(engine: Engine, agent: str) -> int:
    parent = await parent_of(engine, AgentName("default", agent))
    assert parent is not None
    return parent[1]


@pytest.mark.parametrize("pair", ["sqlite-sqlite", "sqlite-postgres"], indirect=True)
async def test_a_fork_that_goes_alone_takes_the_beginning_of_its_parents_with_it(pair: Pair) -> None:
    source, target = pair.source, pair.target
    known = await family(source)
    assert (await source.transfers.run(target, [CAROL])).moved == 1
    await assert_same(target, known, CAROL)
    assert [each.agent for each in await target.directory.list("default")] == ["carol"]
    for name in (ALICE, BOB):
        await refused(target, name, NotServed)
    await assert_same(source, known, ALICE, BOB, DORA, EVE)
    # Another one needs less of them, and a third more; then they come themselves, and only what is missing is copied.
    assert (await source.transfers.run(target, [DORA, EVE])).moved == 2
    await assert_same(target, known, CAROL, DORA, EVE)
    with pytest.raises(Conflict, match="has forks here"):
        await source.transfers.erase([CAROL])
    await source.transfers.erase([EVE])
    await source.transfers.erase([CAROL])
    report = await source.transfers.run(target, [ALICE, BOB])
    assert (report.moved, report.events) == (2, 2 + 3 + 2)  # what nobody began with, and how they left
    await assert_same(target, known, *FAMILY)
    await assert_sound(source, target)
    # Back to where all of it was, and some was erased.
    assert (await target.transfers.run(source, [EVE, CAROL])).failed == 0
    await assert_same(source, known, CAROL, EVE)
    await refused(target, CAROL, AgentMoved)
    await assert_sound(source, target)


async def test_a_fork_is_not_put_on_another_history_than_its_own(pair: Pair) -> None:
    source, target = pair.source, pair.target
    known = await family(source)
    await put(target, ALICE, 12)
    for name in (BOB, CAROL):
        with pytest.raises(InvalidInput, match="another agent 'alice'"):
            await source.transfers.run(target, [name])
    assert await source.transfers.list() == []
    await assert_same(source, known, *FAMILY)


async def test_forks_of_what_was_compacted_go_with_its_snapshots_or_without_it(pair: Pair) -> None:
    source, target = pair.source, pair.target
    for _ in range(4):
        await put(source, ALICE, 10)
        await source.snapshots.create_snapshot(ALICE)
    for name, version in ((BOB, 38), (CAROL, 40)):
        await source.recovery.fork(ALICE, name.agent, version=version)
    assert (await source.upkeep.compact_events(ALICE, keep_last=8)).events > 0
    for _ in range(4):
        await put(source, CAROL, 5)
        await source.snapshots.create_snapshot(CAROL)
    assert (await source.upkeep.compact_events(CAROL, keep_last=6)).events > 0
    states = {name: await digest_of(source, name) for name in (BOB, CAROL)}
    events = {name: (await source.log.get_events(name, limit=1, descending=True))[0] for name in (BOB, CAROL)}
    report = await source.transfers.run(target, [BOB, CAROL])
    assert (report.moved, report.failed) == (2, 0)
    for name, state in states.items():
        assert await digest_of(target, name) == state
        assert (await target.log.get_event(name, events[name].id)).chain == events[name].chain
    assert await parent_of(target, BOB) == ("alice", 38)
    assert await parent_of(target, CAROL) is None  # nothing of its past is needed any more
    assert (await target.transfers.run(source)).failed == 0
    for name, state in states.items():
        assert await digest_of(source, name) == state
    await assert_sound(source, target)
