"""Everything at once, from two processes' worth of engines: no snapshot that counts ever lacks a chunk, and no read is ever wrong."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

import perdure
from perdure.client.engine import Engine
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.log.records import AgentName
from perdure.engine.replay import fold_log
from perdure.errors import Conflict
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader
from perdure.snapshots import sweep
from perdure.snapshots.retention import RetentionPolicy
from tests.fix_snapshot_engine import TENANT, Shelved
from tests.unit.fix_snapshots import small_chunks

NAMES = [AgentName(TENANT, f"a{number}") for number in range(3)]
ROUNDS = 25


class Storm:
    """What goes on at once until all have done their rounds."""

    def __init__(self, engines: list[Engine], random: Random) -> None:
        self.engines = engines
        self.random = random
        self.swept = 0
        self.making = 3

    def pick(self) -> tuple[Engine, AgentName]:
        return self.random.choice(self.engines), self.random.choice(NAMES)

    async def snapshot(self) -> None:
        """Of states that come back to what they were: their chunks were there before, and may be just about to be swept."""
        for _ in range(ROUNDS):
            engine, name = self.pick()
            rows = [{"n": n, "text": "x" * 60} for n in range(self.random.choice([0, 20, 40]))]
            await engine.log.append_events(name, [Event("set", changes=(perdure.set_value("/rows", rows),))])
            try:
                await engine.snapshots.create_snapshot(name, full=self.random.random() < 0.5)
            except Conflict:
                continue  # the other one made a newer one meanwhile
        self.making -= 1

    async def clean(self) -> None:
        while self.making:
            engine, _ = self.pick()
            for name in NAMES:
                await engine.upkeep.cleanup_old_states(name, RetentionPolicy(days=0))
            try:
                self.swept += (await engine.upkeep.sweep(grace_s=0.0)).gone
            except Conflict:
                continue  # the other one sweeps

    async def read(self) -> None:
        for _ in range(ROUNDS):
            engine, name = self.pick()
            log = engine.log
            reader = StateReader(log.store, MemoryCache(), log.vault, base=engine.snapshots.base)
            version = self.random.randint(0, await log.version(name))
            state = await reader.state_at_version(*name, version)
            folded = await fold_log(log.store, log.vault, await log.vault.record(*name), to_version=version)
            assert digest(state.document) == digest(folded.document)


@pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seed", [1, 2])
async def test_writers_readers_retention_and_sweeps_at_once(shelved: Shelved, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(sweep, "SWEEP_GRACE_MIN_S", 0.0)
    for name in NAMES:
        await shelved.talk(name.agent, 5)
    other = await shelved.fresh()
    try:
        storm = Storm([shelved.engine, other], Random(seed))
        with small_chunks():
            async with asyncio.TaskGroup() as group:
                for work in (*[storm.snapshot] * storm.making, storm.clean, storm.clean, storm.read):
                    group.create_task(work())
        assert storm.swept > 0
        assert sum(engine.snapshots.shelf.loader.status.damaged for engine in storm.engines) == 0
        report = await shelved.engine.verify()
        assert (report.ok, report.snapshots.marked) == (True, 0), report
        assert report.snapshots.snapshots >= len(NAMES)
    finally:
        await other.close()
