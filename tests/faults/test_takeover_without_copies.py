"""A host is lost when everything faster than the log is lost too: every snapshot damaged, Redis emptied, the topic deleted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

import perdure
from perdure import config
from tests.faults.test_host_faults import AGENTS, TIMEOUT_S, World, under_load
from tests.fix_services import PrivateServices


async def delete_topic(kafka_url: str, topic: str) -> None:
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=kafka_url)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()


@pytest.fixture
async def bare(
    fresh_database: str, kafka_url: str, private_services: Callable[..., PrivateServices], tmp_path: Path
) -> AsyncIterator[tuple[World, str, str]]:
    """A world with servers behind it; its Redis and the name of its topic."""
    redis, topic = private_services("redis").services.redis, f"bare-{uuid.uuid4().hex}"
    assert redis is not None
    flags = {"log": fresh_database, "keys": f"file://{tmp_path}/root.key", "bus": f"kafka://{kafka_url}?topic={topic}", "cache": redis.url}
    flags["store"] = f"file://{tmp_path}/snapshots"
    async with perdure.open(settings=config.load(flags), partitions=2) as engine:
        made = World(engine, flags, AGENTS)
        try:
            yield made, redis.url, topic
        finally:
            await made.end()
    await delete_topic(kafka_url, topic)


def damage(folder: Path) -> int:
    """Change a byte of every object; how many."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.chmod(0o644)
        file.write_bytes(content)
    return len(files)


async def test_agents_are_taken_over_from_the_log_alone(bare: tuple[World, str, str], kafka_url: str, tmp_path: Path) -> None:
    here, redis_url, topic = bare
    running = await here.start("run", "--no-supervise")
    await here.start("recover", "watch")
    first, _ = await here.node("first"), await here.node("second")
    async with under_load(here):
        await asyncio.gather(*(here.engine.snapshots.create_snapshot(name) for name in here.names))
        await here.all_answer_again()
        assert damage(tmp_path / "snapshots") >= AGENTS
        await delete_topic(kafka_url, topic)
        async with Redis.from_url(redis_url) as client:
            await client.flushdb()
        first.kill()
        await here.all_answer_again()
        assert running.returncode is None
    # Damage is found and mended; then log, topic, cache and snapshots say the same.
    assert not (await here.engine.verify()).ok
    await here.engine.upkeep.scrub()
    async with asyncio.timeout(TIMEOUT_S):
        while not (await here.engine.verify()).current:
            await here.engine.log.store.signal().wait(0.1)
    await here.check()
    assert await here.engine.log.store.count_owned("second") == AGENTS
