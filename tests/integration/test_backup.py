"""Backups: whole, incremental, proven; restored to a moment; damage is found, and nothing living is written over."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

import perdure
from perdure import Event, append, config, set_value
from perdure.client.backups import restore_backup
from perdure.client.engine import Engine
from perdure.engine import steps
from perdure.engine.log.records import AgentName
from perdure.errors import AlreadyExists, IntegrityError, InvalidInput, NotFound, PerdureError
from perdure.limits import INLINE_BYTES_MAX

NAMES = [AgentName(tenant, f"agent {number}") for tenant in ("a", "b") for number in range(6)]


class Place:
    """Where a test keeps its backups, its key, and logs under their names."""

    def __init__(self, folder: Path) -> None:
        self.backups = f"file://{folder}/backups"
        self.folder = folder
        self.keys = f"file://{folder}/root.key"

    def settings(self, log: str = "state") -> config.Settings:
        url = log if "://" in log else f"sqlite:///{self.folder}/{log}"
        return config.load({"log": url, "keys": self.keys, "bus": "memory://", "cache": "memory://", "store": f"file://{self.folder}/s"})

    @asynccontextmanager
    async def engine(self, log: str = "state") -> AsyncIterator[Engine]:
        async with perdure.open(settings=self.settings(log), partitions=3) as engine:
            yield engine

    def objects(self, folder: str = "") -> list[Path]:
        return sorted(path for path in (self.folder / "backups" / "backups" / folder).rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def write(engine: Engine, count: int, word: str = "word") -> None:
    for number in range(count):
        changes = (append("/said", f"{word} {number}"), set_value("/count", number))
        appends = [engine.agent(name.agent, tenant=name.tenant).append(Event("said", changes=changes)) for name in NAMES]
        await asyncio.gather(*appends)


async def contents(engine: Engine) -> dict[AgentName, list[tuple[UUID, int, bytes, object]]]:
    """Every event of every agent, with its place in history."""
    found = {}
    for name in NAMES:
        agent = engine.agent(name.agent, tenant=name.tenant)
        found[name] = [(event.id, event.version, event.chain, event.time) async for event in agent.events()]
    return found


async def test_a_restored_log_is_the_log_event_by_event_and_goes_on_in_a_new_generation(place: Place) -> None:
    async with place.engine() as engine:
        await write(engine, 5)
        first = await engine.backups.create(place.backups)
        big = {"text": "x" * (2 * INLINE_BYTES_MAX)}
        await engine.agent("agent 0", tenant="a").append(Event("large", changes=(set_value("/big", big),)))
        await write(engine, 3, "later")
        second = await engine.backups.create(place.backups)
        assert second.previous == first.id
        assert second.written_bytes < second.stored_bytes
        before = await contents(engine)
        states = {name: (await engine.agent(name.agent, tenant=name.tenant).state()).document for name in NAMES}
    done = await restore_backup(place.backups, place.settings("new"))
    assert (done.events, done.agents, done.generation) == (8 * len(NAMES) + 1, len(NAMES), 2)
    async with place.engine("new") as engine:
        assert await contents(engine) == before
        for name, document in states.items():
            assert (await engine.agent(name.agent, tenant=name.tenant).state()).document == document
        assert (await engine.verify()).ok
        assert engine.log.store.generation == 2
        await write(engine, 1, "in the new world")
        assert (await engine.verify()).ok


async def test_a_backup_of_postgres_is_restored_into_postgres_and_into_a_folder(place: Place, fresh_database: str) -> None:
    async with place.engine(fresh_database) as engine:
        await write(engine, 4)
        await engine.backups.create(place.backups)
        drilled = await engine.backups.drill(place.backups)
        assert (drilled.ok, drilled.compared) == (True, len(NAMES))
        assert (await engine.backups.freshness(place.backups)).unproven is False
        before = await contents(engine)
    await restore_backup(place.backups, place.settings("folder"))
    async with place.engine("folder") as engine:
        assert await contents(engine) == before
        await engine.backups.create(place.backups + "-of-the-folder")
    async with place.engine(fresh_database) as engine:
        with pytest.raises(AlreadyExists):
            await restore_backup(place.backups, place.settings(fresh_database))
        assert await contents(engine) == before


async def test_a_restore_to_a_moment_holds_what_the_log_held_then(place: Place) -> None:
    async with place.engine() as engine:
        await write(engine, 3)
        newest = max([event[3] for events in (await contents(engine)).values() for event in events])
        expected = await contents(engine)
        await asyncio.sleep(0.01)
        await write(engine, 3, "too late")
        await engine.backups.create(place.backups)
        with pytest.raises(InvalidInput):
            await restore_backup(place.backups, place.settings("future"), to_time=newest + timedelta(days=1))
    await restore_backup(place.backups, place.settings("then"), to_time=newest)  # type: ignore[arg-type]
    async with place.engine("then") as engine:
        assert await contents(engine) == expected
        assert (await engine.verify()).ok


async def test_whatever_is_changed_cut_or_missing_is_found_and_never_restored_as_whole(place: Place) -> None:
    async with place.engine() as engine:
        await write(engine, 4)
        await engine.backups.create(place.backups)
        assert (await engine.backups.verify(place.backups)).ok
        damaged = 0
        for path in place.objects("segments") + place.objects("base") + place.objects("keys"):
            content = path.read_bytes()
            path.chmod(0o600)
            for number, wrong in enumerate((content[:40] + bytes([content[40] ^ 1]) + content[41:], content[:-1], None)):
                path.unlink() if wrong is None else path.write_bytes(wrong)
                checked = await engine.backups.verify(place.backups)
                assert not checked.ok
                assert path.name in " ".join(checked.problems)
                with pytest.raises(PerdureError):
                    await engine.backups.drill(place.backups)
                target = place.settings(f"target-{damaged}-{number}")
                with pytest.raises(IntegrityError):
                    await restore_backup(place.backups, target)
                with pytest.raises(PerdureError):  # half a log does not open as a log, and where nothing was written there is nothing
                    async with perdure.open(settings=target, create=False) as half:
                        await half.agent("agent 0", tenant="a").state()
            path.write_bytes(content)
            damaged += 1
        assert damaged >= 4
        assert (await engine.backups.verify(place.backups)).ok
        assert (await engine.backups.freshness(place.backups)).unproven


async def test_an_object_in_another_place_does_not_open(place: Place) -> None:
    async with place.engine() as engine:
        await write(engine, 4)
        await engine.backups.create(place.backups)
        first, second = place.objects("segments")[:2]
        one, other = first.read_bytes(), second.read_bytes()
        for path, content in ((first, other), (second, one)):
            path.chmod(0o600)
            path.write_bytes(content)
        assert not (await engine.backups.verify(place.backups)).ok


@pytest.mark.parametrize("step", ["restore.agents", "restore.page", "restore.events", "restore.generation"])
async def test_an_interrupted_restore_is_no_log_until_it_was_gone_on_with(place: Place, step: str) -> None:
    async with place.engine() as engine:
        await write(engine, 4)
        await engine.backups.create(place.backups)
        before = await contents(engine)
    times = itertools.count()

    def fail(name: str) -> None:
        if name == step and next(times) == 0:
            raise OSError("the power was cut")

    steps.install(fail)
    try:
        with pytest.raises(OSError, match="power"):
            await restore_backup(place.backups, place.settings("new"))
    finally:
        steps.install(None)
    with pytest.raises(IntegrityError, match="being restored"):
        async with place.engine("new"):
            raise AssertionError("half a log was opened")
    assert (await restore_backup(place.backups, place.settings("new"))).resumed
    async with place.engine("new") as engine:
        assert await contents(engine) == before
        assert (await engine.verify()).ok


async def test_prune_keeps_what_the_kept_backups_need_and_the_newest_proven_one(place: Place) -> None:
    async with place.engine() as engine:
        ids = []
        for turn in range(5):
            await write(engine, 2, f"turn {turn}")
            ids.append((await engine.backups.create(place.backups)).id)
            if turn == 1:
                await engine.backups.drill(place.backups)
        would = await engine.backups.prune(place.backups, keep=2, dry_run=True)
        assert set(would.backups) == {ids[0], ids[2]}
        assert len(await engine.backups.list(place.backups)) == 5
        await engine.backups.prune(place.backups, keep=2)
        assert {each.id: each.proven for each in await engine.backups.list(place.backups)} == {ids[4]: False, ids[3]: False, ids[1]: True}
        for id in (ids[4], ids[3], ids[1]):
            assert (await engine.backups.verify(place.backups, id)).ok
        with pytest.raises(NotFound):
            await engine.backups.verify(place.backups, ids[0])


async def test_many_small_backups_do_not_become_many_objects_for_ever(place: Place) -> None:
    async with place.engine() as engine:
        for turn in range(40):
            await write(engine, 1, f"turn {turn}")
            manifest = await engine.backups.create(place.backups)
        assert max(sum(segment.partition == partition for segment in manifest.segments) for partition in range(3)) <= 18
        assert (await engine.backups.verify(place.backups)).ok
        fresh = await engine.backups.freshness(place.backups)
        assert (fresh.lag_events, fresh.alarm) == (0, False)


async def test_what_would_be_lost_is_told_in_events_and_seconds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.engine() as engine:
        await write(engine, 2)
        none = await engine.backups.freshness(place.backups)
        assert (none.newest, none.lag_s, none.lag_events, none.alarm) == ("", None, 2 * len(NAMES), False)
        assert none.rpo_s > 0
        await engine.backups.create(place.backups)
        fresh = await engine.backups.freshness(place.backups)
        assert (fresh.lag_events, fresh.rpo_s, fresh.alarm) == (0, 0.0, False)
        await write(engine, 1)
        # It is the age of the oldest event that counts, not that of a backup after which nothing was written for long.
        later = time.time() + 3_600
        monkeypatch.setattr(time, "time", lambda: later)
        old = await engine.backups.freshness(place.backups)
        assert (old.lag_events, old.alarm) == (len(NAMES), True)
        assert 3_500 < old.rpo_s <= 3_700
        monkeypatch.undo()
        await engine.backups.create(place.backups)
    async with place.engine("older") as engine:
        await write(engine, 1)
        behind = await engine.backups.freshness(place.backups)
        assert (behind.ahead_events, behind.alarm) == (2 * len(NAMES), True)
