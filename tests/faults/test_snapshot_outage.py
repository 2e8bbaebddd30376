"""The service that keeps snapshots is killed: while one is written, and while states are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import perdure
from perdure import config, services
from perdure.engine import steps
from perdure.engine.digest import digest
from perdure.engine.log.records import AgentName
from perdure.engine.replay import fold_log
from perdure.errors import Unavailable
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader
from perdure.services.model import S3_CREDENTIALS
from tests.fix_services import PrivateServices
from tests.fix_snapshot_engine import TENANT, Shelved

NAME = AgentName(TENANT, "a")
READ_S = 60.0
"""What a read may take while the store is away, on a machine that is busy with much else."""


@pytest.fixture(scope="module")
def private(private_services: Callable[..., PrivateServices]) -> PrivateServices:
    return private_services("s3")


@pytest.fixture
async def on_s3(private: PrivateServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shelved]:
    for key, value in S3_CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    assert private.services.s3 is not None
    urls = {"log": f"sqlite:///{tmp_path}/log", "keys": f"file://{tmp_path}/root.key", "store": private.services.s3.url}
    settings = config.load({**urls, "training": "off"}, {})
    async with perdure.open(settings=settings, partitions=2) as engine:
        yield Shelved(engine, settings, tmp_path)


async def reads_go_on(shelved: Shelved) -> None:
    log = shelved.engine.log
    reader = StateReader(log.store, MemoryCache(), log.vault, base=shelved.snapshots.base)
    async with asyncio.timeout(READ_S):
        state = await reader.state(*NAME)
    folded = await fold_log(log.store, log.vault, await log.vault.record(*NAME))
    assert (state.version, digest(state.document)) == (folded.version, digest(folded.document))


async def make_until_it_fails(shelved: Shelved) -> None:
    """A service may be faster than its killer."""
    for number in range(20):
        await shelved.snapshots.create_snapshot(NAME, full=True)
        await shelved.talk("a", 1, start=600 + number)


async def test_a_killed_service_holds_up_snapshots_and_nothing_else(on_s3: Shelved, private: PrivateServices) -> None:
    await on_s3.talk("a", 200, padding="x" * 1_500)
    first = await on_s3.snapshot("a", full=True)
    await on_s3.talk("a", 400, start=200, padding="y" * 1_500)
    loop = asyncio.get_running_loop()
    killed: list[asyncio.Future[object]] = []

    def kill(step: str) -> None:
        if step == "snapshot.chunk_verified" and not killed:
            killed.append(loop.run_in_executor(None, lambda: services.stop("s3", private.root, how="kill")))

    steps.install(kill)
    try:
        with pytest.raises(Unavailable):
            await make_until_it_fails(on_s3)
    finally:
        steps.install(None)
    await asyncio.gather(*killed)
    await reads_go_on(on_s3)
    await on_s3.talk("a", 5, start=700)
    await reads_go_on(on_s3)
    assert not any(each.damage for each in await on_s3.snapshots.list_snapshots(NAME))
    with pytest.raises(Unavailable):
        await on_s3.snapshots.verify_snapshot(TENANT, first.id)
    await asyncio.to_thread(services.start, "s3", private.root)
    made = await on_s3.snapshots.create_snapshot(NAME)
    assert not made.already
    assert (await on_s3.snapshots.verify_snapshot(TENANT, made.snapshot.id, replay=True)).ok
