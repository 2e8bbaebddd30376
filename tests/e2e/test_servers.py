"""The command on real servers: the log in Postgres, the bus in Kafka, the cache in Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from redis import Redis

from tests.fix_command import Perdure

TAU = "tau-bench/gpt-4o-airline.json"
SWE = "swe-agent/traj/05-h-HumanEvalFix-python__lcb__t-0.00__p-0.95__c-4.00__install-0--humanevalfix-python-0.traj"
WHO = tuple(f"who-and-when/{name}.json" for name in ("algorithm-generated/1", "algorithm-generated/10", "hand-crafted/1"))
FILES = (TAU, SWE, *WHO)
CACHE_DATABASE = 15


@dataclass(frozen=True)
class Installation:
    """The command with its servers. tenant: of this test alone, so that its keys in Redis are nobody else's."""

    command: Perdure
    tenant: str
    redis: Redis

    def __call__(self, *words: str | Path, code: int = 0) -> Any:
        """What a command says in JSON: on stdout, or the error where it ends with another code than 0."""
        done = self.command(*words, "--tenant", self.tenant, "--json", code=code)
        return done.error if code else done.json

    def drain(self) -> None:
        """Publish and project everything; nothing is behind afterwards."""
        told = self("run", "--until-drained")
        assert told["drained"] is True
        lags = [lag for partitions in told["lags"].values() for lag in partitions]
        assert lags
        assert {lag["lag_events"] for lag in lags} == {0}

    def holds(self) -> dict[str, Any]:
        """The report of a verification that finds everything in order, with topic and cache looked at."""
        report: dict[str, Any] = self("verify")
        assert report["ok"] is True
        assert report["current"] is True
        assert report["topic"] is not None
        assert report["cache"] is not None
        # A relay that a busy machine kept from renewing its lease is replaced, and repeats what it had published.
        partitions = report["topic"]["partitions"]
        assert report["log"]["events"] == sum(partition["messages"] - partition["duplicates"] for partition in partitions)
        return report

    def cached_keys(self) -> list[bytes]:
        """The states that Redis holds."""
        return list(self.redis.scan_iter(match=f"perdure:{{{self.tenant}/*", count=1_000))

    def messages(self, agent: str) -> Any:
        """The conversation of an agent as the cache has it."""
        return self("show", agent, "--consistency", "eventual")["document"]["messages"]


@pytest.fixture
def installation(
    perdure_with: Callable[[Mapping[str, str]], Perdure], tmp_path: Path, fresh_database: str, kafka_url: str, redis_url: str
) -> Iterator[Installation]:
    own = f"e2e-{uuid4().hex}"
    cache = f"{redis_url.rpartition('/')[0]}/{CACHE_DATABASE}"
    variables = {
        "PERDURE_LOG": fresh_database,
        "PERDURE_BUS": f"kafka://{kafka_url}?topic={own}",
        "PERDURE_CACHE": cache,
        "PERDURE_KEYS": f"file://{tmp_path}/root.key",
    }
    with Redis.from_url(cache) as redis:
        made = Installation(perdure_with(variables), own, redis)
        yield made
        if keys := made.cached_keys():
            redis.unlink(*keys)
    asyncio.run(_delete_topic(kafka_url, own))


async def _delete_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()


def conversations(trajectories: Path) -> dict[str, Any]:
    """An agent of every format and the messages that their files hold."""
    runs = json.loads((trajectories / TAU).read_text())
    known = {f"gpt-4o-airline/task-{runs[-1]['task_id']}/trial-{runs[-1]['trial']}": runs[-1]["traj"]}
    known[Path(SWE).stem] = json.loads((trajectories / SWE).read_text())["history"]
    known["hand-crafted/1"] = json.loads((trajectories / WHO[-1]).read_text())["history"]
    return known


def test_real_trajectories_go_from_file_through_every_server_to_the_reader(installation: Installation, trajectories: Path) -> None:
    installation("init")
    assert {finding["what"] for finding in installation("doctor")["findings"] if finding["ok"]} >= {"engine", "bus", "cache"}
    files = [trajectories / name for name in FILES]
    first = installation("import", *files)
    agents = len(json.loads(files[0].read_text())) + len(FILES) - 1
    assert (first["conversations"], first["events_known"], first["broken"]) == (agents, 0, [])
    before = installation("verify")  # nothing was ever relayed: not even the topic is there, and that is no fault
    assert (before["ok"], before["current"], before["lag"]["relay_events"]) == (True, False, first["events_new"])
    installation.drain()
    # Before any read: a read that misses would fill the cache by itself.
    assert len(installation.cached_keys()) == agents
    report = installation.holds()
    assert (report["log"]["agents"], report["log"]["events"]) == (agents, first["events_new"])
    for agent, messages in conversations(trajectories).items():
        assert installation.messages(agent) == messages
    again = installation("import", *files)
    assert (again["events_new"], again["events_known"]) == (0, first["events_new"])


def test_a_cut_off_file_is_named_with_its_line_and_its_mended_form_goes_on(installation: Installation, trajectories: Path) -> None:
    runs = json.loads((trajectories / TAU).read_text())[:8]
    whole = json.dumps(runs, indent=1)
    file = installation.command.folder / "runs.json"
    file.write_text(whole[: len(whole) // 2])
    line = len(file.read_text().splitlines())
    error = installation("import", file, code=1)
    assert (error["code"], error["file"], error["line"]) == ("import_failed", str(file), line)
    assert error["message"].startswith(f"{file}:{line}: ")
    installation.drain()
    report = installation.holds()
    kept = [agent["agent"] for agent in installation("agents")["agents"]]
    assert 0 < len(kept) == report["log"]["agents"] < len(runs)
    by_agent = {f"runs/task-{run['task_id']}/trial-{run['trial']}": run["traj"] for run in runs}
    assert installation.messages(kept[-1]) == by_agent[kept[-1]]
    file.write_text(whole)
    mended = installation("import", file)
    assert (mended["conversations"], mended["events_known"]) == (len(runs), report["log"]["events"])
    assert mended["events_new"] > 0
