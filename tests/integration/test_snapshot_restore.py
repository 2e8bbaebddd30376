"""Restoring a snapshot: verified before use, into a view, a new agent, or an event that leads back; nothing of the past is rewritten."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any
from uuid import uuid4

import pytest

import perdure
from perdure.client.snapshot_facts import Snapshot
from perdure.engine.event import Event
from perdure.engine.log.records import AgentName
from perdure.errors import (
    AgentNotFound,
    AlreadyExists,
    Conflict,
    Fenced,
    IntegrityError,
    InvalidInput,
    SnapshotNotFound,
    VersionNotFound,
)
from tests.fix_snapshot_engine import TENANT, Shelved

NAME = AgentName(TENANT, "a")
EMBEDDED = pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
"""What has nothing to do with the log is tried on one of them."""


async def history(shelved: Shelved) -> list[Snapshot]:
    """Snapshots at 10 and 20 of an agent that then changed a lot."""
    await shelved.talk("a", 10)
    first = await shelved.snapshot("a")
    await shelved.talk("a", 10, start=10)
    second = await shelved.snapshot("a")
    agent = shelved.engine.agent("a")
    await agent.update({"messages": None, "memory": {"x": [1, 2.5, None]}, "count": "many"})
    await agent.append(Event("noted", changes=(perdure.append("/messages", "anew"), perdure.delete("/memory/x"))))
    return [first, second]


async def events_of(shelved: Shelved, agent: str) -> list[Any]:
    return [event async for event in shelved.engine.agent(agent).events()]


async def test_a_view_changes_nothing(shelved: Shelved) -> None:
    first, second = await history(shelved)
    restored = await shelved.snapshots.restore_snapshot(NAME, snapshot=first.id)
    past = await shelved.engine.agent("a").state(at_version=10)
    assert (restored.into, restored.version, restored.integrity_verified, restored.snapshot) == ("view", 10, True, first.id)
    assert (restored.warnings, restored.agent, restored.appended) == ((), "a", None)
    assert (restored.state.document, restored.state.version, restored.state.time) == (past.document, 10, past.time)
    newest = await shelved.snapshots.restore_snapshot(NAME)
    assert (newest.version, newest.snapshot) == (20, second.id)
    between = await shelved.snapshots.restore_snapshot(NAME, version=21)
    assert (between.version, between.snapshot, between.state.document["count"]) == (21, second.id, "many")
    assert (await shelved.snapshots.restore_snapshot(NAME, version=0)).state.document == {}
    assert await shelved.engine.agent("a").version() == 22


async def test_a_fork_begins_with_the_state_and_goes_its_own_way(shelved: Shelved) -> None:
    first, _ = await history(shelved)
    await shelved.engine.agent("a").describe(type="support", labels={"team": "x"})
    shelved.engine.log.vault.forget(NAME)
    before = await shelved.engine.agent("a").state()
    restored = await shelved.snapshots.restore_snapshot(
        NAME, snapshot=first.id, into="fork", new_agent="b", actor="somebody", reason="what if"
    )
    assert (restored.agent, restored.appended, restored.version) == ("b", 1, 10)
    fork = shelved.engine.agent("b")
    assert (await fork.state()).document == (await shelved.engine.agent("a").state(at_version=10)).document
    (event,) = await events_of(shelved, "b")
    source = (await events_of(shelved, "a"))[9]
    assert (event.type, event.actor, event.causation_id) == ("forked", "somebody", source.id)
    assert event.data["reason"] == "what if"
    assert event.data["from"] == {"agent": "a", "version": 10, "chain": source.chain.hex(), "snapshot": str(first.id)}
    record = await shelved.engine.log.vault.record(TENANT, "b")
    assert (record.type, record.labels) == ("support", {"team": "x"})
    await fork.update({"count": "other"})
    assert (await shelved.engine.agent("a").state()).document == before.document
    assert (await shelved.snapshot("b")).version == 2
    for taken in ("a", "b"):
        with pytest.raises(AlreadyExists):
            await shelved.snapshots.restore_snapshot(NAME, into="fork", new_agent=taken)
    assert len(await events_of(shelved, "b")) == 2


async def test_a_rollback_is_an_event_that_leads_back(shelved: Shelved) -> None:
    first, _ = await history(shelved)
    past = await shelved.engine.agent("a").state(at_version=10)
    restored = await shelved.snapshots.restore_snapshot(NAME, snapshot=first.id, into="rollback", actor="somebody", reason="it went wrong")
    assert (restored.version, restored.appended) == (10, 23)
    now = await shelved.engine.agent("a").state()
    assert (now.version, now.document, now.digest) == (23, past.document, past.digest)
    events = await events_of(shelved, "a")
    assert [event.version for event in events] == list(range(1, 24))
    assert (events[-1].type, events[-1].actor, events[-1].causation_id) == ("rolled_back", "somebody", events[9].id)
    assert (events[-1].data["to"]["version"], events[-1].data["reason"]) == (10, "it went wrong")
    # Back again: what was undone is not lost.
    again = await shelved.snapshots.restore_snapshot(NAME, version=22, into="rollback")
    assert again.appended == 24
    assert (await shelved.engine.agent("a").state()).document == (await shelved.engine.agent("a").state(at_version=22)).document


@EMBEDDED
@pytest.mark.parametrize("seed", range(3))
async def test_a_rollback_leads_to_any_version_from_any_other(shelved: Shelved, seed: int) -> None:
    random = Random(seed)
    agent = shelved.engine.agent("a")
    for number in range(40):
        changes = [
            perdure.append("/messages", {"n": number}),
            perdure.set_value(f"/{random.choice('xyz')}", random.choice([1, 1.0, True, None, [], {}, [1], {"k": number}])),
            perdure.delete(f"/{random.choice(['x', 'y', 'messages/0', 'messages'])}"),
            perdure.insert("/messages/0", number),
        ]
        await agent.append(Event("edited", changes=tuple(random.sample(changes, 2))))
        if random.random() < 0.2:
            await shelved.snapshot("a")
    for _ in range(6):
        version = random.randint(0, await agent.version())
        await shelved.snapshots.restore_snapshot(NAME, version=version, into="rollback")
        assert (await agent.state()).digest == (await agent.state(at_version=version)).digest


@EMBEDDED
async def test_a_rollback_while_others_write_is_decided_anew(shelved: Shelved) -> None:
    first, _ = await history(shelved)
    log = shelved.engine.log
    append, appends = log.append_events, 0

    async def slow(name: AgentName, events: Any, **options: Any) -> Any:
        nonlocal appends
        appends += 1
        if appends < 3:
            await append(name, [Event("noted", changes=(perdure.set_value("/late", appends),))])
        return await append(name, events, **options)

    log.append_events = slow
    restored = await shelved.snapshots.restore_snapshot(NAME, snapshot=first.id, into="rollback")
    log.append_events = append
    assert restored.appended == 25
    assert (await shelved.engine.agent("a").state()).document == restored.state.document


async def test_a_rollback_under_an_older_epoch_is_fenced(shelved: Shelved) -> None:
    first, _ = await history(shelved)
    epoch = await shelved.engine.log.take_ownership(NAME, "somebody else")
    with pytest.raises(Fenced):
        await shelved.snapshots.restore_snapshot(NAME, snapshot=first.id, into="rollback", epoch=epoch - 1)
    done = await shelved.snapshots.restore_snapshot(NAME, snapshot=first.id, into="rollback", epoch=epoch)
    assert done.appended == 24


@EMBEDDED
async def test_a_named_snapshot_that_is_damaged_is_refused_and_a_version_steps_down(shelved: Shelved) -> None:
    first, second = await history(shelved)
    await shelved.damage(second)
    for _ in range(2):  # found, then known
        with pytest.raises(IntegrityError) as caught:
            await shelved.snapshots.restore_snapshot(NAME, snapshot=second.id, into="rollback")
        assert (caught.value.agent, caught.value.version) == ("a", 20)
    assert await shelved.engine.agent("a").version() == 22
    restored = await shelved.snapshots.restore_snapshot(NAME, version=20, into="fork", new_agent="b")
    assert (restored.snapshot, restored.version) == (first.id, 20)
    assert (await shelved.engine.agent("b").state()).document["count"] == 19


@EMBEDDED
async def test_a_step_down_on_the_way_is_a_warning(shelved: Shelved) -> None:
    first, second = await history(shelved)
    await shelved.damage(second)
    restored = await shelved.snapshots.restore_snapshot(NAME)
    assert (restored.snapshot, restored.version) == (first.id, 10)
    assert any("version 20 not used" in warning for warning in restored.warnings)


@EMBEDDED
async def test_bad_requests_are_typed_and_change_nothing(shelved: Shelved) -> None:
    first, _ = await history(shelved)
    await shelved.talk("b", 1)
    restore = shelved.snapshots.restore_snapshot
    for wrong, kind in (
        ({"into": "elsewhere"}, InvalidInput),
        ({"into": "fork"}, InvalidInput),
        ({"into": "view", "new_agent": "c"}, InvalidInput),
        ({"snapshot": first.id, "version": 3}, InvalidInput),
        ({"snapshot": uuid4()}, SnapshotNotFound),
        ({"version": 23}, VersionNotFound),
        ({"version": -1}, VersionNotFound),
        ({"into": "fork", "new_agent": ""}, InvalidInput),
        ({"into": "fork", "new_agent": "x\0y"}, InvalidInput),
    ):
        with pytest.raises(kind):
            await restore(NAME, **wrong)
    with pytest.raises(SnapshotNotFound):  # of another agent
        await restore(AgentName(TENANT, "b"), snapshot=first.id)
    with pytest.raises((SnapshotNotFound, AgentNotFound)):  # of another tenant
        await restore(AgentName("other", "a"), snapshot=first.id)
    with pytest.raises(AgentNotFound):
        await restore(AgentName(TENANT, "nobody"))
    assert [agent.agent for agent in await shelved.engine.log.store.list_agents(TENANT)] == ["a", "b"]
    assert await shelved.engine.agent("a").version() == 22


async def test_one_of_many_forks_of_a_name_wins(shelved: Shelved) -> None:
    await history(shelved)
    forks = [shelved.snapshots.restore_snapshot(NAME, version=n, into="fork", new_agent="b") for n in range(1, 6)]
    answers = await asyncio.gather(*forks, return_exceptions=True)
    assert len([answer for answer in answers if isinstance(answer, AlreadyExists)]) == 4
    (won,) = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert (await shelved.engine.agent("b").state()).document == won.state.document


@EMBEDDED
async def test_what_a_fork_was_made_from_is_not_deleted(shelved: Shelved) -> None:
    first, _ = await history(shelved)
    await shelved.snapshots.restore_snapshot(NAME, snapshot=first.id, into="fork", new_agent="b")
    for number in range(3):
        await shelved.talk("a", 1, start=number)
        await shelved.snapshot("a")
    with pytest.raises(Conflict, match="needs version 10"):
        await shelved.snapshots.delete_snapshot(TENANT, first.id)
    assert (await shelved.snapshots.verify_snapshot(TENANT, first.id)).ok
    assert await shelved.engine.log.store.list_leases("snapshots/") == []


@EMBEDDED
async def test_states_larger_than_an_event_are_forked_and_rolled_back_to(shelved: Shelved) -> None:
    version = await shelved.talk("a", 6_000, padding="some words " * 90)
    made = await shelved.snapshot("a")
    assert made.plain_bytes > 5 * 1024 * 1024
    await shelved.engine.agent("a").update({"messages": None})
    past = await shelved.engine.agent("a").state(at_version=version)
    await shelved.snapshots.restore_snapshot(NAME, snapshot=made.id, into="fork", new_agent="b")
    await shelved.snapshots.restore_snapshot(NAME, snapshot=made.id, into="rollback")
    for agent in ("a", "b"):
        assert (await shelved.engine.agent(agent).state()).digest == past.digest
    assert (await shelved.snapshot("b")).version == 1
