"""Agents move between engines whole: every event, every state, every key; and are served at exactly one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.engine.changes import append, set_value
from perdure.engine.event import Event
from perdure.engine.importing import read_conversations
from perdure.engine.log import decide
from perdure.engine.log.codec import Draft, encode_payload, event_context
from perdure.engine.log.expected import ANY
from perdure.engine.log.records import AgentName, EventFilter
from perdure.errors import AgentMoved, Conflict, NotFound, NotServed
from perdure.recovery.commands import Command
from tests.fix_transfers import ALICE, BOB, Pair, all_of, assert_sound, digest_of, put, refused, sealed, without_place

PAIRS = ["sqlite-sqlite", "sqlite-postgres", "postgres-sqlite"]


@pytest.mark.parametrize("pair", ["sqlite-postgres"], indirect=True)
async def test_trajectories_move_to_a_second_engine_and_back(pair: Pair, trajectories: Path) -> None:
    source, target = pair.source, pair.target
    for file in sorted(trajectories.rglob("*")):
        if file.is_file() and file.suffix in (".json", ".jsonl", ".traj"):
            await source.import_conversations(read_conversations(str(file)), skip_bad=True)
    names = [AgentName(tenant, each.agent) for tenant in await source.tenants() async for each in all_of(source, tenant)]
    assert len(names) > 300
    names = names[::5]
    before = {name: (await sealed(source, name), await digest_of(source, name)) for name in names}
    there = await source.transfers.run(target, names, at_once=8)
    assert (there.moved, there.failed) == (len(names), 0)
    for name, (events, known) in before.items():
        assert without_place(await sealed(target, name))[: len(events)] == without_place(events)
        assert await digest_of(target, name) == known
    back = await target.transfers.run(source, at_once=8)
    assert (back.moved, back.failed) == (len(names), 0)
    assert back.events < 4 * len(names)  # what it has is not copied again
    for name, (events, known) in before.items():
        assert (await sealed(source, name))[: len(events)] == events
        assert await digest_of(source, name) == known
    await assert_sound(source, target)


@pytest.mark.parametrize("pair", PAIRS, indirect=True)
async def test_an_agent_goes_on_at_the_target_where_it_was_at_the_source(pair: Pair) -> None:
    source, target = pair.source, pair.target
    await put(target, BOB, 3)
    await put(source, ALICE, 100)
    last = Event("last", changes=(set_value("/large", "x" * 200_000),), data={"also": "y" * 100_000})
    await source.log.append_event(ALICE, last)
    await source.directory.describe(ALICE, type="helper", labels={"team": "blue"})
    events, known = await sealed(source, ALICE), await digest_of(source, ALICE)

    report = await source.transfers.run(target, [ALICE])
    (record,) = report.records
    assert (record.phase, record.digest) == ("moved", known.hex())
    moved = await sealed(target, ALICE)
    assert without_place(moved)[: len(events)] == without_place(events)
    assert [event.type for event in moved[len(events) :]] == ["perdure.leaving", "perdure.owned"]
    assert await digest_of(target, ALICE) == known
    (row,) = await target.directory.list("default", type="helper")
    assert (row.labels, row.owner, row.epoch) == ({"team": "blue"}, "", moved[-1].epoch)
    assert moved[-1].epoch > (await sealed(source, ALICE))[-1].epoch

    # A retry of what the source had acknowledged is known at the target; what is new follows.
    assert (await target.log.append_event(ALICE, last)).already
    assert (await target.log.append_event(ALICE, Event("new"))).version == len(moved) + 1
    await target.run(until_drained=True)
    assert (await target.states.get_current_state(ALICE, consistency="eventual")).version == len(moved) + 1
    assert (await target.log.get_event(ALICE, last.id)).data == {"also": "y" * 100_000}

    await refused(source, ALICE, AgentMoved)
    assert await source.transfers.forward(ALICE) == record.address
    assert [(each.agent, each.status) for each in await source.directory.list("default")] == [("alice", "moved")]
    await assert_sound(source, target)


async def test_keys_and_dictionaries_of_both_engines_open_what_each_sealed(pair: Pair) -> None:
    source, target = pair.source, pair.target
    for engine, word in ((source, "red"), (target, "blue")):
        await engine.log.append_events(BOB, [Event("noted", data={"text": f"{word} {number} " * 20}) for number in range(250)])
        await engine.train("default")  # both call their first one by the same number
        if engine is target:
            await engine.log.append_event(BOB, Event("noted", data={"text": "blue 1 " * 20}))
    await put(source, ALICE, 5, size=200)
    await source.keys.rotate_encryption_key("default")
    await put(source, ALICE, 5, size=300)
    texts: list[str] = []
    for here, there in ((source, target), (target, source), (source, target)):
        assert (await here.transfers.run(there, [ALICE])).moved == 1
        await there.log.append_event(ALICE, Event("noted", changes=(set_value(f"/at{len(texts)}", "blue 7 red 7 " * 20),)))
        texts.append("blue 7 red 7 " * 20)
        await there.keys.rotate_encryption_key("default")
        document = (await there.states.get_current_state(ALICE)).document
        assert [document[f"at{number}"] for number in range(len(texts))] == texts
    assert len(await target.log.get_events(ALICE)) == 10 + 2 * 3 + 3
    assert await digest_of(target, ALICE)
    # The target's key of its own: what it writes cannot be opened with what the source had.
    assert (await source.log.vault.record(*ALICE)).data_key != (await target.log.vault.record(*ALICE)).data_key
    await assert_sound(target)


async def test_events_that_were_removed_stay_removed_and_their_snapshots_come_along(pair: Pair) -> None:
    source, target = pair.source, pair.target
    for _ in range(4):
        await put(source, ALICE, 15)
        await source.snapshots.create_snapshot(ALICE)
    old = (await source.log.get_events(ALICE, limit=1))[0]
    done = await source.upkeep.compact_events(ALICE, keep_last=20)
    assert done.events > 0
    known = await digest_of(source, ALICE)
    assert (await source.transfers.run(target, [ALICE])).moved == 1
    assert await digest_of(target, ALICE) == known
    assert (await target.log.floor(ALICE)).version == (await source.log.store.floors([await source.log.vault.record(*ALICE)]))[0].version
    assert (await target.log.append_event(ALICE, Event("again", id=old.id))).already
    assert len(await target.snapshots.list_snapshots(ALICE)) >= 3
    await assert_sound(target)
    assert (await target.transfers.run(source, [ALICE])).moved == 1
    assert await digest_of(source, ALICE) == known
    await assert_sound(source)


@pytest.mark.parametrize("pair", ["sqlite-postgres"], indirect=True)
async def test_what_is_written_while_an_agent_moves_is_at_one_end_and_only_there(pair: Pair) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 50)
    acknowledged: list[Event] = []

    async def write() -> None:
        engine = source
        while len(acknowledged) < 400 or engine is source:
            event = Event("counted", changes=(set_value("/count", len(acknowledged)),))
            while True:
                try:
                    await engine.log.append_event(ALICE, event)
                    break
                except AgentMoved:
                    engine = target
                except NotServed:
                    await asyncio.sleep(0)
            acknowledged.append(event)

    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        group.create_task(write())
        group.create_task(source.transfers.run(target, [ALICE]))
    here = [event.id for event in await target.log.get_events(ALICE, EventFilter(types=("counted",)), limit=1_000)]
    assert here[: len(acknowledged)] == [event.id for event in acknowledged][: len(here)]
    assert (await target.log.vault.store.heads([await target.log.vault.record(*ALICE)]))[0].version == 50 + len(acknowledged) + 2
    await assert_sound(source, target)


@pytest.mark.parametrize("moment", ["copied", "shut"])
async def test_the_first_large_value_of_a_tenant_comes_along_whenever_it_is_written(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between the look whether there is any and the copy of the page; and after the comparison, so that the commit puts it in."""
    source, target = pair.source, pair.target
    await put(source, ALICE, 3)
    large = Event("large", data="x" * 300_000, changes=(set_value("/large", "y" * 200_000),))
    look, settle = source.log.store.list_blobs, source.log.settle

    async def look_before(*arguments: Any) -> Any:
        found = await look(*arguments)
        monkeypatch.undo()
        await source.log.append_event(ALICE, large)
        return found

    async def settle_after(name: AgentName) -> None:
        monkeypatch.undo()
        await source.log.append_event(name, large)
        await settle(name)

    if moment == "copied":
        monkeypatch.setattr(source.log.store, "list_blobs", look_before)
    else:
        monkeypatch.setattr(source.log, "settle", settle_after)
    report = await source.transfers.run(target, [ALICE])
    assert (report.moved, [record.problem for record in report.records]) == (1, [""])
    assert (await target.log.get_event(ALICE, large.id)).data == "x" * 300_000
    assert (await target.states.get_current_state(ALICE)).document["large"] == "y" * 200_000
    await assert_sound(target)


async def test_processes_that_remember_the_agent_learn_that_it_leaves_before_it_has_left(pair: Pair) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 5)
    async with perdure.open(settings=source.settings) as other:
        await other.log.append_event(ALICE, Event("noted"))
        stale, cipher = await other.log.vault.obtain(ALICE)
        assert (await other.states.get_current_state(ALICE)).version == 6
        await source.transfers.run(target, [ALICE])
        await target.log.append_event(ALICE, Event("noted"))
        # Whoever still has the row of before is refused by the log itself, as an owner too.
        event = Event(decide.OWNED)
        draft = Draft(event.id, event.type, None, None, None, None, None, cipher.seal(event_context(event.id), encode_payload(event)))
        outcome = await other.log.writer.append([decide.Item(stale, ANY, None, [draft], "node")])
        assert isinstance(outcome, decide.Shut)
        other.log.vault._known[ALICE] = (stale, cipher)
        await refused(other, ALICE, AgentMoved)


async def test_a_node_that_serves_the_agent_tells_its_callers_that_it_moved(pair: Pair) -> None:
    source, target = pair.source, pair.target

    def note(_state: dict[str, Any], _body: Any) -> Sequence[Event]:
        return [Event("noted", changes=(append("/notes", 1),))]

    commands = [Command(None) for _ in range(4)]
    async with source.recovery.host("here", note) as host:
        assert (await host.command(ALICE, commands[0])).version == 2  # after the one that gave it to the node
        await source.transfers.run(target, [ALICE], address="there.example")
        for command in commands[1:3]:
            with pytest.raises(AgentMoved) as told:
                await host.command(ALICE, command)
            assert told.value.details["address"] == "there.example"
    async with target.recovery.host("there", note) as host:
        assert (await host.command(ALICE, commands[0])).already
        assert not (await host.command(ALICE, commands[3])).already
    assert (await target.states.get_current_state(ALICE)).document == {"notes": [1, 1]}


async def test_forks_that_stay_keep_what_they_begin_with(pair: Pair) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 5)
    await source.recovery.fork(ALICE, "bob")
    known = await digest_of(source, BOB)
    await source.transfers.run(target, [ALICE])
    with pytest.raises(Conflict, match="has forks here"):
        await source.transfers.erase([ALICE])
    with pytest.raises(AgentMoved):
        await source.recovery.fork(ALICE, "carol")
    assert await digest_of(source, BOB) == known
    await assert_sound(source, target)


async def test_a_source_that_is_erased_keeps_its_forwarding_record_and_can_be_come_back_to(pair: Pair) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 10)
    known = await digest_of(source, ALICE)
    with pytest.raises(NotFound):
        await source.transfers.erase([ALICE])
    await source.transfers.run(target, [ALICE])
    (erased,) = await source.transfers.erase([ALICE])
    assert erased.phase == "erased"
    assert (await source.log.vault.store.agents([ALICE]))[0].data_key == b""  # type: ignore[union-attr]
    await refused(source, ALICE, AgentMoved)
    assert await source.transfers.forward(ALICE) == erased.address
    assert await digest_of(target, ALICE) == known
    assert (await target.transfers.run(source, [ALICE])).events < 5
    assert await digest_of(source, ALICE) == known
    with pytest.raises(Conflict):
        await source.transfers.erase([ALICE])
    await assert_sound(source, target)
