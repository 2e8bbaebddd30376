"""What Kafka's and Redis's own tools do on the same servers: the limits of the way from the log to the cache."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from benchmarks.report import note
from perdure.errors import PerdureError
from perdure.services import jars

__all__ = ["KEYS", "Limits"]

KEYS = ("ratios.aiokafka", "ratios.kafka_producer_perf", "ratios.redis_benchmark")
PARTITIONS = 16
TOOL_TIMEOUT_S = 180
TOOL_DATABASE = 15
TOOL_KEY = "key:__rand_int__"
"""What redis-benchmark writes, and leaves behind."""
_BATCH = 500
"""Messages that the bare producer is handed before their acknowledgements are awaited."""


class Limits:
    """Rates of bare tools. A tool that is not installed is missing, with the reason."""

    def __init__(self, bootstrap: str, redis_url: str, topic: str, *, tools: bool) -> None:
        """tools: whether Kafka's and Redis's own programs are run, too; else aiokafka alone."""
        self._tools = tools
        self._bootstrap = bootstrap
        self._redis_url = redis_url
        self._topic = topic
        self.missing: dict[str, str] = {}
        self.about: dict[str, Any] = {}

    async def publishing(self, events: int, size_bytes: int) -> dict[str, float]:
        """Messages of so many bytes per second by aiokafka and by Kafka's own tool, acknowledged by all replicas."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(self._topic, PARTITIONS, 1)])
            found = {"aiokafka": await self._aiokafka(events, size_bytes)}
            tool = await asyncio.to_thread(self._attempt, "kafka_producer_perf", lambda: self._producer_perf(3 * events, size_bytes))
            await admin.delete_topics([self._topic])
        finally:
            await admin.close()
        return found | ({} if tool is None else {"kafka_producer_perf": tool})

    async def _aiokafka(self, events: int, size_bytes: int) -> float:
        payload = os.urandom(size_bytes)
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap, enable_idempotence=True, acks="all", linger_ms=0, max_batch_size=512 * 1024
        )
        await producer.start()
        try:
            for first in range(-_BATCH, events, _BATCH):
                if first == 0:  # what came before made the partitions' leaders known
                    began = time.perf_counter()
                sent = [await producer.send(self._topic, payload, partition=number % PARTITIONS) for number in range(_BATCH)]
                await asyncio.gather(*sent)
            return -(-events // _BATCH) * _BATCH / (time.perf_counter() - began)
        finally:
            await producer.stop()

    def _producer_perf(self, events: int, size_bytes: int) -> float:
        command = [jars.java(), "-cp", f"{jars.libraries(note)}/*", "org.apache.kafka.tools.ProducerPerformance"]
        command += ["--topic", self._topic, "--num-records", str(events), "--record-size", str(size_bytes), "--throughput", "-1"]
        command += ["--producer-props", f"bootstrap.servers={self._bootstrap}", "acks=all", "enable.idempotence=true"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TOOL_TIMEOUT_S).stdout
        return float(said.strip().splitlines()[-1].partition("records sent,")[2].split()[0])

    async def reading(self, requests: int, size_bytes: int) -> float | None:
        """Values of so many bytes per second, one after another, by Redis's own tool."""
        redis = Redis.from_url(urlunsplit(urlsplit(self._redis_url)._replace(path=f"/{TOOL_DATABASE}")))
        try:
            return await asyncio.to_thread(self._attempt, "redis_benchmark", lambda: self._redis_benchmark(requests, size_bytes))
        finally:
            await redis.unlink(TOOL_KEY)
            await redis.aclose()

    def _redis_benchmark(self, requests: int, size_bytes: int) -> float:
        parts = urlsplit(self._redis_url)
        program = shutil.which("redis-benchmark")
        if program is None:
            raise FileNotFoundError("redis-benchmark is not installed")
        command = [program, "-h", parts.hostname or "127.0.0.1", "-p", str(parts.port or 6379), "-n", str(requests), "-c", "1"]
        command += ["--dbnum", str(TOOL_DATABASE), "-d", str(size_bytes), "-t", "set,get", "--csv"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TOOL_TIMEOUT_S).stdout
        rate = next(line for line in said.splitlines() if line.startswith('"GET"'))
        return float(rate.split(",")[1].strip('"'))

    def _attempt(self, name: str, work: Any) -> float | None:
        if not self._tools:
            self.missing[name] = "peers were not asked for"
            return None
        try:
            found: float = work()
        except (OSError, subprocess.SubprocessError, PerdureError, ValueError, LookupError, StopIteration) as problem:
            note(f"  missing: {name}: {problem}")
            self.missing[name] = str(problem)
            return None
        return found
