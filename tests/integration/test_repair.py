"""Planted damage: verify finds it, repair mends it from a copy that fits, and what nothing fits for is quarantined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

import perdure
from perdure import Event, append, config, set_value
from perdure.client.engine import Engine
from perdure.client.repair import repair
from perdure.engine.log.records import AgentName
from perdure.errors import PerdureError

EVENTS = 6


@pytest.fixture
async def engine(fresh_database: str, kafka_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine on real servers, with events that were published and projected."""
    flags = {"log": fresh_database, "bus": f"kafka://{kafka_url}?topic=repair-{uuid4().hex}", "cache": redis_url}
    flags |= {"keys": f"file://{tmp_path}/root.key", "store": f"file://{tmp_path}/snapshots"}
    async with perdure.open(settings=config.load(flags), partitions=2) as engine:
        for number in range(EVENTS):
            event = [Event("said", changes=(append("/said", f"word {number}"), set_value("/n", number))) for _ in range(4)]
            await asyncio.gather(*(engine.agent(f"agent {n}", tenant=TENANT).append(e) for n, e in enumerate(event)))
        await engine.run(until_drained=True)
        assert (await engine.verify()).ok
        yield engine


TENANT = f"repair-{uuid4().hex}"
DAMAGES = {
    "payload": "UPDATE events SET payload = payload || 'x' WHERE version = 3",
    "first payload": "UPDATE events SET payload = 'xx' WHERE version = 1",
    "last payload": f"UPDATE events SET payload = 'xx' WHERE version = {EVENTS}",
    "chain": "UPDATE events SET chain = sha256(chain) WHERE version = 4",
    "type": "UPDATE events SET type = 'other' WHERE version = 2",
    "time": "UPDATE events SET time_us = time_us - 1 WHERE version = 3",
    "deleted": "DELETE FROM events WHERE version = 3",
    "two in a row": "UPDATE events SET payload = 'xx' WHERE version IN (3, 4)",
}


async def damage(engine: Engine, sql: str) -> None:
    """By hand, to one agent."""
    record = await engine.log.vault.record(TENANT, "agent 1")
    async with await psycopg.AsyncConnection.connect(str(engine.settings.log.value), autocommit=True) as connection:
        await connection.execute("SET search_path = perdure, public")
        await connection.execute(f"{sql} AND agent_key = {record.agent_key}".encode())


async def whole(engine: Engine) -> bool:
    report = await engine.verify()
    state = await engine.agent("agent 1", tenant=TENANT).state(at_version=EVENTS)
    return report.ok and state.document == {"said": [f"word {number}" for number in range(EVENTS)], "n": EVENTS - 1}


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_row_that_was_altered_by_hand_is_mended_from_the_topic(engine: Engine, name: str) -> None:
    await damage(engine, DAMAGES[name])
    assert not (await engine.verify()).ok
    planned = await repair(engine, dry_run=True)
    # It never advises to take away the topic that has the good copy.
    assert planned.ok, planned
    assert {action.what for action in planned.actions} == {"event"}
    assert not (await engine.verify()).ok, "a dry run changed something"
    done = await repair(engine)
    assert done.ok, done
    assert {action.source for action in done.actions if action.what == "event"} == {"topic"}
    assert [action for action in done.actions if action.what == "event"] == planned.actions
    assert await whole(engine)
    assert (await repair(engine)).actions == []


async def test_a_row_is_mended_from_a_backup_where_the_topic_is_gone(engine: Engine, tmp_path: Path) -> None:
    to = f"file://{tmp_path}/backups"
    await engine.backups.create(to)
    await damage(engine, DAMAGES["payload"])
    flags = {"log": str(engine.settings.log.value), "keys": str(engine.settings.keys.value), "store": f"file://{tmp_path}/snapshots"}
    async with perdure.open(settings=config.load({**flags, "bus": "memory://", "cache": "memory://"})) as alone:
        without = await repair(alone, dry_run=True)
        assert not without.ok
        done = await repair(alone, backups=to)
        assert [action.source.split()[0] for action in done.actions] == ["backup"]
        assert await whole(alone)


async def test_what_no_copy_fits_for_is_quarantined_with_a_clear_report_and_others_are_untouched(engine: Engine, tmp_path: Path) -> None:
    await damage(engine, DAMAGES["payload"])
    flags = {"log": str(engine.settings.log.value), "keys": str(engine.settings.keys.value), "store": f"file://{tmp_path}/snapshots"}
    async with perdure.open(settings=config.load({**flags, "bus": "memory://", "cache": "memory://"})) as alone:
        done = await repair(alone)
        assert not done.ok
        assert "agent 1" in done.unresolved[0]
        assert "version 3" in done.unresolved[0]
        assert [entry.agent for entry in await alone.quarantine.list(TENANT)] == ["agent 1"]
        with pytest.raises(PerdureError):
            await alone.agent("agent 1", tenant=TENANT).state()
        assert (await alone.agent("agent 0", tenant=TENANT).state()).version == EVENTS


async def test_a_wrong_cache_and_a_topic_with_a_gap_are_put_right_from_the_log(engine: Engine, kafka_url: str) -> None:
    name = AgentName(TENANT, "agent 2")
    (cached,) = await engine.cache.get([name])
    (other,) = await engine.cache.get([AgentName(TENANT, "agent 3")])
    assert cached is not None
    assert other is not None
    # The states of two agents are exchanged in Redis.
    from redis.asyncio import Redis

    async with Redis.from_url(str(engine.settings.cache.value)) as redis:
        keys = sorted([key async for key in redis.scan_iter(match=f"perdure:{{{TENANT}/*")])
        await redis.rename(keys[0], "swap")
        await redis.rename(keys[1], keys[0])
        await redis.rename("swap", keys[1])
    assert not (await engine.verify()).ok
    flags = {"log": str(engine.settings.log.value), "keys": str(engine.settings.keys.value), "cache": str(engine.settings.cache.value)}
    async with perdure.open(settings=config.load({**flags, "bus": f"kafka://{kafka_url}?topic=gap-{uuid4().hex}"})) as second:
        # A topic that lacks events in the middle, published by hand.
        await second.bus.ensure(2)
        for partition in range(2):
            events = await second.log.store.read(partition, 0, 100)
            await second.bus.publish(partition, [event for number, event in enumerate(events) if not 2 <= number < 5])
        done = await repair(second)
        assert done.ok, done
        assert {action.what for action in done.actions} == {"cache", "topic"}
        assert (await second.verify()).ok


async def test_a_rebuild_puts_every_state_into_the_cache_anew(engine: Engine) -> None:
    names = [AgentName(TENANT, f"agent {number}") for number in range(4)]
    before = await engine.cache.get(names)
    from redis.asyncio import Redis

    async with Redis.from_url(str(engine.settings.cache.value)) as redis:
        for key in [key async for key in redis.scan_iter(match=f"perdure:{{{TENANT}/*")]:
            await redis.hset(key, "e", b"scribbled")  # type: ignore[misc]
    assert [await engine.recovery.rebuild_state(name) for name in names] == [EVENTS] * 4
    after = await engine.cache.get(names)
    assert [state.token for state in after if state] == [state.token for state in before if state]
    assert (await engine.verify()).ok
