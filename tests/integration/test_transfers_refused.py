"""Moves between engines that cannot be, or are broken off: the source goes on as it was, the others with it, and nobody sees what was left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import perdure
from perdure import config
from perdure.client.engine import Engine
from perdure.engine import replay, steps
from perdure.engine.changes import delete, set_value
from perdure.engine.event import Event
from perdure.engine.log.arrival_rows import Room
from perdure.engine.log.marks import STAGED, owner_of
from perdure.engine.log.records import AgentName, EventFilter, SealedEvent
from perdure.engine.replay import Folded
from perdure.engine.vault import Vault
from perdure.errors import AgentNotFound, ConfigurationError, Conflict, InvalidInput, NotFound, NotServed
from perdure.migration.transfer import comparing
from tests.fix_transfers import ALICE, BOB, Pair, assert_sound, digest_of, put, refused


async def test_nothing_is_begun_where_it_could_not_be_finished(pair: Pair) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 3)
    await put(target, ALICE, 1)
    await put(source, BOB, 1)
    with pytest.raises(InvalidInput, match="the target has an agent of this name"):
        await source.transfers.run(target)
    with pytest.raises(InvalidInput, match="there is no such agent"):
        await source.transfers.run(target, [AgentName("default", "nobody")])
    with pytest.raises(ConfigurationError, match="same"):
        await source.transfers.run(source, [BOB])
    async with perdure.open(settings=source.settings) as again:
        with pytest.raises(ConfigurationError, match="same log"):
            await source.transfers.run(again, [BOB])
    with pytest.raises(NotFound):
        await source.transfers.erase([BOB])
    assert await source.transfers.list() == []
    assert (await source.log.append_event(BOB, Event("on"))).version == 2
    with pytest.raises(AgentNotFound):
        await target.log.version(BOB)


async def test_no_second_root_key_comes_into_a_log(pair: Pair, tmp_path: Path) -> None:
    """The target's log has tenants under its own root key; whoever names another one, or none, would give a new tenant's key to that."""
    source, target = pair.source, pair.target
    await put(source, ALICE, 2)
    await put(target, AgentName("there", "first"), 1)
    other = tmp_path / "other.key"
    flags = {"log": str(target.settings.log.value), "keys": f"file://{other}"}
    async with perdure.open(settings=config.load(flags, {})) as misnamed:
        for begin in (source.transfers.plan, source.transfers.run):
            with pytest.raises(ConfigurationError, match="another root key") as refusal:
                await begin(misnamed, [ALICE])
            assert "--to-keys" in str(refusal.value.hint)
        assert await misnamed.log.vault.ring.tenants() == ["there"]
    assert not other.exists()
    assert await source.transfers.list() == []
    assert (await source.transfers.run(target, [ALICE])).moved == 1
    await assert_sound(source, target)


async def test_an_agent_that_cannot_be_moved_holds_up_none_of_those_that_go_with_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair.source, pair.target
    names = [AgentName("default", f"agent-{number}") for number in range(40)]  # more than begin together
    for name in names:
        await put(source, name, 2)
    tell = source.log.vault.moves.tell

    async def tell_and_take_the_name() -> None:
        """The plan found nothing there; somebody makes an agent of this name before its row is marked."""
        monkeypatch.undo()
        await put(target, names[7], 1)
        await tell()

    monkeypatch.setattr(source.log.vault.moves, "tell", tell_and_take_the_name)
    report = await source.transfers.run(target, names, at_once=2)
    assert (report.moved, report.failed) == (39, 1)
    (stays,) = [record for record in report.records if record.phase != "moved"]
    assert (stays.name, stays.phase) == (names[7], "aborted")
    assert "has an agent" in stays.problem
    assert (await source.log.append_event(names[7], Event("on"))).version == 3
    assert (await target.log.append_event(names[8], Event("on"))).version == 5
    await assert_sound(source, target)


async def test_a_page_that_was_altered_on_its_way_is_refused_and_nothing_of_the_agent_is_seen(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 300)
    await digest_of(source, ALICE)  # the state is at hand from here on: who reads is the copy
    read = source.log.store.read_agent

    async def altered(record: Any, where: EventFilter, limit: int, *, descending: bool = False) -> list[SealedEvent]:
        page = await read(record, where, limit, descending=descending)
        return [msgspec.structs.replace(each, payload=each.payload[:-1] + b"?") if each.version == 270 else each for each in page]

    with monkeypatch.context() as patch:
        patch.setattr(source.log.store, "read_agent", altered)
        report = await source.transfers.run(target, [ALICE])
    assert (report.moved, report.failed) == (0, 1)
    assert report.records[0].problem.startswith("chain_broken")
    assert await target.directory.list("default") == []
    await refused(target, ALICE, NotServed)
    (left,) = [row for row in await target.log.store.agents([ALICE]) if row is not None]
    assert left.data_key == b""  # nobody there can open what came
    assert (await source.log.append_event(ALICE, Event("on"))).version == 301
    # The next attempt goes on from the pages that were right.
    again = await source.transfers.run(target, [ALICE])
    assert (again.moved, again.events < 301) == (1, True)
    await assert_sound(source, target)


async def test_what_a_broken_transfer_left_is_shown_to_nobody_and_in_nobodys_way(pair: Pair) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 5)
    await put(target, BOB, 2)
    seen: list[set[str]] = []

    async def timeline(engine: Engine) -> set[str]:
        return {event.agent async for event in engine.recovery.timeline("default")}

    def break_off(step: str) -> None:
        if step == "transfer.copied":
            raise Conflict("broken off")

    steps.install(break_off)
    try:
        report = await source.transfers.run(target, [ALICE])
    finally:
        steps.install(None)
    assert [record.phase for record in report.records] == ["aborted"]
    assert (await target.log.store.agents([ALICE]))[0] is not None  # what was copied is there
    await target.run(until_drained=True)
    seen.append(await timeline(target))
    assert (await source.transfers.run(target, [ALICE])).moved == 1
    seen.append(await timeline(target))
    # At the source, once its key is destroyed, it stands in the way of no other either.
    await put(source, BOB, 1)
    await source.transfers.erase([ALICE])
    seen.append(await timeline(source))
    assert seen == [{"bob"}, {"alice", "bob"}, {"bob"}]
    await assert_sound(target)


async def test_nothing_of_an_agent_that_is_on_its_way_gets_into_a_dictionary(pair: Pair) -> None:
    """Its transfer may be broken off; its key is taken away then, and a dictionary would keep what it has of it."""
    target = pair.target
    await put(target, ALICE, 5)
    await put(target, BOB, 2)
    alice = await target.log.vault.record(*ALICE)
    assert await target.log.store.swap_owner(alice, "", owner_of(STAGED, "t"))
    with pytest.raises(InvalidInput, match="2 samples"):
        await target.train("default")


@pytest.mark.parametrize("moment", ["before", "shut"])
async def test_a_target_that_folds_otherwise_never_gets_the_agent(pair: Pair, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """It takes 1 for true, which Python finds equal; in the history that was copied, or in what came after that was compared."""
    source, target = pair.source, pair.target
    await put(source, ALICE, 3)
    await source.log.append_event(ALICE, Event("counted", changes=(set_value("/count", 1),)))
    fold, settle = comparing.fold_page, source.log.settle

    async def fold_otherwise(vault: Vault, start: Folded, page: Sequence[SealedEvent], **options: Any) -> Folded:
        folded = await fold(vault, start, page, **options)
        if vault is target.log.vault and folded.document.get("count") == 1:
            folded.document["count"] = True
        return folded

    async def count_after(name: AgentName) -> None:
        await source.log.append_event(name, Event("counted", changes=(set_value("/count", 1),)))
        await settle(name)

    if moment == "before":
        monkeypatch.setattr(replay, "fold_page", fold_otherwise)
    else:
        monkeypatch.setattr(comparing, "fold_page", fold_otherwise)
        monkeypatch.setattr(source.log, "settle", count_after)
    report = await source.transfers.run(target, [ALICE])
    monkeypatch.undo()
    assert (report.moved, report.failed) == (0, 1)
    assert "comes to another state" in report.records[0].problem
    assert (await source.states.get_current_state(ALICE)).document["count"] == 1
    await source.log.append_event(ALICE, Event("on"))
    await refused(target, ALICE, NotServed)
    await assert_sound(source)


async def test_the_digest_that_is_kept_is_of_the_state_that_went(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 5, size=700_000)  # others have their turn while it is compared
    settle = source.log.settle

    async def write_after_the_first_look(name: AgentName) -> None:
        changes = set_value("/note1", "other"), set_value("/more", {"is": "new"}), delete("/note2")
        await source.log.append_event(name, Event("noted", changes=changes))
        await settle(name)

    monkeypatch.setattr(source.log, "settle", write_after_the_first_look)
    (record,) = (await source.transfers.run(target, [ALICE])).records
    monkeypatch.undo()
    document = (await target.states.get_current_state(ALICE)).document
    assert (record.phase, document["note1"], document["more"], "note2" in document) == ("moved", "other", {"is": "new"}, False)
    assert record.digest == (await digest_of(target, ALICE)).hex()
    await assert_sound(source, target)


@pytest.mark.parametrize("pair", ["sqlite-sqlite", "postgres-sqlite", "sqlite-postgres"], indirect=True)
async def test_events_that_are_removed_while_they_are_copied_are_left_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair.source, pair.target
    for count in (200, 90, 10, 10, 10):
        await source.log.append_events(ALICE, [Event("noted", changes=(set_value(f"/of{count}", at),)) for at in range(count)])
        await source.snapshots.create_snapshot(ALICE)
    known = await digest_of(source, ALICE)
    read, removed = source.log.store.read_agent, []

    async def compacted(record: Any, where: EventFilter, limit: int, *, descending: bool = False) -> list[SealedEvent]:
        if where.from_version == 257 and not removed:
            monkeypatch.undo()
            removed.append((await source.upkeep.compact_events(ALICE, keep_last=10)).events)
        return await read(record, where, limit, descending=descending)

    monkeypatch.setattr(source.log.store, "read_agent", compacted)
    report = await source.transfers.run(target, [ALICE])
    assert (report.moved, report.failed) == (1, 0)
    assert removed[0] > 256  # more than the target had, so that its part of the history ends before what is left
    assert await digest_of(target, ALICE) == known
    await target.log.append_event(ALICE, Event("on"))
    await assert_sound(source, target)
    assert (await target.transfers.run(source)).moved == 1
    await assert_sound(source, target)


async def test_a_target_without_room_is_told_before_anything_is_begun(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair.source, pair.target
    await put(source, ALICE, 5)
    plan = await source.transfers.plan(target)
    assert plan.bytes > 0
    assert plan.room_bytes is not None
    assert plan.room_bytes > plan.bytes

    async def full() -> Room:
        return Room(0, plan.bytes)

    monkeypatch.setattr(target.log.store, "room", full)
    with pytest.raises(InvalidInput, match="are free"):
        await source.transfers.run(target)
    assert await source.transfers.list() == []
