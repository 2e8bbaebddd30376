"""From the log over the bus into a cache, and reads with the log behind them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from perdure.engine.changes import append, delete, insert, merge, set_value
from perdure.engine.log.records import AgentName
from perdure.engine.readonly import thaw
from perdure.errors import AgentNotFound, DeadlineExceeded, InvalidInput, ReadOnly, SealBroken, VersionNotFound
from perdure.projections.cache_check import check_cache
from perdure.projections.contract import CachedState, Token
from perdure.projections.custom import Projections
from perdure.projections.directory import Directory
from perdure.projections.redis import RedisCache
from tests.fix_projections import World


def said(agent: str, count: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{agent} {i}"} for i in range(count)], "count": count - 1}


async def test_what_was_appended_stands_in_the_cache(world: World) -> None:
    for agent in "abc":
        await world.talk(agent, 20)
    await world.publish()
    projector = world.projector()
    assert await projector.drain() == 60
    assert projector.status.applied_agents >= 3
    assert projector.status.rebuilt_agents == 0
    reader = world.reader()
    for agent in "abc":
        state = await reader.state("t", agent, consistency="eventual")
        assert state.document == said(agent, 20)
        assert state.version == 20
    report = await check_cache(world.store, world.cache, world.vault)
    assert (report.agents, report.same, report.ok) == (3, 3, True)


async def test_every_kind_of_change_arrives_step_by_step(world: World) -> None:
    projector, reader = world.projector(), world.reader()
    steps = [
        [set_value("/a", [1, 2, 3]), set_value("/m/k", "v")],
        [insert("/a/0", 0), append("/a", 4)],
        [delete("/a/1"), delete("/a/1")],
        [merge("/m", {"k": None, "x": {"y": [1]}})],
        [set_value("/a", "scalar")],
        [append("/a", "list again")],
        [delete("/m")],
        [set_value("", {"new": {"root": True}, "a": []})],
        [delete("")],
        [append("/messages", {"ü": "ü", "n": None})],
        [],
    ]
    for version, changes in enumerate(steps, 1):
        assert await world.add("a", *changes) == version
        await world.publish()
        await projector.drain()
        cached = await reader.state("t", "a", consistency="eventual")
        assert cached.version == version
        assert cached.document == (await reader.state_at_version("t", "a", version)).document
    assert projector.status.rebuilt_agents == 0
    assert (await check_cache(world.store, world.cache, world.vault)).ok


async def test_many_small_steps_pack_and_unpack_to_the_same_state(world: World) -> None:
    projector = world.projector()
    for i in range(120):
        changes = [set_value(f"/map/k{i % 30}", i), append("/list", i), set_value("/count", i)]
        if i % 3 == 0:
            changes.append(delete(f"/map/k{(i * 7) % 30}"))
        if i % 10 == 9:
            changes.append(delete("/list/0"))
        if i == 70:
            changes.append(set_value("/list", []))
        await world.add("a", *changes)
        await world.publish()
        await projector.drain()
        if i % 17 == 0:
            await projector.close()
            projector = world.projector()
        report = await check_cache(world.store, world.cache, world.vault)
        assert (report.same, report.problems) == (1, [])
    assert projector.status.rebuilt_agents == 0
    state = (await world.cache.get([("t", "a")]))[0]
    assert state is not None
    assert len(state.cells) < 100


async def test_a_cell_larger_than_one_seal_is_cached_all_the_same(world: World) -> None:
    projector = world.projector()
    for i in range(4):
        await world.add("a", append("/deep/list", str(i) * 3_000_000), set_value("/n", i))
        await world.publish()
        await projector.drain()
    assert projector.status.quarantined_agents == 0
    assert (await world.reader().state("t", "a", consistency="eventual")).version == 4
    assert (await check_cache(world.store, world.cache, world.vault)).same == 1


async def test_a_restarted_projector_goes_on_from_the_cache(world: World) -> None:
    await world.talk("a", 5)
    await world.publish()
    first = world.projector()
    await first.drain()
    await first.close()
    await world.talk("a", 5)
    await world.publish()
    second = world.projector()
    assert await second.drain() == 5
    assert second.status.rebuilt_agents == 0
    assert (await world.cache.tokens([("t", "a")])) == [Token(world.store.generation, 0, 10)]
    assert (await check_cache(world.store, world.cache, world.vault)).ok


async def test_repeated_messages_change_nothing(world: World) -> None:
    await world.talk("a", 10)
    await world.publish()
    projector = world.projector()
    await projector.drain()
    world.published = dict.fromkeys(world.published, 0)
    await world.publish()
    assert await projector.drain() == 10
    assert (await world.reader().state("t", "a", consistency="eventual")).document == said("a", 10)


async def test_a_gap_on_the_bus_is_filled_from_the_log(world: World) -> None:
    await world.talk("a", 3)
    await world.publish()
    projector = world.projector()
    await projector.drain()
    await world.talk("a", 4)
    world.published = {partition: position.offset for partition, position in (await world.store.positions()).items()}
    world.published |= {partition: 0 for partition in range(2) if partition not in world.published}
    await world.add("a", set_value("/last", True))
    await world.publish()
    assert await projector.drain() == 1
    assert projector.status.rebuilt_agents == 1
    assert (await world.cache.tokens([("t", "a")]))[0] == Token(world.store.generation, 0, 8)
    assert (await check_cache(world.store, world.cache, world.vault)).ok


async def test_a_forgotten_cache_is_filled_again_by_the_next_event(world: World) -> None:
    await world.talk("a", 5)
    await world.publish()
    projector = world.projector()
    await projector.drain()
    await world.cache.remove([("t", "a")])
    await world.talk("a", 1)
    await world.publish()
    await projector.drain()
    assert (await world.cache.tokens([("t", "a")]))[0] == Token(world.store.generation, 0, 6)
    assert (await check_cache(world.store, world.cache, world.vault)).ok


async def test_a_message_broken_on_the_bus_is_healed_from_the_log(world: World) -> None:
    await world.talk("a", 5)
    world.tamper = lambda event: msgspec.structs.replace(event, payload=b"\x00" + event.payload[1:])
    await world.publish()
    projector = world.projector()
    await projector.drain()
    assert projector.status.quarantined_agents == 0
    assert (await world.reader().state("t", "a", consistency="eventual")).document == said("a", 5)


async def test_a_poisoned_agent_is_put_aside_alone_and_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for agent in "abc":
        await world.talk(agent, 5)
    record = await world.vault.record("t", "b")
    poisoned = (await world.store.find(record, [(await world.log.get_events(AgentName("t", "b")))[2].id]))[0]

    def failing(opened: Any) -> Any:
        async def open_some(events: Any) -> Any:
            events = list(events)
            if any(event.id == poisoned.id for event in events):
                raise SealBroken("a sealed value cannot be opened", tenant="t", agent="b", version=3)
            return await opened(events)

        return open_some

    await world.publish()
    projector = world.projector()
    with monkeypatch.context() as patched:
        patched.setattr(world.vault, "open_all", failing(world.vault.open_all))
        patched.setattr(world.vault, "open_effects", failing(world.vault.open_effects))
        await projector.drain()
        entry = (await projector.quarantine.list())[0]
        assert (entry.tenant, entry.agent, entry.code) == ("t", "b", "seal_broken")
        with pytest.raises(SealBroken):
            await projector.quarantine.retry(world.cache, world.vault, "t", "b")
        assert await projector.quarantine.get("t", "b") is not None
    reader = world.reader()
    for agent in "ac":
        assert (await reader.state("t", agent, consistency="eventual")).document == said(agent, 5)
    assert await world.cache.tokens([("t", "b")]) == [None]
    assert await projector.quarantine.retry(world.cache, world.vault, "t", "b") == 5
    assert await projector.quarantine.list() == []
    assert (await check_cache(world.store, world.cache, world.vault)).same == 3


async def test_a_projector_stops_when_it_is_told_to(world: World) -> None:
    await world.talk("a", 5)
    await world.publish()
    stop = asyncio.Event()
    projector = world.projector()
    running = asyncio.create_task(projector.run(stop))
    state = await world.reader().state("t", "a", at_least=5)
    assert state.version == 5
    stop.set()
    await asyncio.wait_for(running, 60)


async def test_a_strong_read_folds_what_the_cache_lacks(world: World) -> None:
    await world.talk("a", 3)
    await world.publish()
    await world.projector().drain()
    reader = world.reader()
    await world.talk("a", 2)
    assert (await reader.state("t", "a", consistency="eventual")).version == 3
    strong = await reader.state("t", "a")
    assert strong.version == 5
    assert strong.document == (await reader.state_at_version("t", "a", 5)).document
    assert strong.time == (await world.log.get_events(AgentName("t", "a")))[-1].time
    assert (await reader.state("t", "a", consistency="eventual", at_least=5)).version == 5


async def test_a_miss_is_served_from_the_log_and_put_back(world: World) -> None:
    await world.talk("a", 3)
    for consistency in ("strong", "eventual"):
        await world.cache.remove([("t", "a")])
        assert (await world.reader().state("t", "a", consistency=consistency)).document == said("a", 3)
        assert (await world.cache.tokens([("t", "a")]))[0] == Token(world.store.generation, 0, 3)
    assert (await check_cache(world.store, world.cache, world.vault)).ok


async def test_callers_cannot_change_what_others_read(world: World) -> None:
    await world.talk("a", 3)
    reader = world.reader()
    for consistency in ("strong", "eventual", "strong", "eventual"):
        state = await reader.state("t", "a", consistency=consistency)
        assert state.document == said("a", 3)
        for change in (state.document["messages"].clear, state.document["messages"][0].clear, state.document.clear):
            with pytest.raises(ReadOnly):
                change()
        thaw(state.document)["messages"].clear()


async def test_unknown_agents_and_versions_are_typed_errors(world: World) -> None:
    reader = world.reader()
    for consistency in ("strong", "eventual"):
        with pytest.raises(AgentNotFound):
            await reader.state("t", "nobody", consistency=consistency)
    await world.talk("a", 3)
    for version in (-1, 4):
        with pytest.raises(VersionNotFound):
            await reader.state_at_version("t", "a", version)
    assert (await reader.state_at_version("t", "a", 0)).document == {}
    with pytest.raises(DeadlineExceeded):
        await reader.state("t", "a", at_least=4, timeout_s=0.05)
    with pytest.raises(InvalidInput):
        await reader.state("t", "a", consistency="loose")  # type: ignore[arg-type]


async def test_a_state_is_read_as_of_a_time(world: World) -> None:
    await world.talk("a", 3)
    await world.add("a", set_value("/later", 1))
    events = await world.log.get_events(AgentName("t", "a"))
    reader = world.reader()
    for event in events:
        state = await reader.state_at_time("t", "a", event.time)
        assert state.version == max(other.version for other in events if other.time <= event.time)
    with pytest.raises(InvalidInput):
        await reader.state_at_time("t", "a", events[0].time.replace(tzinfo=None))


@pytest.mark.parametrize("damage", ["flip", "drop record", "swap loose", "swap packed", "rename", "token"])
async def test_a_damaged_cached_state_is_never_served(world: World, damage: str) -> None:
    projector = world.projector()
    for _ in range(2):
        await world.talk("a", 3)
        await world.publish()
        await projector.drain()
    expected = (await world.reader().state_at_version("t", "a", 6)).document
    state = (await world.cache.get([("t", "a")]))[0]
    assert state is not None
    await world.cache.remove([("t", "a")])
    await _put_raw(world, _damaged(state, damage))
    for consistency in ("eventual", "strong"):
        assert (await world.reader().state("t", "a", consistency=consistency)).document == expected
    assert (await check_cache(world.store, world.cache, world.vault)).ok


def _damaged(state: CachedState, damage: str) -> CachedState:
    cells, token = dict(state.cells), state.token
    names = [name for name in cells if name != b"r"]
    loose = [name for name in names if len(name) == 16]
    if damage == "flip":
        cells[names[0]] = cells[names[0]][:-1] + bytes([cells[names[0]][-1] ^ 1])
    elif damage == "drop record":
        del cells[b"r"]
    elif damage == "swap loose":
        cells[loose[0]] = cells[loose[1]]
    elif damage == "swap packed":
        cells[b"p\0\0\0\0"] = cells[loose[0]]
    elif damage == "rename":
        cells[bytes(16)] = cells.pop(loose[0])
    else:
        token = token._replace(version=2)
    return CachedState(token, cells)


async def _put_raw(world: World, state: CachedState) -> None:
    from perdure.testing.cache_kit import whole

    await world.cache.apply([whole(("t", "a"), state.token, state.cells)])


async def test_the_check_names_an_older_cell_put_in_place_of_a_newer(world: World) -> None:
    projector = world.projector()
    await world.add("a", set_value("/x", 1))
    await world.publish()
    await projector.drain()
    old = (await world.cache.get([("t", "a")]))[0]
    await world.add("a", set_value("/x", 2))
    await world.publish()
    await projector.drain()
    new = (await world.cache.get([("t", "a")]))[0]
    assert old is not None
    assert new is not None
    await world.cache.remove([("t", "a")])
    await _put_raw(world, CachedState(new.token, {**old.cells, b"r": new.cells[b"r"]}))
    report = await check_cache(world.store, world.cache, world.vault)
    assert (report.wrong, report.ok) == (1, False)
    assert report.problems[0].agent == "a"


async def test_no_plaintext_stands_in_redis(world: World, redis_url: str) -> None:
    world.cache = cache = RedisCache(redis_url, prefix=f"test-{uuid4().hex}")
    try:
        await world.add("a", set_value("/secretmember", {"secretkey": "secretvalue"}), append("/list", "secretelement"))
        await world.publish()
        await world.projector().drain()
        state = (await cache.get([("t", "a")]))[0]
        assert state is not None
        stored = b"".join(name + value for name, value in state.cells.items())
        assert b"secret" not in stored
        assert b"list" not in stored
        assert (await check_cache(world.store, cache, world.vault)).ok
    finally:
        await cache.close()


async def test_the_directory_lists_by_page_and_status(world: World) -> None:
    for i in range(7):
        await world.talk(f"agent-{i}", 1)
    await world.log.fence(AgentName("t", "agent-3"))
    directory = Directory(world.store)
    page = await directory.page("t", limit=3)
    assert [entry.record.agent for entry in page.entries] == ["agent-0", "agent-1", "agent-2"]
    assert page.after == "agent-2"
    assert [entry.record.agent async for entry in directory.all("t", status="fenced")] == ["agent-3"]
    active = [entry async for entry in directory.all("t", status="active")]
    assert len(active) == 6
    assert all(entry.version == 1 for entry in active)
    with pytest.raises(InvalidInput):
        await directory.page("t", limit=0)


async def test_a_custom_projection_sees_every_event_once_in_order(world: World) -> None:
    seen: list[tuple[int, int]] = []

    async def handle(events: Any) -> None:
        seen.extend((event.partition, event.offset) for event in events)

    for agent in "abcd":
        await world.talk(agent, 5)
    projections = Projections(world.store, world.vault)
    projections.register("counter", handle)
    assert await projections.drain("counter") == 20
    await world.talk("a", 2)
    again = Projections(world.store, world.vault)
    again.register("counter", handle)
    assert sum(lag.lag_events for lag in await again.lag("counter")) == 2
    assert await again.drain("counter") == 2
    assert len(set(seen)) == len(seen) == 22
    for partition in range(2):
        offsets = [offset for each, offset in seen if each == partition]
        assert offsets == sorted(offsets)
    assert all(lag.lag_events == 0 and lag.lag_s == 0 for lag in await again.lag("counter"))


async def test_a_failing_handler_pauses_its_projection_with_the_reason(world: World) -> None:
    seen: list[int] = []
    broken = True

    async def handle(events: Any) -> None:
        if broken:
            raise ValueError("no table")
        seen.extend(event.version for event in events)

    await world.talk("a", 3)
    projections = Projections(world.store, world.vault)
    projections.register("table", handle, types=["said"])
    assert await projections.drain("table") == 0
    status = await projections.status("table")
    assert status.paused
    assert "no table" in status.reason
    broken = False
    assert await projections.drain("table") == 0
    await projections.resume("table")
    assert await projections.drain("table") == 3
    assert seen == [1, 2, 3]
