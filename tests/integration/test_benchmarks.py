"""The benchmarks measure what they promise: every key, nothing else. How fast anything is, no test asserts."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.append import KEYS as APPEND
from benchmarks.backup import KEYS as BACKUP
from benchmarks.compression import KEYS as COMPRESSION
from benchmarks.measuring import closed_load, open_load, percentile
from benchmarks.pipeline import KEYS as PIPELINE
from benchmarks.recovery import KEYS as RECOVERY
from benchmarks.replay import KEYS as REPLAY
from benchmarks.snapshot import KEYS as SNAPSHOT

HERE = Path(__file__).parent.parent.parent
SMALLEST = "0.05"


async def run_benchmark(*arguments: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks", *arguments),
        cwd=HERE,
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, problems = await process.communicate()
    assert process.returncode == 0, problems.decode()
    return output.decode()


def keys_of(report: dict[str, Any]) -> set[str]:
    return {f"{part}.{name}" for part in ("ratios", "figures") for name in report[part]}


@pytest.mark.usefixtures("postgres_url", "redis_url", "kafka_url", "trajectories")
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("append", APPEND),
        ("pipeline", PIPELINE),
        ("snapshot", SNAPSHOT),
        ("compression", COMPRESSION),
        ("recovery", RECOVERY),
        ("replay", REPLAY),
        ("backup", BACKUP),
    ],
)
async def test_a_benchmark_prints_its_keys_with_positive_numbers(name: str, keys: tuple[str, ...], services_root: Path) -> None:
    output = await run_benchmark(name, "--quick", "--json", "--scale", SMALLEST, "--root", str(services_root))
    report = json.loads(output)
    assert keys_of(report) == set(keys)
    assert all(value > 0 for part in ("ratios", "figures") for value in report[part].values())


async def test_list_names_every_key() -> None:
    output = await run_benchmark("list")
    for key in (*APPEND, *PIPELINE, *SNAPSHOT, *COMPRESSION):
        assert key in output


def test_a_percentile_is_the_smallest_value_that_covers_the_share() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100
    assert percentile([7.0], 0.01) == 7


async def test_latency_under_open_load_counts_from_the_intended_time() -> None:
    latch = asyncio.Lock()

    async def one_at_a_time() -> None:
        async with latch:
            await asyncio.sleep(0.01)

    latencies = await open_load(1_000, 0.05, one_at_a_time)
    assert len(latencies) == 50
    # Requests queue behind each other: the last began on time and waited for all before it.
    assert max(latencies) > 10 * min(latencies)


async def test_closed_load_counts_what_its_callers_finish() -> None:
    done: list[int] = []

    async def work(caller: int) -> None:
        await asyncio.sleep(0.005)
        done.append(caller)

    rate, latencies = await closed_load(4, 0.05, work)
    assert set(done) == {0, 1, 2, 3}
    assert len(latencies) == len(done)
    assert rate > 0
