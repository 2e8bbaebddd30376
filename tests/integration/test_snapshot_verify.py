"""`verify` reads every snapshot with the independent checker and compares it with the log."""

from __future__ import annotations

import pytest

from perdure.engine.log.records import AgentName
from perdure.errors import Unavailable
from tests.fix_snapshot_engine import TENANT, Shelved

EMBEDDED = pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
"""What has nothing to do with the log is tried on one of them."""


async def filled(shelved: Shelved) -> None:
    for agent, codec in (("a", "zstd"), ("b", "lz4"), ("c", "none")):
        for number in range(3):
            await shelved.talk(agent, 15, start=15 * number, padding="x" * 100)
            await shelved.snapshot(agent, codec=codec)
        await shelved.snapshots.create_checkpoint(AgentName(TENANT, agent), version=7)
    await shelved.talk("d", 5)


async def test_everything_holds_and_is_counted(shelved: Shelved) -> None:
    await filled(shelved)
    report = await shelved.engine.verify()
    assert report.ok
    assert (report.snapshots.snapshots, report.snapshots.replayed, report.snapshots.marked) == (12, 12, 0)
    assert report.snapshots.bytes > 0


async def test_a_rotated_key_and_trained_dictionaries_are_known_to_the_checker(shelved: Shelved) -> None:
    await shelved.talk("a", 20)
    await shelved.snapshot("a")
    await shelved.engine.log.vault.ring.rotate_tenant_key(TENANT)
    await shelved.talk("a", 20, start=20)
    await shelved.snapshot("a")
    other = await shelved.fresh()
    try:
        report = await other.verify()
        assert (report.ok, report.snapshots.snapshots) == (True, 2)
    finally:
        await other.close()


@EMBEDDED
@pytest.mark.parametrize("which", [0, -1])
async def test_what_is_damaged_is_told_once_and_marked(shelved: Shelved, which: int) -> None:
    await filled(shelved)
    damaged = (await shelved.snapshots.list_snapshots(AgentName(TENANT, "b")))[0]
    await shelved.damage(damaged, which=which)
    report = await shelved.engine.verify()
    assert not report.ok
    assert report.log.ok
    assert any(f"{TENANT}/b snapshot {damaged.id} at version 45" in problem for problem in report.snapshots.problems)
    assert report.snapshots.replayed == 12 - report.snapshots.problem_count
    again = await shelved.engine.verify()
    assert (again.ok, again.snapshots.marked) == (True, report.snapshots.problem_count)


@EMBEDDED
async def test_a_store_that_is_away_is_no_verdict(shelved: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    await shelved.talk("a", 5)
    made = await shelved.snapshot("a")

    async def away(*_: object, **__: object) -> bytes:
        raise Unavailable("the store does not answer")

    monkeypatch.setattr(shelved.snapshots.shelf.contents.objects, "get", away)
    with pytest.raises(Unavailable):
        await shelved.engine.verify()
    assert (await shelved.snapshots.get_snapshot(TENANT, made.id)).damage == ""
