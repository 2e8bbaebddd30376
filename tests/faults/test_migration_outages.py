"""Migrations while something is away, late or wrong: replies, links, servers, copies, and others who migrate the same agent.

The oracle is that of `test_migration_faults.py`: `World.check`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import perdure
from perdure import config, services
from perdure.engine.log.records import AgentName
from perdure.errors import AlreadyExists, Conflict, InvalidInput, NotServed, Overloaded, Unavailable
from perdure.migration.ledger import Ledger
from perdure.migration.records import Migration, event_id
from perdure.migration.settling import COMMIT, Settler
from perdure.recovery.nodes import announce, list_nodes
from tests.faults.migrating import TIMEOUT_S, World, world_on
from tests.faults.separation import separable
from tests.fix_proxy import Proxy
from tests.fix_services import PrivateServices

PING_PONG_S = float(os.environ.get("PERDURE_PING_PONG_S", "0"))
"""How long agents go to and fro; 0: `MOVES` times each."""
MOVES = 4
FAST = 100.0
"""Commands a second to each agent that goes to and fro: some wait wherever it goes."""
LOST = 6
"""Exit code of a node that lost its lease."""
Proxies = Callable[[str], Awaitable[Proxy]]


@pytest.fixture
async def world(fresh_database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with world_on(fresh_database, tmp_path) as made:
        yield made


async def source_and_target(world: World, agents: int = 1, *, log: str = "", mutant: str = "") -> list[AgentName]:
    """Two nodes, and agents on the first. log, mutant: the second's."""
    await asyncio.gather(world.node("source"), world.node("target", log=log, mutant=mutant))
    return await world.place([f"agent {number}" for number in range(agents)], "source")


async def test_a_commit_whose_answer_is_lost_has_happened_once(world: World, proxy_before: Proxies) -> None:
    proxy = await proxy_before(world.flags["log"])
    (name,) = await source_and_target(world, log=proxy.url)
    async with world.probed([name]):
        plan = await world.engine.migrations.plan_migration(name, "target")
        proxy.cut_reply_to(event_id(plan.id, COMMIT).bytes)
        async with asyncio.timeout(TIMEOUT_S):
            moved = await world.engine.migrations.execute_migration(plan)
        assert proxy.cut_done.is_set()
        await world.all_answer()
    report = await world.check()
    assert (moved.phase, await world.owner(name)) == ("committed", "target")
    # Owned by the source, then by the target; where the target took it anew after the loss, a third time.
    assert report.owners in (2, 3)


async def test_an_abort_before_a_commit_that_is_late_wins_and_the_commit_changes_nothing(world: World, proxy_before: Proxies) -> None:
    proxy = await proxy_before(world.flags["log"])
    (name,) = await source_and_target(world, log=proxy.url)
    settler, ledger = Settler(world.engine.log), Ledger(world.engine.log.store)
    async with world.probed([name]):
        plan = await world.engine.migrations.plan_migration(name, "target")
        proxy.hold_request(event_id(plan.id, COMMIT).bytes)
        moving = asyncio.create_task(world.engine.migrations.execute_migration(plan))
        async with asyncio.timeout(TIMEOUT_S):
            await proxy.held.wait()
            kept = await ledger.get(name)
            assert kept is not None
            settled = await settler.settle(kept, "somebody wants it to stay")
            proxy.release()
            moved = await moving
        await world.all_answer()
    await world.check()
    assert (settled.phase, moved.phase, await world.owner(name)) == ("aborted", "aborted", "source")


async def test_an_abort_behind_a_commit_finds_it_done(world: World) -> None:
    await asyncio.gather(world.node("source"), world.node("target", stop_point="migration.target.committed"))
    (name,) = await world.place(["agent"], "source")
    settler, ledger = Settler(world.engine.log), Ledger(world.engine.log.store)
    async with world.probed([name]):
        moving = asyncio.create_task(world.move(name, "target"))
        target = world.nodes["target"].process
        async with asyncio.timeout(TIMEOUT_S):
            await target.reached("migration.target.committed")
            kept = await ledger.get(name)
            assert kept is not None
            # Both at once: the second finds what the first wrote.
            settled = await asyncio.gather(*(settler.settle(kept, "somebody wants it to stay") for _ in range(2)))
            target.send(signal.SIGCONT)
            moved = await moving
        await world.all_answer()
    await world.check()
    assert ({each.phase for each in settled}, moved.phase, await world.owner(name)) == ({"committed"}, "committed", "target")


async def test_a_source_that_the_target_cannot_reach_is_fenced_by_the_log(world: World, proxy_before: Proxies) -> None:
    await asyncio.gather(world.node("source"), world.node("target"))
    (name,) = await world.place(["agent"], "source")
    (source,) = [state.node for state in await list_nodes(world.engine.log.store) if state.node.name == "source"]
    proxy = await proxy_before(source.address)
    # Only who looks for the node finds the way through the proxy: callers know its address.
    way = proxy.url
    await announce(
        world.engine.log.store, type(source)(**{field: getattr(source, field) for field in source.__struct_fields__} | {"address": way})
    )
    proxy.separate()
    async with world.probed([name]):
        moved = await world.move(name, "target")
        await world.all_answer()
    await world.check()
    assert (moved.phase, await world.owner(name)) == ("committed", "target")
    assert world.nodes["source"].process.hits()["host.holding"] == 0


async def test_a_target_cut_off_from_the_log_leaves_the_agent_where_it_is_or_ends_what_it_began(
    world: World, proxy_before: Proxies
) -> None:
    proxy = await proxy_before(world.flags["log"])
    names = await source_and_target(world, agents=2, log=proxy.url)
    async with world.probed(names):
        moving = asyncio.create_task(world.move(names[0], "target"))
        async with asyncio.timeout(TIMEOUT_S):
            await world.nodes["target"].process.reached("migration.target.copied")
        proxy.cut()
        moved = await moving
        again = await world.move(names[1], "target")
        await world.all_answer()
    await world.check()
    assert await world.owner(names[0]) == ("target" if moved.phase == "committed" else "source")
    assert (again.phase, await world.owner(names[1])) == ("committed", "target")


async def test_nodes_in_networks_that_are_cut_neither_write_nor_keep_an_agent(world: World) -> None:
    async with separable(world.flags["log"]) as way_of_source, separable(world.flags["log"]) as way_of_target:
        copied = "migration.target.copied"
        await asyncio.gather(
            world.node_behind(way_of_source, "source"), world.node_behind(way_of_target, "apart", stop_point=copied), world.node("other")
        )
        moving, staying = await world.place(["moving", "staying"], "source")
        async with world.probed([moving, staying]):
            # A target that reaches neither the source nor, from its copy on, the log.
            asked = asyncio.create_task(world.move(staying, "apart"))
            apart = world.nodes["apart"].process
            async with asyncio.timeout(TIMEOUT_S):
                await apart.stopped()
                await way_of_target.cut()
                apart.send(signal.SIGCONT)
                await world.lease_runs_out("apart")
                ended = await asked
            await way_of_target.heal()
            async with asyncio.timeout(TIMEOUT_S):
                assert await apart.ended() == LOST
            await world.all_answer()
            # A source that its target reaches, and that does not reach the log.
            await way_of_source.cut()
            moved = await world.move(moving, "other")
            await world.all_answer([moving])
            await way_of_source.heal()
            await world.all_answer()
        await world.check()
    assert (moved.phase, await world.owner(moving)) == ("committed", "other")
    assert (ended.phase, await world.owner(staying)) == ("aborted", "source")


async def test_a_coordinator_cut_off_from_the_log_is_not_needed(world: World, proxy_before: Proxies) -> None:
    (name,) = await source_and_target(world)
    proxy = await proxy_before(world.flags["log"])
    settings = config.load({**world.flags, "log": proxy.url})
    async with perdure.open(settings=settings, create=False) as engine, world.probed([name]):
        plan = await engine.migrations.plan_migration(name, "target")
        asked = asyncio.create_task(engine.migrations.execute_migration(plan))
        async with asyncio.timeout(TIMEOUT_S):
            await world.nodes["target"].process.reached("migration.target.accepted")
        proxy.separate()
        (moved,) = await world.all_closed([name])
        await world.all_answer()
        proxy.cut()
        proxy.flow()
        async with asyncio.timeout(TIMEOUT_S):
            (told,) = await asyncio.gather(asked, return_exceptions=True)
    await world.check()
    assert (moved.phase, await world.owner(name)) == ("committed", "target")
    # It saw the end, or was told that the log is away.
    assert isinstance(told, Unavailable) or (isinstance(told, Migration) and told.phase == moved.phase)


async def test_a_target_that_folds_otherwise_never_gets_the_agent_and_the_source_never_stops(world: World) -> None:
    mutants = ("another-fold", "another-fold-without-a-witness")
    await asyncio.gather(world.node("source"), *(world.node(mutant, mutant=mutant) for mutant in mutants))
    (name,) = await world.place(["agent"], "source")
    async with world.probed([name]):
        moved = [await world.move(name, mutant) for mutant in mutants]
        await world.all_answer()
    report = await world.check()
    assert [each.phase for each in moved] == ["aborted"] * len(mutants)
    assert all("digest mismatch" in each.error for each in moved)
    assert (report.owners, await world.owner(name)) == (1, "source")
    assert world.nodes["source"].process.hits()["host.holding"] == 0


@pytest.fixture(scope="module")
def own_postgres(private_services: Callable[..., PrivateServices]) -> PrivateServices:
    return private_services("postgres")


async def test_a_postgres_that_restarts_while_the_agent_is_fenced_delays_it_and_no_more(
    own_postgres: PrivateServices, tmp_path: Path
) -> None:
    postgres = own_postgres.services.postgres
    assert postgres is not None
    async with world_on(postgres.url, tmp_path) as world:
        fenced = "migration.target.fenced"
        await asyncio.gather(world.node("source"), world.node("target", stop_point=fenced))
        (name,) = await world.place(["agent"], "source")
        target = world.nodes["target"].process
        async with world.probed([name]):
            moving = asyncio.create_task(world.move(name, "target", "cold"))
            async with asyncio.timeout(TIMEOUT_S):
                await target.reached(fenced)
            await asyncio.to_thread(services.stop, "postgres", own_postgres.root, how="immediate")
            await asyncio.to_thread(services.up, root=own_postgres.root, only=("postgres",))
            target.send(signal.SIGCONT)
            await asyncio.wait([moving])
            (closed,) = await world.all_closed([name])
            await world.all_answer()
        # With connections that were not cut.
        async with perdure.open(settings=config.load(world.flags), create=False) as world.engine:
            await world.check()
            assert await world.owner(name) == ("target" if closed.phase == "committed" else "source")


async def test_without_kafka_and_redis_agents_move(
    fresh_database: str, redis_url: str, kafka_url: str, tmp_path: Path, proxy_before: Proxies
) -> None:
    redis, kafka = await proxy_before(redis_url), await proxy_before(f"kafka://{kafka_url}")
    async with world_on(fresh_database, tmp_path, cache=redis.url, bus=kafka.url) as world:
        names = await source_and_target(world, agents=2)
        async with world.probed(names):
            await redis.shut()
            await kafka.shut()
            moved = [await world.move(name, "target") for name in names]
            await world.all_answer()
            await redis.open()
            await kafka.open()
            back = await world.move(names[0], "source")
            await world.all_answer()
        await world.check()
    assert {each.phase for each in [*moved, back]} == {"committed"}


async def test_of_two_coordinators_one_moves_the_agent(world: World) -> None:
    (name,) = await source_and_target(world)
    await world.node("other")
    async with world.probed([name]):
        for _ in range(3):
            owner = await world.owner(name)
            targets = [node for node in world.nodes if node != owner]
            told = await asyncio.gather(*(world.move(name, target) for target in targets), return_exceptions=True)
            done = [each for each in told if isinstance(each, Migration) and each.phase == "committed"]
            refused = [each for each in told if isinstance(each, AlreadyExists | Conflict)]
            aborted = [each for each in told if isinstance(each, Migration) and each.phase == "aborted"]
            assert len(done) + len(refused) + len(aborted) == len(targets), told
            assert len(done) >= 1
            assert await world.owner(name) in {each.target for each in done}
        await world.all_answer()
    await world.check()


async def test_what_cannot_be_is_refused_before_anything_begins(world: World) -> None:
    await asyncio.gather(world.node("source"), world.node("full", agents_max=1), world.node("dead"))
    (name,) = await world.place(["agent"], "source")
    await world.place(["its only one"], "full")
    world.nodes["dead"].process.send(signal.SIGTERM)
    async with asyncio.timeout(TIMEOUT_S):
        assert await world.nodes["dead"].process.ended() == 0
    async with world.probed([name], nodes=["source"]):
        for target, kind in (("source", InvalidInput), ("dead", NotServed), ("full", Overloaded), ("nobody", InvalidInput)):
            with pytest.raises(kind):
                await world.move(name, target)
    report = await world.check()
    assert (report.owners, await Ledger(world.engine.log.store).get(name)) == (1, None)


async def test_agents_that_go_to_and_fro_under_load_lose_and_double_nothing(world: World) -> None:
    nodes = ("source", "target")
    names = await source_and_target(world, agents=4)
    until = time.monotonic() + PING_PONG_S

    async def to_and_fro(name: AgentName) -> int:
        moves = 0
        while moves < MOVES or time.monotonic() < until:
            moved = await world.move(name, nodes[(moves + 1) % 2])
            assert moved.phase == "committed", moved.error
            moves += 1
        return moves

    async with world.probed(names, FAST):
        moves = await asyncio.gather(*(to_and_fro(name) for name in names))
        await world.all_answer()
    report = await world.check()
    assert report.owners >= len(names) + sum(moves)
