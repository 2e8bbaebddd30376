"""A whole installation on the real servers: the log in Postgres, the bus in Kafka, the cache in Redis, all of the test's own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

from perdure import config
from perdure.client.engine import Engine, open_engine
from perdure.client.verify import VerifyReport

PROCESS_TIMEOUT_S = 60.0
PARTITIONS = 2


@dataclass(frozen=True)
class Installation:
    """Where everything is. tenant: its keys in the shared Redis are nobody else's."""

    tenant: str
    variables: dict[str, str]

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        """Open it in this process."""
        engine = await open_engine(config.load({}, self.variables), partitions=PARTITIONS)
        try:
            yield engine
        finally:
            await engine.close()

    @asynccontextmanager
    async def process(self, *parts: str, kill_point: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
        """A process with these parts (relay, projector); killed at the end where it still lives."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
        environment |= self.variables | {"PERDURE_KILL_POINT": kill_point}
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "perdure.testing.engine_process", *parts, env=environment)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def killed(self, process: asyncio.subprocess.Process) -> None:
        """Wait until the process has killed itself at its step."""
        async with asyncio.timeout(PROCESS_TIMEOUT_S):
            assert await process.wait() == -signal.SIGKILL

    async def settled(self, engine: Engine) -> VerifyReport:
        """Publish and project what is left; log, topic and cache then agree event by event, and the cache lacks no agent."""
        async with asyncio.timeout(PROCESS_TIMEOUT_S):
            await engine.run(until_drained=True)
            report = await engine.verify()
        assert report.ok, report
        assert (report.topic.agrees, report.cache.same) == (True, report.log.agents), report
        return report


@pytest.fixture
async def new_installation(
    postgres_url: str, drop_database: Callable[[str], None], kafka_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[Callable[[], Installation]]:
    """A factory of installations; what they leave in Kafka and Redis is removed afterwards."""
    names: list[str] = []

    def make() -> Installation:
        name = f"test-{uuid4().hex}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        names.append(name)
        log = postgres_url.rpartition("/")[0] + f"/{name}"
        variables = {"LOG": log, "BUS": f"kafka://{kafka_url}?topic={name}", "CACHE": redis_url, "KEYS": f"file://{tmp_path}/{name}.key"}
        return Installation(name, {f"PERDURE_{each}": value for each, value in variables.items()})

    yield make
    for name in names:
        drop_database(name)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url)
    await admin.start()
    await admin.delete_topics(names)
    await admin.close()
    async with Redis.from_url(redis_url) as redis:
        for name in names:
            if keys := [key async for key in redis.scan_iter(match=f"perdure:{{{name}/*", count=1_000)]:
                await redis.unlink(*keys)


@pytest.fixture
def installation(new_installation: Callable[[], Installation]) -> Installation:
    """One installation."""
    return new_installation()
