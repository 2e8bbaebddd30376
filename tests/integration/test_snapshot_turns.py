"""Writers of snapshots and the sweep are never at work at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from perdure.engine.log.contract import LogStore
from perdure.engine.log.sqlite import SqliteStore
from perdure.errors import Conflict, Unavailable
from perdure.snapshots import turns as module
from perdure.snapshots.turns import WRITING, Turns

WAIT_S = 60.0


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LogStore]:
    opened = await SqliteStore.open(tmp_path, partitions=1)
    yield opened
    await opened.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Log:
    """Who is at work."""

    def __init__(self) -> None:
        self.at_work: list[str] = []
        self.worst: list[set[str]] = []

    async def work(self, turns: Turns, kind: str, leave: asyncio.Event) -> None:
        async with turns.writing() if kind == "write" else turns.sweeping() as turn:
            self.at_work.append(kind)
            self.worst.append(set(self.at_work))
            await leave.wait()
            assert not turn.lost
            self.at_work.remove(kind)


async def test_the_sweep_waits_for_writers_and_writers_for_the_sweep(store: LogStore) -> None:
    log, first, second, sweeper = Log(), Turns(store), Turns(store), Turns(store)
    leave = {name: asyncio.Event() for name in ("first", "second", "sweep", "late", "later")}
    async with asyncio.TaskGroup() as group:
        group.create_task(log.work(first, "write", leave["first"]))
        group.create_task(log.work(second, "write", leave["second"]))
        await until(lambda: log.at_work == ["write", "write"])
        sweep = group.create_task(log.work(sweeper, "sweep", leave["sweep"]))
        async with asyncio.timeout(WAIT_S):
            while not await store.list_leases(module.SWEEPING):
                await asyncio.sleep(0.005)
        # Who comes now waits for the sweep, in a process that is writing as in one that is not.
        late = group.create_task(log.work(first, "write", leave["late"]))
        later = group.create_task(log.work(sweeper, "write", leave["later"]))
        leave["first"].set()
        leave["second"].set()
        await until(lambda: log.at_work == ["sweep"])
        assert not late.done()
        leave["sweep"].set()
        await sweep
        await until(lambda: log.at_work == ["write", "write"])
        leave["late"].set()
        leave["later"].set()
        await asyncio.gather(late, later)
    assert all(len(kinds) == 1 for kinds in log.worst)
    assert await store.list_leases("snapshots/") == []


async def test_one_sweeps(store: LogStore) -> None:
    async with Turns(store).sweeping():
        with pytest.raises(Conflict):
            async with Turns(store).sweeping():
                raise AssertionError("two sweep at once")


async def test_waiting_ends(store: LogStore) -> None:
    async with Turns(store).writing():
        with pytest.raises(Unavailable, match="being written"):
            async with Turns(store, wait_s=0.05).sweeping():
                raise AssertionError("a sweep beside a writer")
    async with Turns(store).sweeping():
        with pytest.raises(Unavailable, match="swept"):
            async with Turns(store, wait_s=0.05).writing():
                raise AssertionError("a writer beside the sweep")
    async with Turns(store, wait_s=0.05).writing() as turn:
        assert not turn.lost


async def test_a_process_that_died_holds_the_sweep_up_for_one_lease(store: LogStore) -> None:
    assert await store.acquire_lease(f"{WRITING}0", "dead", 0.3) is not None
    async with Turns(store).writing() as turn:  # takes another number
        assert not turn.lost
    async with Turns(store).sweeping():
        assert await store.list_leases(WRITING) == []


async def test_a_process_that_stood_still_knows(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_S", 0.2)
    turns = Turns(store)
    async with turns.writing() as turn:
        for _ in range(8):  # renewed as long as it runs
            await asyncio.sleep(0.05)
        assert not turn.lost
        held = store.acquire_lease

        async def stalled(*args: object) -> None:
            await asyncio.Event().wait()

        store.acquire_lease = stalled
        await until(lambda: turn.lost)
        store.acquire_lease = held
        async with turns.sweeping():
            assert turn.lost
    async with turns.writing() as again:
        assert not again.lost
