"""Failures of one agent: seen, planned for, recovered from, and told in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psycopg
import pytest

import perdure
from perdure import Event, append, config
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.errors import AgentNotFound, Conflict, InvalidInput, NotFound, PerdureError
from perdure.projections.quarantine import Quarantine
from perdure.recovery.commands import Command
from perdure.recovery.handlers import talk

NAME = AgentName("t", "a")
WORDS = [f"word {number}" for number in range(6)]


@pytest.fixture
def settings(fresh_database: str, tmp_path: Path) -> config.Settings:
    flags = {"log": fresh_database, "keys": f"file://{tmp_path}/root.key", "bus": "memory://", "cache": "memory://"}
    return config.load({**flags, "store": f"file://{tmp_path}/snapshots"})


@pytest.fixture
async def engine(settings: config.Settings) -> AsyncIterator[Engine]:
    async with perdure.open(settings=settings, partitions=2) as engine:
        for word in WORDS:
            await engine.agent(NAME.agent, tenant=NAME.tenant).append(Event("said", changes=(append("/said", word),)))
        yield engine


async def kinds(engine: Engine) -> list[str]:
    return [failure.kind for failure in (await engine.recovery.analyze_failure(NAME)).failures]


async def recovered(engine: Engine) -> str:
    """Plan, execute, and find it well afterwards; the strategy."""
    plan = await engine.recovery.plan_recovery(NAME)
    result = await engine.recovery.execute_recovery(plan)
    assert result.done
    told = [entry.type for entry in await engine.recovery.monitor_recovery(plan.id)]
    assert told == ["recovery_completed", "recovery_started"]
    return result.strategy


async def test_a_healthy_agent_needs_nothing(engine: Engine) -> None:
    assert await engine.recovery.detect_agent_failure(NAME) is None
    assert await kinds(engine) == []
    assert await recovered(engine) == "none"
    with pytest.raises(AgentNotFound):
        await engine.recovery.analyze_failure(AgentName("t", "nobody"))
    with pytest.raises(NotFound):
        await engine.recovery.monitor_recovery("nothing")


async def test_an_agent_of_a_lost_node_is_moved_to_one_that_lives_or_set_free(engine: Engine, settings: config.Settings) -> None:
    async with perdure.open(settings=settings) as other:
        lost = other.recovery.host("lost", talk, lease_s=0.5)
        await lost.start()
        await lost.command(NAME, Command({"say": "before"}))
        assert lost._lease is not None
        lost._lease._task.cancel()  # it stands still
        async with asyncio.timeout(60):
            while await engine.recovery.detect_agent_failure(NAME) is None:
                await engine.log.store.signal().wait(0.05)
        assert await kinds(engine) == ["node_lost"]
        plan = await engine.recovery.plan_recovery(NAME)
        assert plan.strategy == "restart"
        async with engine.recovery.host("north", talk) as north:
            with pytest.raises(Conflict, match="not as it was"):
                await engine.recovery.execute_recovery(
                    msgspec.structs.replace(plan, report=msgspec.structs.replace(plan.report, owner="somebody"))
                )
            assert await recovered(engine) == "migrate"
            await north.command(NAME, Command({"say": "after"}))
            assert await kinds(engine) == []
        await lost.stop()


async def test_an_agent_that_stands_still_goes_on(engine: Engine) -> None:
    await Quarantine(engine.log.store).put(*NAME, 3, ValueError("poison"))
    assert await kinds(engine) == ["poisoned"]
    assert await recovered(engine) == "restore"
    assert await engine.quarantine.list("t") == []
    assert (await engine.agent(NAME.agent, tenant="t").state()).document == {"said": WORDS}


async def test_down_the_ladder_every_step_is_told_and_the_state_is_right(engine: Engine, tmp_path: Path) -> None:
    states = []
    state = await engine.recovery.recover_agent_state(NAME)
    states.append((state.source, len(state.steps_down)))
    await engine.agent(NAME.agent, tenant="t").state()
    await engine.snapshots.create_snapshot(NAME)
    state = await engine.recovery.recover_agent_state(NAME)
    states.append((state.source, len(state.steps_down)))
    await engine.cache.remove([NAME])
    state = await engine.recovery.recover_agent_state(NAME)
    states.append((state.source, len(state.steps_down)))
    assert (await engine.recovery.validate_recovered_state(state)).ok
    for path in (tmp_path / "snapshots").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"damaged")
    state = await engine.recovery.recover_agent_state(NAME)
    states.append((state.source, len(state.steps_down)))
    assert states == [("log", 2), ("cache", 0), ("snapshot", 1), ("log", 3)]
    assert state.document == {"said": WORDS}
    wrong = {"said": ["something else"]}
    assert not (await engine.recovery.validate_recovered_state(msgspec.structs.replace(state, document=wrong))).ok


async def test_a_damaged_snapshot_is_replaced(engine: Engine, tmp_path: Path) -> None:
    made = await engine.snapshots.create_snapshot(NAME)
    for path in (tmp_path / "snapshots").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"damaged")
    assert not (await engine.snapshots.verify_snapshot("t", made.snapshot.id)).ok
    assert await kinds(engine) == ["snapshot_damaged"]
    assert await recovered(engine) == "restore"
    assert await kinds(engine) == []


async def test_an_agent_with_a_damaged_log_goes_on_from_its_newest_sound_snapshot(engine: Engine, settings: config.Settings) -> None:
    await engine.snapshots.create_snapshot(NAME)
    await engine.agent(NAME.agent, tenant="t").append(Event("said", changes=(append("/said", "more"),)))
    async with await psycopg.AsyncConnection.connect(str(settings.log.value), autocommit=True) as connection:
        await connection.execute("UPDATE perdure.events SET payload = 'xx' WHERE version = 7")
    assert "log_damaged" in await kinds(engine)
    plan = await engine.recovery.plan_recovery(NAME)
    result = await engine.recovery.execute_recovery(plan)
    assert result.strategy == "recreate"
    assert (await engine.agent(result.to, tenant="t").state()).document == {"said": WORDS}
    with pytest.raises(PerdureError):
        await engine.agent(NAME.agent, tenant="t").state(at_version=7)


async def test_policies_are_kept_and_bad_ones_refused(engine: Engine) -> None:
    assert (await engine.recovery.auto_recovery(NAME)).enabled
    assert not (await engine.recovery.disable_auto_recovery(NAME)).enabled
    assert not (await engine.recovery.auto_recovery(NAME)).enabled
    assert (await engine.recovery.enable_auto_recovery(NAME, retries=2, backoff_s=0.5)).retries == 2
    with pytest.raises(InvalidInput):
        await engine.recovery.enable_auto_recovery(NAME, retries=-1)
    with pytest.raises(AgentNotFound):
        await engine.recovery.disable_auto_recovery(AgentName("t", "nobody"))
