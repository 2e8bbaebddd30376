"""Keys are rotated while several processes append and read; one tenant's missing key stops nobody else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

import perdure
from perdure import config
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName, EventFilter
from perdure.errors import InvalidInput, KeyUnavailable
from perdure.security.ring import TENANT_KEYS_SCOPE
from perdure.security.tenant_key import TenantKey

WORKERS = 2
ROTATIONS = 3
TIMEOUT_S = 60.0
ONE = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
"""What does not depend on the kind of log."""


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> config.Settings:
    log = f"sqlite:///{tmp_path}/log" if request.param == "sqlite" else request.getfixturevalue("fresh_database")
    return config.load({"log": log, "keys": f"file://{tmp_path}/keys/root.key"}, {})


def start(settings: config.Settings, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.key_worker", str(settings.log.value), str(settings.keys.value), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@asynccontextmanager
async def working(settings: config.Settings) -> AsyncIterator[list[subprocess.Popen[str]]]:
    """Processes that append and read until their stdin is closed; none is left behind."""
    workers = [start(settings, f"worker{number}") for number in range(WORKERS)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert (await asyncio.to_thread(worker.stdout.readline)).strip() == "ready"
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


async def acknowledged_by(worker: subprocess.Popen[str]) -> dict[str, int]:
    """Tell a worker to stop; agent → events that were acknowledged to it."""
    out, _ = await asyncio.to_thread(worker.communicate, timeout=TIMEOUT_S)
    assert worker.returncode == 0
    return dict(json.loads(out.splitlines()[-1])["acknowledged"])


async def sealed(engine: Engine, agent: str) -> list[bytes]:
    """The agent's payloads as they lie in the log."""
    record = await engine.log.vault.record("acme", agent)
    return [event.payload for event in await engine.log.store.read_agent(record, EventFilter(), 1_000)]


async def test_keys_are_rotated_while_processes_append_and_read(settings: config.Settings) -> None:
    async with perdure.open(settings=settings) as engine:
        await engine.agent("before", tenant="acme").append([perdure.Event("said", data={"n": 1})])
        before = await sealed(engine, "before")
        async with working(settings) as workers:
            for turn in range(ROTATIONS):
                rotation = await engine.keys.rotate_encryption_key("acme")
                assert (rotation.previous, rotation.version, rotation.left) == (turn + 1, turn + 2, {})
                # New data is under the new key at once.
                await engine.agent("before", tenant="acme").append([perdure.Event("said", data={"n": turn + 2})])
                assert (await sealed(engine, "before"))[-1][1] == turn + 2
                await engine.keys.rotate_root_key()
                await followed(engine, turn + 2)
            acknowledged = [await acknowledged_by(worker) for worker in workers]
        assert (await sealed(engine, "before"))[:1] == before, "what is there is not rewritten"
        await engine.keys.rewrap("acme")
    await check_all(settings, {agent: count for each in acknowledged for agent, count in each.items()})


async def followed(engine: Engine, version: int) -> None:
    """Return when every worker has sealed something under this version."""
    async with asyncio.timeout(TIMEOUT_S):
        for number in range(WORKERS):
            record = await engine.log.vault.record("acme", f"worker{number}-0")
            while (await engine.log.store.read_agent(record, EventFilter(), 1, descending=True))[0].payload[1] != version:
                await asyncio.sleep(0.02)


async def check_all(settings: config.Settings, acknowledged: dict[str, int]) -> None:
    """A process that has seen nothing of it finds every event, and every key under the newest versions."""
    async with perdure.open(settings=settings) as engine:
        report = await engine.verify()
        assert report.ok, report
        for agent, count in acknowledged.items():
            state = await engine.agent(agent, tenant="acme").state(consistency="strong")
            assert len(state.document["turns"]) == count
        (facts,) = await engine.keys.list("acme")
        assert (facts.version, facts.state) == (ROTATIONS + 1, "ok")
        assert set(facts.root_keys.values()) == {engine.keys.root_key_id}, "after a rotation of the root key the old one is not needed"
        page = await engine.log.store.list_agents("acme", limit=10_000)
        assert len(page) == len(acknowledged) + 1
        assert {TenantKey.wrapped_by(record.data_key) for record in page} == {ROTATIONS + 1}


async def test_a_tenant_without_its_key_stops_nobody_else(settings: config.Settings) -> None:
    async with perdure.open(settings=settings) as engine:
        for tenant in ("lost", "kept"):
            await engine.agent("agent", tenant=tenant).append([perdure.Event("said", data={"n": 1})])
        document = await engine.log.store.get_document(TENANT_KEYS_SCOPE, "lost")
        assert document is not None
    async with perdure.open(settings=settings) as engine:
        await engine.log.store.put_document(TENANT_KEYS_SCOPE, "lost", msgspec.msgpack.encode([1, {}]), expected=None)
        lost, kept = engine.agent("agent", tenant="lost"), engine.agent("agent", tenant="kept")
        # In one batch of the writer and of the vault, agents that are there and new ones.
        event = [perdure.Event("said", data={"n": 2})]
        new = [engine.agent("new", tenant=tenant) for tenant in ("lost", "kept")]
        results = await asyncio.gather(*(agent.append(event) for agent in (lost, kept, *new)), return_exceptions=True)
        assert [isinstance(result, KeyUnavailable) for result in results] == [True, False, True, False], results
        with pytest.raises(KeyUnavailable) as caught:
            await lost.state(consistency="strong")
        assert caught.value.tenant == "lost"
        assert (await kept.state(consistency="strong")).version == 2
        assert {facts.tenant: facts.state for facts in await engine.keys.list()} == {"kept": "ok", "lost": "destroyed"}
        with pytest.raises(KeyUnavailable):
            await engine.keys.rotate_encryption_key("lost")
        with pytest.raises(KeyUnavailable):
            await engine.keys.generate_encryption_key("lost")
        assert (await engine.keys.rotate_root_key()).tenants == ("kept",)
        # The projector goes on past what it cannot open.
        await engine.run(until_drained=True)
        assert (await kept.state(consistency="eventual")).version == 2
        # Restored, e.g. from a backup, all is well again.
        await engine.log.store.put_document(TENANT_KEYS_SCOPE, "lost", document.value, expected=None)
        assert (await lost.state(consistency="strong")).version == 1


@ONE
async def test_one_agents_missing_data_key_stops_nobody_else(settings: config.Settings) -> None:
    async with perdure.open(settings=settings) as engine:
        for agent in ("lost", "kept"):
            await engine.agent(agent, tenant="acme").append([perdure.Event("said", data={"n": 1})])
        (record,) = await engine.log.store.agents([AgentName("acme", "lost")])
        assert record is not None
        assert await engine.log.store.swap_data_keys([record], [b"damaged"]) == 1
    async with perdure.open(settings=settings) as engine:
        rotation = await engine.keys.rotate_encryption_key("acme")
        assert (rotation.rewrapped, set(rotation.left)) == (1, {"lost"})
        with pytest.raises(perdure.PerdureError):
            await engine.agent("lost", tenant="acme").state(consistency="strong")
        assert (await engine.agent("kept", tenant="acme").state(consistency="strong")).version == 1


@ONE
async def test_a_key_is_made_once_and_listed(settings: config.Settings) -> None:
    async with perdure.open(settings=settings) as engine:
        assert await engine.keys.list() == []
        for wrong in ("", "a\0b", "a" * 1_000):
            with pytest.raises(InvalidInput):
                await engine.keys.generate_encryption_key(wrong)
        assert await engine.keys.list() == []
        first = await engine.keys.generate_encryption_key("acme")
        assert first == await engine.keys.generate_encryption_key("acme")
        assert (first.tenant, first.version, first.root_keys, first.state) == ("acme", 1, {1: engine.keys.root_key_id}, "ok")
        with pytest.raises(KeyUnavailable):
            await engine.keys.rotate_encryption_key("nobody")
        assert [facts.tenant for facts in await engine.keys.list()] == ["acme"]


@ONE
async def test_snapshots_are_read_across_rotations_also_by_those_who_were_there_before(settings: config.Settings, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(settings, store=config.Setting(f"file://{tmp_path}/snapshots", "flag"))
    name = AgentName("acme", "agent")
    async with perdure.open(settings=settings) as there, perdure.open(settings=settings) as here:
        documents = []
        for version in range(1, 4):
            for number in range(20):
                await here.agent("agent", tenant="acme").append(
                    [perdure.Event("said", changes=[perdure.append("/turns", [version, number])])]
                )
            made = await here.snapshots.create_snapshot(name)
            documents.append((await here.agent("agent", tenant="acme").state()).document)
            # `there` knows the versions of its last look only, and must find out by itself that there are more.
            found = await there.snapshots.restore_snapshot(name, snapshot=made.snapshot.id)
            assert (found.version, found.integrity_verified, found.warnings) == (version * 20, True, ())
            assert found.state.document == documents[-1]
            await here.keys.rotate_encryption_key("acme")
        async with perdure.open(settings=settings) as fresh:
            for row in await fresh.snapshots.list_snapshots(name):
                checked = await fresh.snapshots.verify_snapshot("acme", row.id, replay=True)
                assert checked.ok, checked
