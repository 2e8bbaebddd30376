"""An older copy of the database in the place of the live one: what the topic has comes back, what is lost is told, and nothing of the old world
outranks or mixes with the log that goes on."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from redis import Redis

import perdure
from perdure import Event, append, config
from perdure.client.engine import Engine, Opening
from perdure.client.promotion import promote
from perdure.engine import steps
from perdure.engine.log.records import AgentName
from perdure.errors import Conflict, Fenced, IntegrityError, Unavailable
from perdure.projections.contract import CellWrite, Token
from perdure.recovery.promotion import ahead_of_log
from tests.fix_services import PrivateServices

AGENTS = tuple(AgentName("t", f"agent {number}") for number in range(5))
LATE = AgentName("t", "made after the copy")
TRIES = 50


class Installation:
    """One log on Postgres with its topic and its cache, whose database can be replaced by a copy of itself."""

    def __init__(self, url: str, kafka_url: str, redis_url: str, folder: Path, drop: Callable[[str], None]) -> None:
        self.topics = [f"promotion-{uuid.uuid4().hex}"]
        self._kafka_url = kafka_url
        self._flags = {"log": url, "keys": f"file://{folder}/root.key", "cache": redis_url}
        self._name = urlsplit(url).path[1:]
        self._server = urlunsplit(urlsplit(url)._replace(path="/postgres"))
        self._drop = drop
        self._end_sessions = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{self._name}'"

    @property
    def settings(self) -> config.Settings:
        return config.load({**self._flags, "bus": f"kafka://{self._kafka_url}?topic={self.topics[-1]}"})

    def opened(self) -> Opening:
        return perdure.open(settings=self.settings, partitions=2)

    def copy(self) -> None:
        """A copy of the database as it is; nobody may be connected to it."""
        self._execute(self._end_sessions, f'CREATE DATABASE "{self._name}-copy" TEMPLATE "{self._name}"')

    def put_copy_in_place(self) -> None:
        """What restoring a base backup does: everybody's connection ends, and the same URL leads to the copy."""
        self._execute(
            self._end_sessions,
            f'ALTER DATABASE "{self._name}" RENAME TO "{self._name}-gone"',
            f'ALTER DATABASE "{self._name}-copy" RENAME TO "{self._name}"',
        )
        self._drop(f"{self._name}-gone")

    def _execute(self, *statements: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    async def remove_topics(self) -> None:
        admin: Any = AIOKafkaAdminClient(bootstrap_servers=self._kafka_url)
        await admin.start()
        try:
            await admin.delete_topics(self.topics)
        finally:
            await admin.close()


@pytest.fixture(scope="module")
def redis(private_services: Callable[..., PrivateServices]) -> str:
    """A Redis of this module's own: what one log leaves there is nothing to another."""
    service = private_services("redis").services.redis
    assert service is not None
    return service.url


@pytest.fixture
async def installation(
    fresh_database: str, kafka_url: str, redis: str, tmp_path: Path, drop_database: Callable[[str], None]
) -> AsyncIterator[Installation]:
    with Redis.from_url(redis) as client:
        client.flushdb()
    made = Installation(fresh_database, kafka_url, redis, tmp_path, drop_database)
    yield made
    drop_database(f"{urlsplit(fresh_database).path[1:]}-copy")
    await made.remove_topics()


async def say(engine: Engine, *names: AgentName, times: int) -> None:
    """Acknowledged events; the owner changes once, too."""
    for name in names:
        agent = engine.agent(name.agent, tenant=name.tenant)
        for number in range(times):
            await agent.append([Event("said", changes=(append("/said", f"{number} of {times}"),))])
    await engine.log.take_ownership(names[0], "a node")


async def histories(engine: Engine, *names: AgentName) -> dict[AgentName, list[tuple[int, uuid.UUID]]]:
    return {name: [(event.version, event.id) async for event in engine.agent(name.agent, tenant="t").events()] for name in names}


async def digests(engine: Engine, *names: AgentName) -> dict[AgentName, bytes]:
    return {name: (await engine.agent(name.agent, tenant="t").state()).digest for name in names}


async def append_when_back(engine: Engine, name: AgentName) -> None:
    """An append of a process that lost its connection; `Unavailable` is waited out."""
    for _ in range(TRIES):
        with suppress(Unavailable):
            await engine.agent(name.agent, tenant=name.tenant).append([Event("said", changes=(append("/said", "late"),))])
            return
    raise AssertionError("the log did not come back")


async def lived(here: Installation, *, late: bool = False, projected: bool = True) -> Engine:
    """Events before and after the copy, all on the topic and in the cache; the engine that wrote the later ones."""
    async with here.opened() as engine:
        await say(engine, *AGENTS, times=3)
        await engine.run(until_drained=True, projector=projected)
    here.copy()
    engine = await here.opened()
    await say(engine, *AGENTS, times=2)
    if late:
        await say(engine, LATE, times=2)
    await engine.run(until_drained=True, projector=projected)
    return engine


async def test_what_the_topic_has_comes_back_and_old_processes_are_shut_out(installation: Installation) -> None:
    before = await lived(installation)
    try:
        wrote, states = await histories(before, *AGENTS), await digests(before, *AGENTS)
        installation.put_copy_in_place()
        # Who has seen more than the copy has does not write to it, and a cache that has seen more is not believed.
        with pytest.raises(IntegrityError, match="older copy"):
            await append_when_back(before, AGENTS[0])
        async with installation.opened() as unaware:
            assert (await unaware.agent(AGENTS[1].agent, tenant="t").state()).version == 3
            assert sum((await ahead_of_log(unaware.log.store, unaware.bus)).values()) == 11
        told = await promote(installation.settings, dry_run=True)
        assert (told.brought, told.lost, told.topic_sound) == (11, (), True)
        done = await promote(installation.settings)
        assert (done.generation, done.brought, done.agents, done.lost, done.topic_sound) == (2, 11, 5, (), True)
        with pytest.raises(Fenced, match="generation 2"):
            await append_when_back(before, AGENTS[0])
    finally:
        await before.close()
    async with installation.opened() as engine:
        now = await histories(engine, *AGENTS)
        # Everything acknowledged is there, once; then the owner of the old world is none any more.
        assert {name: events[: len(wrote[name])] for name, events in now.items()} == wrote
        assert [len(now[name]) - len(wrote[name]) for name in AGENTS] == [1, 0, 0, 0, 0]
        assert await digests(engine, *AGENTS) == states
        assert (await engine.log.vault.record(*AGENTS[0])).owner == ""
        await say(engine, *AGENTS, times=1)
        await engine.run(until_drained=True)
        report = await engine.verify()
        assert report.ok, report
        assert report.current


async def test_what_is_lost_is_told_and_a_new_topic_gets_the_log_that_goes_on(installation: Installation) -> None:
    before = await lived(installation, late=True)
    try:
        # Newer than anything on the topic: only the cache has seen it, by a read that missed.
        await say(before, AGENTS[4], times=1)
        await before.cache.remove([AGENTS[4]])
        await before.agent(AGENTS[4].agent, tenant="t").state()
        wrote = await histories(before, *AGENTS)
    finally:
        await before.close()
    installation.put_copy_in_place()
    async with installation.opened() as engine:
        assert not (await engine.verify()).ok
        # The same copy was promoted before, and what went on from it was lost again: its generations are used up.
        (cached,) = await engine.cache.get([AGENTS[0]])
        assert cached is not None
        write = CellWrite(*AGENTS[0], None, Token(4, 1, 1), cached.cells, (), len(cached.cells), cached.layout)
        assert await engine.cache.apply([write]) == [write.token]
    done = await promote(installation.settings)
    assert {(each.agent, each.first_version, each.last_version) for each in done.lost} == {(AGENTS[4].agent, 6, 7), (LATE.agent, 1, 3)}
    assert (done.generation, done.lost_events, done.topic_sound) == (5, 5, False)
    installation.topics.append(f"promotion-{uuid.uuid4().hex}")
    async with installation.opened() as engine:
        now = await histories(engine, *AGENTS)
        assert all(now[name][: len(events)] == events for name, events in wrote.items() if name != AGENTS[4])
        assert now[AGENTS[4]] == wrote[AGENTS[4]][:5]
        await say(engine, *AGENTS, LATE, times=3)
        await engine.run(until_drained=True)
        for name in (*AGENTS, LATE):
            agent = engine.agent(name.agent, tenant="t")
            assert (await agent.state(consistency="eventual")).digest == (await agent.state()).digest
        assert (await engine.verify()).ok


class BrokenOff(Exception):
    """In place of a kill: nothing of this process goes on after the step."""


@contextmanager
def broken_off_at(step: str) -> Iterator[None]:
    def stop(name: str) -> None:
        if name == step:
            raise BrokenOff(step)

    steps.install(stop)
    try:
        yield
    finally:
        steps.install(None)


async def test_a_promotion_that_breaks_off_at_any_step_keeps_the_log_shut_and_goes_on(installation: Installation) -> None:
    before = await lived(installation, projected=False)
    states = await digests(before, *AGENTS)
    await before.close()
    installation.put_copy_in_place()

    for step in ("promotion.marked", "promotion.generation", "promotion.loaded", "promotion.owners"):
        with broken_off_at(step), pytest.raises(BrokenOff, match=step):
            await promote(installation.settings)
        with pytest.raises(IntegrityError, match="being promoted"):
            await installation.opened()
    done = await promote(installation.settings)
    assert (done.generation, done.lost) == (2, ())
    async with installation.opened() as engine:
        assert await digests(engine, *AGENTS) == states
        assert (await engine.verify()).ok


async def test_a_log_that_is_at_work_is_not_promoted(tmp_path: Path) -> None:
    settings = config.load({"log": f"sqlite:///{tmp_path}/log", "keys": f"file://{tmp_path}/root.key"})
    async with perdure.open(settings=settings) as engine:
        async with engine.recovery.host("node", lambda state, body: []):
            with pytest.raises(Conflict, match="at work"):
                await promote(settings)
        done = await promote(settings)
        assert (done.generation, done.brought, done.lost) == (2, 0, ())
    async with perdure.open(settings=settings) as engine:
        (entry,) = await engine.recovery.journal()
        assert (entry.type, entry.data["generation"]) == ("recovery_promoted", 2)
        (told,) = await engine.approvals.audit()
        assert (told.type, told.id, told.data["operation"]) == ("operation_completed", entry.recovery, "log.promote")
        assert told.data["actor"] == entry.data["actor"] != ""
