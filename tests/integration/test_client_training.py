"""Dictionaries by themselves: once for all processes, in the background, and everything stays readable."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import config, limits
from perdure.client import training
from perdure.client.engine import Engine
from perdure.engine.importing.samples import generate
from perdure.engine.log.records import EventFilter
from perdure.errors import ConfigurationError
from perdure.security.dictionary_set import TENANT_ID_FIRST
from tests.fix_client import OpenEngine

TENANT = "acme"


@pytest.fixture(autouse=True)
def small_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the events."""
    monkeypatch.setattr(limits, "TRAINING_EVENTS_MIN", 200)
    monkeypatch.setattr(limits, "TRAINING_LOOK_EVENTS", 50)
    monkeypatch.setattr(limits, "TRAINING_GROWTH", 4)
    monkeypatch.setattr(limits, "TRAINING_OWN_BYTES_MAX", 100_000)


async def write(engine: Engine, *, seed: int, events: int, tenant: str = TENANT) -> None:
    """Sample agents until they have so many events."""
    written = 0
    for conversation in generate(seed=seed, agents=1_000, turns=6):
        await engine.agent(f"{seed}-{conversation.agent}", tenant=tenant).append(conversation.events)
        written += len(conversation.events)
        if written >= events:
            return


async def dictionaries(engine: Engine, tenant: str = TENANT) -> list[int]:
    return (await engine.log.vault.book.load(tenant)).ids


async def settle(*engines: Engine) -> None:
    for engine in engines:
        assert engine.log.trainer is not None
        await engine.log.trainer.wait()


async def check_all(engine: Engine) -> None:
    assert (await engine.verify()).ok


async def test_a_tenant_that_passes_the_threshold_gets_a_dictionary_once_and_everything_reads_well(open_engine: OpenEngine) -> None:
    async with open_engine() as one, open_engine() as two:
        await write(one, seed=1, events=100)
        await settle(one)
        assert await dictionaries(one) == []
        await asyncio.gather(write(one, seed=2, events=250), write(two, seed=3, events=250))
        await settle(one, two)
        assert await dictionaries(one) == [TENANT_ID_FIRST]
        await asyncio.gather(write(one, seed=4, events=100), write(two, seed=5, events=100))
        await settle(one, two)
        assert await dictionaries(two) == [TENANT_ID_FIRST]
        assert await dictionaries(one, "another") == []
        await check_all(two)
    async with open_engine() as later:
        await check_all(later)


async def test_what_comes_after_is_smaller(embedded: Engine) -> None:
    async def stored_bytes(name: str) -> int:
        """What a certain conversation takes."""
        agent = embedded.agent(name, tenant=TENANT)
        conversation = next(iter(generate(seed=9, agents=1, turns=6)))
        await agent.append([perdure.Event(event.type, event.changes, data=event.data) for event in conversation.events])
        record = await embedded.log.vault.record(*agent.name)
        return sum(len(event.payload) for event in await embedded.log.store.read_agent(record, EventFilter(), 1_000))

    before = await stored_bytes("before")
    await write(embedded, seed=1, events=250)
    await settle(embedded)
    assert await dictionaries(embedded) == [TENANT_ID_FIRST]
    assert await stored_bytes("after") < 0.9 * before
    assert (await embedded.agent("after", tenant=TENANT).state()).digest == (await embedded.agent("before", tenant=TENANT).state()).digest


async def test_growth_brings_another_one_and_a_trained_one_counts(embedded: Engine) -> None:
    await write(embedded, seed=1, events=150)
    await embedded.train(TENANT)
    await settle(embedded)
    await write(embedded, seed=2, events=300)
    await settle(embedded)
    assert await dictionaries(embedded) == [TENANT_ID_FIRST]
    await write(embedded, seed=3, events=500)
    await settle(embedded)
    assert await dictionaries(embedded) == [TENANT_ID_FIRST, TENANT_ID_FIRST + 1]


async def test_while_another_process_trains_nobody_else_does(embedded: Engine) -> None:
    lease = await embedded.log.store.acquire_lease(f"{training.TRAINING_SCOPE}/{TENANT}", "another", 60.0)
    assert lease is not None
    await write(embedded, seed=1, events=400)
    await settle(embedded)
    assert await dictionaries(embedded) == []
    await embedded.log.store.release_lease(lease)
    await write(embedded, seed=2, events=100)
    await settle(embedded)
    assert await dictionaries(embedded) == [TENANT_ID_FIRST]


async def test_closing_breaks_off_a_look_and_waits_for_a_training(open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    looking, training_begun = asyncio.Event(), asyncio.Event()

    async def endless(*_arguments: object) -> None:
        looking.set()
        await asyncio.Event().wait()

    async with open_engine() as engine:
        with monkeypatch.context() as patched:
            patched.setattr(training, "_survey", endless)
            await write(engine, seed=1, events=100)
            await asyncio.wait_for(looking.wait(), 60)
            assert engine.log.trainer is not None
            await asyncio.wait_for(engine.log.trainer.close(), 60)
    async with open_engine() as engine:
        train = training._train

        async def told(*arguments: Any) -> Any:
            training_begun.set()
            return await train(*arguments)

        monkeypatch.setattr(training, "_train", told)
        await write(engine, seed=2, events=400)
        await asyncio.wait_for(training_begun.wait(), 60)
    async with open_engine() as engine:
        assert await dictionaries(engine) == [TENANT_ID_FIRST]


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    settings = config.load({"log": f"sqlite:///{tmp_path}/log", "training": "off"}, {})
    async with perdure.open(settings=settings) as engine:
        await write(engine, seed=1, events=400)
        assert engine.log.trainer is None
        assert await dictionaries(engine) == []
    with pytest.raises(ConfigurationError):
        config.load({}, {"PERDURE_TRAINING": "sometimes"})
