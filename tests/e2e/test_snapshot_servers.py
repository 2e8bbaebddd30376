"""Snapshots on real servers: the log in Postgres, the bus in Kafka, the cache in Redis, the store in S3."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient

import perdure
from perdure import config
from perdure.client.engine import Engine
from perdure.engine.digest import digest
from perdure.engine.importing.reader import read_conversations
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.replay import fold_log

FILES = (
    "tau-bench/gpt-4o-airline.json",
    "swe-agent/traj/05-h-HumanEvalFix-python__lcb__t-0.00__p-0.95__c-4.00__install-0--humanevalfix-python-0.traj",
    "who-and-when/hand-crafted/1.json",
)
AT_ONCE = 16
CONVERSATIONS_PER_FILE = 40


@pytest.fixture
async def engine(fresh_database: str, kafka_url: str, redis_url: str, s3_url: str, tmp_path: Path) -> AsyncIterator[Engine]:
    topic = f"snapshots-{uuid4().hex}"
    urls = {"log": fresh_database, "bus": f"kafka://{kafka_url}?topic={topic}", "cache": redis_url, "store": s3_url}
    settings = config.load({**urls, "keys": f"file://{tmp_path}/root.key", "training": "off"}, {})
    async with perdure.open(settings=settings, partitions=4) as opened:
        yield opened
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()


async def agents_of(engine: Engine, tenant: str) -> list[AgentRecord]:
    return await engine.log.store.list_agents(tenant, limit=10_000)


async def snapshot_all(engine: Engine, tenant: str) -> int:
    """Snapshot every agent, several at a time; how many are new."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(agent: AgentRecord) -> bool:
        async with places:
            return not (await engine.snapshots.create_snapshot(AgentName(agent.tenant, agent.agent))).already

    return sum(await asyncio.gather(*(one(agent) for agent in await agents_of(engine, tenant))))


async def forget_cache(engine: Engine, agents: list[AgentRecord]) -> None:
    await engine.cache.remove([(agent.tenant, agent.agent) for agent in agents])


async def test_every_imported_agent_is_snapshotted_verified_and_read_back(engine: Engine, trajectories: Path) -> None:
    tenant = f"e2e-{uuid4().hex}"
    for file in FILES:
        records = islice(read_conversations(str(trajectories / file)), CONVERSATIONS_PER_FILE)
        await engine.import_conversations(records, tenant=tenant)
    await engine.run(until_drained=True, snapshotter=False)
    agents = await agents_of(engine, tenant)
    assert len(agents) == CONVERSATIONS_PER_FILE + len(FILES) - 1
    assert await snapshot_all(engine, tenant) == len(agents)
    assert await snapshot_all(engine, tenant) == 0
    for agent in agents:
        await engine.agent(agent.agent, tenant=tenant).update({"checked": agent.agent})
    report = await engine.verify()
    assert (report.ok, report.snapshots.snapshots, report.snapshots.replayed) == (True, len(agents), len(agents))
    # Without a cache each state comes from its snapshot and one event.
    await forget_cache(engine, agents)
    loader = engine.snapshots.shelf.loader
    before = loader.status.loads
    other = await perdure.open(settings=engine.settings)
    try:
        for agent in agents:
            state = await other.agent(agent.agent, tenant=tenant).state()
            folded = await fold_log(engine.log.store, engine.log.vault, agent)
            assert (state.version, state.digest) == (folded.version, digest(folded.document))
            assert state.document["checked"] == agent.agent
        assert other.snapshots.shelf.loader.status.loads == len(agents)
    finally:
        await other.close()
    # So does the projector, which finds the cache empty once more.
    await forget_cache(engine, agents)
    await engine.run(until_drained=True, snapshotter=False)
    assert loader.status.loads - before == len(agents)
    assert loader.status.steps_down == 0
    assert (await engine.verify()).ok
    saved = [each async for each in engine.snapshots.all_snapshots(tenant)]
    plain, stored = sum(each.plain_bytes for each in saved), sum(each.written_bytes for each in saved)
    assert 1 - stored / plain > 0.7
