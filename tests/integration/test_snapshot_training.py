"""Dictionaries that agents' own states make, on a log and a store."""

from __future__ import annotations

from pathlib import Path

import pytest

import perdure
from perdure import limits
from perdure.client.engine import Engine, Opening
from perdure.engine.log.records import AgentName
from perdure.errors import AgentNotFound, InvalidInput, NotFound
from perdure.snapshots.codecs import CODECS
from perdure.snapshots.manifest import Manifest

TENANT = "acme"


def engine_in(folder: Path, monkeypatch: pytest.MonkeyPatch, training: str = "auto") -> Opening:
    monkeypatch.setenv("PERDURE_TRAINING", training)
    return perdure.open(
        f"sqlite:///{folder}/log.db", bus="memory://", cache="memory://", store=f"file://{folder}/store", keys=f"file://{folder}/root.key"
    )


async def talk(engine: Engine, agent: str, type: str, messages: int = 80) -> None:
    """A conversation like those of the other agents of its type, but not the same."""
    texts = [
        f"agent {agent} of the {type} desk moved crate {number} of {number * 7919 % 999} to bay {number % 9}" for number in range(messages)
    ]
    events = [perdure.Event("message_added", changes=[perdure.append("/messages", {"role": "user", "content": text})]) for text in texts]
    await engine.agent(agent, tenant=TENANT, type=type).append(events)


async def snapshot(engine: Engine, agent: str) -> int:
    made = await engine.snapshots.create_snapshot(AgentName(TENANT, agent))
    return made.snapshot.stored_bytes


async def test_a_dictionary_is_trained_for_a_type_and_used_by_its_next_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine_in(tmp_path, monkeypatch, "off") as engine:
        for number in range(60):
            await talk(engine, f"{number}", "freight")
        await talk(engine, "other", "weather")
        before = await snapshot(engine, "1")
        trained = await engine.snapshots.train(TENANT, "freight")
        assert (trained.dictionary, trained.agent_type, trained.agents) == (16, "freight", 60)
        assert await snapshot(engine, "2") < 0.8 * before
        assert [each.dictionary for each in (await manifest_of(engine, "2")).chunks] == [16]
        with pytest.raises(NotFound):
            await engine.snapshots.train(TENANT, "nobody")
        with pytest.raises(InvalidInput):
            await engine.snapshots.train(TENANT, "weather")
    async with engine_in(tmp_path, monkeypatch, "off") as engine:
        assert len((await engine.agent("2", tenant=TENANT).state()).document["messages"]) == 80
        assert engine.snapshots.shelf.loader.status.loads == 1


async def manifest_of(engine: Engine, agent: str) -> Manifest:
    record = await engine.log.vault.record(TENANT, agent)
    loaded = await engine.snapshots.shelf.loader.load(record)
    assert loaded is not None
    return loaded.manifest


async def test_a_type_learns_by_itself_from_the_snapshots_that_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_TRAINING_SAMPLES_MIN", 100)
    async with engine_in(tmp_path, monkeypatch) as engine:
        for number in range(30):
            await talk(engine, f"{number}", "freight", 200)
            await snapshot(engine, f"{number}")
        assert (await engine.snapshots.shelf.dictionaries.known(TENANT)).ids == [16]
        assert [each.dictionary for each in (await manifest_of(engine, "29")).chunks] == [16]
        assert [each.dictionary for each in (await manifest_of(engine, "0")).chunks] != [16]
        assert len((await engine.agent("29", tenant=TENANT).state()).document["messages"]) == 200


async def test_codecs_are_measured_on_the_agents_own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine_in(tmp_path, monkeypatch, "off") as engine:
        await talk(engine, "one", "freight", 400)
        name = AgentName(TENANT, "one")
        found = await engine.snapshots.benchmark_compression_algorithms(name)
        assert [each.codec for each in found] == [*CODECS, "zstd"]
        smallest = min(found, key=lambda each: each.compressed_bytes)
        chosen = await engine.snapshots.select_optimal_compression(name, goal="size")
        assert (chosen.codec, chosen.compressed_bytes) == (smallest.codec, smallest.compressed_bytes)
        made = await engine.snapshots.create_snapshot(name, codec=chosen.codec)
        assert made.snapshot.codec == chosen.codec
        with pytest.raises(AgentNotFound):
            await engine.snapshots.select_optimal_compression(AgentName(TENANT, "nobody"))
        with pytest.raises(InvalidInput):
            await engine.snapshots.select_optimal_compression(name, goal="beauty")  # type: ignore[arg-type]
