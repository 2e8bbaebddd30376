"""Forks by reference: whatever is forked from whatever, a fork is the fold of the prefix and then its own, and its parent stays as it was."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import perdure
import perdure.sync
from perdure import ANY, NO_STREAM, Event, append, config, set_value
from perdure.client.backups import restore_backup
from perdure.client.engine import Engine
from perdure.client.repair import repair
from perdure.engine import steps
from perdure.engine.digest import digest
from perdure.engine.fold import apply
from perdure.engine.log.records import AgentName
from perdure.errors import AgentNotFound, AlreadyExists, Compacted, Conflict, IntegrityError, SchemaViolation, VersionNotFound
from perdure.snapshots.order import SnapshotOrder

TENANT = "t"


def settings(folder: Path, log: str = "state") -> config.Settings:
    urls = {
        "log": log if "://" in log else f"sqlite:///{folder}/{log}",
        "keys": f"file://{folder}/root.key",
        "store": f"file://{folder}/snapshots",
    }
    return config.load({**urls, "bus": "memory://", "cache": "memory://"})


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with perdure.open(settings=settings(tmp_path), partitions=4) as engine:
        yield engine


def named(agent: str) -> AgentName:
    return AgentName(TENANT, agent)


async def say(engine: Engine, agent: str, *words: str) -> None:
    await engine.agent(agent, tenant=TENANT).append([Event("said", changes=(append("/said", word),)) for word in words])


async def document(engine: Engine, agent: str, version: int | None = None) -> dict[str, Any]:
    return dict((await engine.agent(agent, tenant=TENANT).state(at_version=version)).document)


async def history(engine: Engine, agent: str) -> list[Any]:
    return [event async for event in engine.agent(agent, tenant=TENANT).events()]


class Model:
    """What each agent's history must be, kept by hand."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.histories: dict[str, list[Any]] = {"root": []}
        self.parents: dict[str, tuple[str, int]] = {}

    def any_agent(self) -> str:
        return self.chance.choice(list(self.histories))

    def document(self, agent: str, version: int) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for event in self.histories[agent][:version]:
            document, _ = apply(document, event.changes)
        return document

    def event(self) -> Event:
        cell, value = self.chance.randrange(5), self.chance.randrange(1_000)
        change = self.chance.choice([append(f"/lists/{cell}", value), set_value(f"/values/{cell}", value)])
        return Event("changed", changes=(change,))

    async def step(self, engine: Engine) -> None:
        agent = self.any_agent()
        if self.chance.random() < 0.6 or not self.histories["root"]:
            events = [self.event() for _ in range(self.chance.randrange(1, 4))]
            await engine.agent(agent, tenant=TENANT).append(events, expected=len(self.histories[agent]) or ANY)
            self.histories[agent] += events
            return
        version = self.chance.randrange(len(self.histories[agent]) + 1)
        new = f"fork {len(self.histories)}"
        forked = await engine.recovery.fork(named(agent), new, version=version)
        assert (forked.target, forked.version, forked.appended) == (new, version, version + 1)
        self.histories[new] = [*self.histories[agent][:version], Event("forked")]
        self.parents[new] = (agent, version)


async def agrees(engine: Engine, model: Model) -> None:
    """All histories, states at versions, lists of forks and origins are the model's."""
    for agent, events in model.histories.items():
        told = await history(engine, agent)
        assert [event.version for event in told] == list(range(1, len(events) + 1))
        assert [event.changes for event in told] == [event.changes for event in events]
        assert await document(engine, agent) == model.document(agent, len(events))
        for version in {0, len(events) // 2, model.parents.get(agent, ("", 0))[1], len(events)}:
            assert await document(engine, agent, version) == model.document(agent, version)
        forks = {fork.agent: fork.version for fork in await engine.recovery.forks(named(agent))}
        assert forks == {fork: version for fork, (parent, version) in model.parents.items() if parent == agent}
        origin = await engine.recovery.origin(named(agent))
        assert (origin and (origin.agent, origin.version)) == model.parents.get(agent)


@pytest.mark.parametrize("seed", range(3))
async def test_random_forks_of_random_histories_are_prefixes_that_go_their_own_way(engine: Engine, tmp_path: Path, seed: int) -> None:
    model = Model(seed)
    for _ in range(45):
        await model.step(engine)
    await engine.run(until_drained=True)
    await agrees(engine, model)
    assert (await engine.verify()).ok
    await engine.backups.create(f"file://{tmp_path}/backups")
    assert (await engine.backups.verify(f"file://{tmp_path}/backups")).ok
    await restore_backup(f"file://{tmp_path}/backups", settings(tmp_path, "restored"))
    async with perdure.open(settings=settings(tmp_path, "restored"), create=False) as restored:
        await agrees(restored, model)
        assert (await restored.verify()).ok
        await model.step(restored)
        await agrees(restored, model)


async def test_every_version_of_a_history_can_be_forked_and_the_parent_stays_as_it_was(engine: Engine) -> None:
    await say(engine, "a", *(f"word {number}" for number in range(9)))
    before = [(event.id, event.chain) for event in await history(engine, "a")]
    for version in range(10):
        forked = await engine.recovery.fork(named("a"), f"fork {version}", version=version, actor="ana", reason="what if")
        said = [f"word {number}" for number in range(version)]
        assert (await document(engine, forked.target)).get("said", []) == said
        await say(engine, forked.target, "other")
        assert await document(engine, forked.target) == {"said": [*said, "other"]}
        *past, first, _ = await history(engine, forked.target)
        assert [event.id for event in past] == [id for id, _ in before[:version]]
        assert (first.type, first.actor, first.changes, first.data["from"]["version"]) == ("forked", "ana", (), version)
        assert first.causation_id == (past[-1].id if past else None)
    assert [(event.id, event.chain) for event in await history(engine, "a")] == before
    assert {(fork.version, fork.actor, fork.reason) for fork in await engine.recovery.forks(named("a"))} == {
        (version, "ana", "what if") for version in range(10)
    }
    for problem, version in ((VersionNotFound, 10), (VersionNotFound, -1)):
        with pytest.raises(problem):
            await engine.recovery.fork(named("a"), "never", version=version)
    with pytest.raises(AlreadyExists):
        await engine.recovery.fork(named("a"), "fork 3", version=3)


async def test_moments_ids_and_expectations_go_over_the_border(engine: Engine) -> None:
    await say(engine, "a", "one", "two")
    await say(engine, "a", "three")
    await engine.recovery.fork(named("a"), "b", version=2)
    told = await history(engine, "b")
    assert (await engine.recovery.replay_to(named("b"), time=told[2].time)).version == 3
    assert (await engine.recovery.replay_to(named("b"), time=told[2].time - timedelta(microseconds=1))).version == 2
    with pytest.raises(VersionNotFound):
        await engine.recovery.replay_to(named("b"), time=told[0].time - timedelta(microseconds=1))
    # What the shared past holds is there; what the parent appended after it is not.
    third = (await history(engine, "a"))[2]
    agent = engine.agent("b", tenant=TENANT)
    again = await agent.append([Event("said", changes=told[0].changes, id=told[0].id)], expected=NO_STREAM)
    assert (again.already, again.versions) == (True, (1,))
    new = await agent.append([Event("said", changes=third.changes, id=third.id)])
    assert (new.already, new.versions) == (False, (4,))
    with pytest.raises(Conflict):
        await agent.append([Event("said")], expected=NO_STREAM)
    with pytest.raises(Conflict):
        await agent.append([Event("said")], expected=2)
    assert (await engine.log.get_event(named("b"), told[1].id)).version == 2
    assert await document(engine, "b") == {"said": ["one", "two", "three"]}


async def test_a_fork_of_what_was_just_written_takes_the_short_way_and_ids_of_its_past_are_found(
    fresh_database: str, tmp_path: Path
) -> None:
    """The event that a fork begins with is made for it, so its id is not looked for, and it goes in at once; those that callers bring are found."""
    reached: list[str] = []
    async with perdure.open(settings=settings(tmp_path, log=fresh_database), partitions=4) as engine:
        await say(engine, "a", "one", "two", "three")
        steps.install(reached.append)
        try:
            await engine.recovery.fork(named("a"), "b", version=2)
            assert reached.count("append.after") == 1
            assert "append.locked" not in reached
            shared = (await history(engine, "b"))[1]
            again = await engine.agent("b", tenant=TENANT).append([Event("said", changes=shared.changes, id=shared.id)])
            assert (again.already, again.versions) == (True, (2,))
        finally:
            steps.install(None)


async def test_a_fork_has_what_waits_on_the_fast_path_and_asks_no_schema(engine: Engine) -> None:
    engine.fidelity.fast("worker", critical=["done"], events_max=50, age_max_s=3_000.0)
    await engine.agent("a", tenant=TENANT, type="worker").append([Event("said", changes=(append("/said", "waits"),))])
    assert (await engine.recovery.fork(named("a"), "b")).appended == 2
    assert await document(engine, "b") == {"said": ["waits"]}
    await engine.schemas.publish("worker", {"type": "object", "required": ["never"]})
    assert (await engine.recovery.fork(named("a"), "c")).appended == 2
    with pytest.raises(SchemaViolation):
        await engine.agent("c", tenant=TENANT).append([Event("done", changes=(append("/said", "more"),))], expected=2)


async def test_a_fork_goes_on_from_its_parents_snapshot_and_seals_its_own_anew(engine: Engine, tmp_path: Path) -> None:
    await say(engine, "a", *(f"word {number}" for number in range(30)))
    made = await engine.snapshots.create_snapshot(named("a"))
    await engine.recovery.fork(named("a"), "b")
    await say(engine, "b", "own")
    async with perdure.open(settings=settings(tmp_path)) as other:
        assert len((await document(other, "b"))["said"]) == 31
        assert other.snapshots.shelf.loader.status.loads == 1
        snapshot = await other.snapshots.create_snapshot(named("b"))
        assert (snapshot.snapshot.version, snapshot.snapshot.kind) == (32, "full")
        assert (await other.snapshots.verify_snapshot(TENANT, snapshot.snapshot.id, replay=True)).ok
        shared = await other.snapshots.shelf.writer.create(named("b"), SnapshotOrder(kind="checkpoint"), at_version=12)
        assert (await other.snapshots.verify_snapshot(TENANT, shared.row.id, replay=True)).ok
        assert [each.version for each in await other.snapshots.list_snapshots(named("a"))] == [made.snapshot.version]
        assert (await other.verify()).ok


async def test_compaction_stops_at_what_a_fork_needs_and_goes_on_when_it_has_its_own(engine: Engine) -> None:
    await say(engine, "a", *(f"word {number}" for number in range(40)))
    await engine.recovery.fork(named("a"), "b", version=20)
    right = {version: digest(await document(engine, "b", version)) for version in range(15, 22)}
    done = await engine.upkeep.compact_events(named("a"), keep_last=10)
    assert (done.first_version, done.limited_by) == (20, "a fork or a restore")
    assert {version: digest(await document(engine, "b", version)) for version in range(19, 22)} == {v: right[v] for v in range(19, 22)}
    with pytest.raises(Compacted):
        await document(engine, "b", 15)
    assert (await engine.upkeep.compact_events(named("b"), keep_last=1)).events == 0
    assert (await engine.verify()).ok
    await say(engine, "b", *(f"own {number}" for number in range(10)))
    right = {version: digest(await document(engine, "b", version)) for version in range(25, 32)}
    done = await engine.upkeep.compact_events(named("b"), keep_last=6)
    assert (done.first_version, done.removed) == (26, 5)
    for word in ("one", "two", "three"):
        await say(engine, "a", word)
        await engine.snapshots.create_snapshot(named("a"))
    assert (await engine.upkeep.compact_events(named("a"), keep_last=10)).first_version == 34
    assert {version: digest(await document(engine, "b", version)) for version in range(25, 32)} == right
    # From a version whose event is gone, and that a snapshot still has, a fork begins with the whole state.
    copied = await engine.recovery.fork(named("b"), "c", version=25)
    assert (copied.appended, digest(await document(engine, "c"))) == (1, right[25])
    assert (await engine.verify()).ok


async def test_a_damaged_event_of_the_shared_past_is_found_for_parent_and_fork_and_mended_once(engine: Engine, tmp_path: Path) -> None:
    await say(engine, "a", "one", "two", "three")
    await engine.recovery.fork(named("a"), "b", version=2)
    await say(engine, "b", "own")
    await engine.backups.create(f"file://{tmp_path}/backups")
    with sqlite3.connect(tmp_path / "state" / "log.db") as damaged:
        damaged.execute("DROP TRIGGER events_are_never_changed")
        damaged.execute("UPDATE events SET payload = CAST(payload || 'x' AS BLOB) WHERE version = 2")
    damaged.close()
    report = await engine.verify()
    assert {problem.split(" version")[0] for problem in report.log.problems} == {"t/a", "t/b"}
    with pytest.raises(IntegrityError):
        await document(engine, "b", 3)
    given_up = await repair(engine, dry_run=True)
    assert [line.split(":")[0] for line in given_up.unresolved] == ["t/a", "t/b"]
    done = await repair(engine, backups=f"file://{tmp_path}/backups")
    assert [(action.what, action.agent) for action in done.actions if action.what == "event"] == [("event", "a")]
    assert (await engine.verify()).ok
    assert await document(engine, "b") == {"said": ["one", "two", "own"]}


async def test_a_restore_to_a_moment_has_the_forks_of_that_moment(engine: Engine, tmp_path: Path) -> None:
    await say(engine, "a", "one", "two")
    await engine.recovery.fork(named("a"), "b")
    await engine.recovery.fork(named("b"), "c", version=1)
    moment = (await history(engine, "c"))[-1].time
    await asyncio.sleep(0.001)
    await say(engine, "a", "three")
    await engine.recovery.fork(named("a"), "later")
    await engine.recovery.fork(named("later"), "much later", version=2)
    await engine.snapshots.create_snapshot(named("later"))
    await engine.backups.create(f"file://{tmp_path}/backups")
    assert (await engine.backups.drill(f"file://{tmp_path}/backups")).ok
    await restore_backup(f"file://{tmp_path}/backups", settings(tmp_path, "restored"), to_time=moment)
    async with perdure.open(settings=settings(tmp_path, "restored"), create=False) as restored:
        assert [await document(restored, agent) for agent in "abc"] == [
            {"said": ["one", "two"]},
            {"said": ["one", "two"]},
            {"said": ["one"]},
        ]
        assert [event.type for event in await history(restored, "c")] == ["said", "forked"]
        with pytest.raises(AgentNotFound):
            await document(restored, "later")
        assert (await restored.verify()).ok


async def test_a_fork_from_what_a_backup_does_not_have_is_not_in_it(engine: Engine, tmp_path: Path) -> None:
    """It is made, of an event that is younger, after the backup has noted where the log stands."""
    await say(engine, "a", "one")
    before = settings(tmp_path)

    def meanwhile(step: str) -> None:
        if step == "backup.segments":
            with perdure.sync.open(settings=before) as other:
                other.agent("a", tenant=TENANT).append(Event("said", changes=(append("/said", "two"),)))
                other.recovery.fork(named("a"), "young")
                other.recovery.fork(named("a"), "old", version=1)

    steps.install(meanwhile)
    try:
        await engine.backups.create(f"file://{tmp_path}/backups")
    finally:
        steps.install(None)
    assert (await engine.backups.verify(f"file://{tmp_path}/backups")).ok
    await restore_backup(f"file://{tmp_path}/backups", settings(tmp_path, "restored"))
    async with perdure.open(settings=settings(tmp_path, "restored"), create=False) as restored:
        with pytest.raises(AgentNotFound):
            await document(restored, "young")
        assert await document(restored, "old") == {"said": ["one"]}
        assert (await restored.verify()).ok
        assert (await restored.recovery.fork(named("a"), "old", version=1)).appended == 2
