"""The snapshotter: every agent that is due gets its snapshot, whoever works and whatever is away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from perdure.engine.digest import digest
from perdure.engine.log.records import AgentName
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.engine.replay import fold_log
from perdure.errors import IntegrityError, InvalidInput, Unavailable
from perdure.snapshots.cadence import Cadence, Trigger
from perdure.snapshots.order import SnapshotOrder
from perdure.snapshots.snapshotter import SCOPE, Make, Snapshotter
from tests.fix_snapshot_engine import TENANT, Shelved

OFTEN = Cadence(budget_events=10)
DONE_S = 60.0


def maker(shelved: Shelved) -> Make:
    """Makes snapshots, as the engine's own snapshotter does."""

    async def make(name: AgentName, trigger: Trigger) -> SnapshotRow:
        return (await shelved.snapshots.shelf.writer.create(name, SnapshotOrder(trigger=trigger))).row

    return make


def snapshotter(shelved: Shelved, make: Make | None = None, cadence: Cadence = OFTEN, **options: int) -> Snapshotter:
    return Snapshotter(shelved.engine.log.store, make or maker(shelved), cadence=cadence, **options)


async def drained(*working: Snapshotter) -> None:
    """Run them together until everything that is in the log now is done."""
    stop = asyncio.Event()
    async with asyncio.timeout(DONE_S), asyncio.TaskGroup() as group:
        for each in working:
            group.create_task(each.run(stop))
        await asyncio.gather(*(each.drain() for each in working))
        stop.set()


async def versions(shelved: Shelved, agent: str) -> list[int]:
    return [each.version for each in await shelved.snapshots.list_snapshots(AgentName(TENANT, agent))]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DONE_S):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_agents_that_are_due_get_a_snapshot_and_others_do_not(shelved: Shelved) -> None:
    sizes = {"few": 9, "enough": 10, "many": 57}
    for agent, count in sizes.items():
        await shelved.talk(agent, count)
    working = snapshotter(shelved)
    await drained(working)
    assert {agent: await versions(shelved, agent) for agent in sizes} == {"few": [], "enough": [10], "many": [57]}
    assert (working.status.made, working.status.failed, working.status.waiting) == (2, 0, 0)
    (made,) = await shelved.snapshots.list_snapshots(AgentName(TENANT, "many"))
    assert made.trigger == "scheduled"
    store, vault = shelved.engine.log.store, shelved.engine.log.vault
    folded = await fold_log(store, vault, await vault.record(TENANT, "many"))
    assert digest((await shelved.snapshots.restore_snapshot(AgentName(TENANT, "many"))).state.document) == digest(folded.document)


async def test_it_goes_on_where_the_last_one_was(shelved: Shelved) -> None:
    await shelved.talk("a", 12)
    await drained(snapshotter(shelved))
    await shelved.talk("a", 9, start=12)
    await drained(snapshotter(shelved))
    assert await versions(shelved, "a") == [12]
    await shelved.talk("a", 1, start=21)
    await drained(snapshotter(shelved))
    assert await versions(shelved, "a") == [22, 12], "the events of all runs count"


@pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
async def test_exact_steps_have_a_trigger_of_their_own(shelved: Shelved) -> None:
    await shelved.talk("a", 6)
    await drained(snapshotter(shelved, cadence=Cadence(every_versions=5)))
    assert [each.trigger for each in await shelved.snapshots.list_snapshots(AgentName(TENANT, "a"))] == ["event"]


async def test_several_share_the_partitions_and_make_each_snapshot_once(shelved: Shelved) -> None:
    agents = [f"agent-{number}" for number in range(24)]
    for agent in agents:
        await shelved.talk(agent, 11)
    other = await shelved.fresh()
    try:
        both = [snapshotter(shelved), other.upkeep.snapshotter(OFTEN)]
        await drained(*both)
        assert sum(each.status.made for each in both) >= len(agents)
        for agent in agents:
            assert await versions(shelved, agent) == [11]
        assert not await other.log.store.list_leases("snapshotter")
    finally:
        await other.close()


async def test_nothing_is_forgotten_when_it_ends_in_the_middle(shelved: Shelved) -> None:
    """It stops with agents in hand and others waiting; the next one makes all that is missing."""
    for number in range(6):
        await shelved.talk(f"agent-{number}", 10 + number)
    begun, stop = asyncio.Event(), asyncio.Event()

    async def never(name: AgentName, trigger: Trigger) -> SnapshotRow:
        begun.set()
        raise Unavailable("the store is away")

    running = asyncio.create_task(snapshotter(shelved, never, parallel=2).run(stop))
    await asyncio.wait_for(begun.wait(), DONE_S)
    stop.set()
    await asyncio.wait_for(running, DONE_S)
    assert not any([await versions(shelved, f"agent-{number}") for number in range(6)])
    await drained(snapshotter(shelved))
    for number in range(6):
        assert await versions(shelved, f"agent-{number}") == [10 + number]


@pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
async def test_a_store_that_is_away_is_waited_for_within_bounds(shelved: Shelved) -> None:
    """Reading stops at the limit of waiting agents, appends go on, and everything is made when the store is back."""
    for number in range(40):
        await shelved.talk(f"agent-{number}", 10)
    away, make = True, maker(shelved)

    async def sometimes(name: AgentName, trigger: Trigger) -> SnapshotRow:
        if away:
            raise Unavailable("the store is away")
        return await make(name, trigger)

    working = snapshotter(shelved, sometimes, waiting_max=5, parallel=2)
    stop = asyncio.Event()
    running = asyncio.create_task(working.run(stop))

    async def held_up() -> bool:
        return working.status.retries >= 4

    await until(held_up)
    partitions = shelved.engine.log.store.partitions
    assert working.status.waiting <= 5 + 2 + 40 / partitions * 4, "one page more than the limit, at most"
    assert await shelved.talk("agent-0", 10, start=10) == 20
    away = False
    await asyncio.wait_for(working.drain(), DONE_S)
    stop.set()
    await asyncio.wait_for(running, DONE_S)
    assert await versions(shelved, "agent-0") in ([20], [20, 10])
    for number in range(1, 40):
        assert await versions(shelved, f"agent-{number}") == [10]


@pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
async def test_one_agent_that_cannot_be_snapshotted_holds_up_no_other(shelved: Shelved) -> None:
    for agent in ("bad", "good"):
        await shelved.talk(agent, 10)
    make = maker(shelved)

    async def picky(name: AgentName, trigger: Trigger) -> SnapshotRow:
        if name.agent == "bad":
            raise IntegrityError("a broken chain")
        return await make(name, trigger)

    working = snapshotter(shelved, picky)
    await drained(working)
    assert (working.status.made, working.status.failed, working.status.problem) == (1, 1, "a broken chain")
    assert await versions(shelved, "good") == [10]


async def test_a_large_state_is_worked_on_alone(shelved: Shelved) -> None:
    most, now = 0, 0
    make = maker(shelved)

    async def watched(name: AgentName, trigger: Trigger) -> SnapshotRow:
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            return await make(name, trigger)
        finally:
            now -= 1

    for number in range(4):
        await shelved.talk(f"agent-{number}", 20, padding="x" * 1000)
    await drained(snapshotter(shelved, watched, parallel=4, state_bytes_max=1))
    assert most == 1
    for number in range(4):
        await shelved.talk(f"agent-{number}", 20, start=20)
    await drained(snapshotter(shelved, watched, parallel=4))
    assert most > 1


async def test_the_engine_runs_it_and_forgets_what_no_rule_keeps(shelved: Shelved) -> None:
    for turn in range(6):
        await shelved.talk("a", 10, start=10 * turn)
        await shelved.engine.run(relay=False, projector=False, snapshotter=True, cadence=OFTEN, until_drained=True)
    assert await versions(shelved, "a") == [60, 50, 40]


@pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
async def test_a_position_that_is_none_is_told(shelved: Shelved) -> None:
    await shelved.talk("a", 3)
    store = shelved.engine.log.store
    for partition in range(store.partitions):
        await store.put_document(SCOPE, str(partition), b"\xc1", expected=0)
    with pytest.raises(IntegrityError, match="position"):
        await snapshotter(shelved).run(asyncio.Event())
    with pytest.raises(InvalidInput):
        Cadence(every_bytes=0)
