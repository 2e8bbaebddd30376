"""An agent's last events come with its source's answer: nothing is read while it stands still, and only what is in the log is believed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, SealedEvent
from perdure.engine.log.trails import Trails
from perdure.migration.copy import Copy
from perdure.migration.source import SourceLink
from tests.fix_moving_nodes import World, nodes_on


@pytest.fixture(params=["sqlite", "postgres"])
async def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world on either store."""
    url = request.getfixturevalue("fresh_database") if request.param == "postgres" else f"sqlite:///{tmp_path}/state"
    async with nodes_on(url, tmp_path) as made:
        await made.say()
        yield made


@pytest.fixture
def asked(anywhere: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a target asks while the agent stands still: the source to hold it, just after one more word was said to it, and the log to be read."""
    hold, look_ahead, follow = SourceLink.hold, EventLog.look_ahead, Copy.follow
    found: list[str] = []

    async def hold_later(link: SourceLink, **options: Any) -> Any:
        await anywhere.say()
        found.append("hold")
        return await hold(link, **options)

    async def look(log: EventLog, record: AgentRecord) -> list[SealedEvent]:
        found.append("look ahead")
        return await look_ahead(log, record)

    async def read(copy: Copy, to_version: int | None = None) -> int:
        found.append("follow")
        return await follow(copy, to_version)

    monkeypatch.setattr(SourceLink, "hold", hold_later)
    monkeypatch.setattr(EventLog, "look_ahead", look)
    monkeypatch.setattr(Copy, "follow", read)
    return found


async def test_what_the_source_wrote_last_comes_with_its_answer(anywhere: World, asked: list[str]) -> None:
    """While the agent stands still, nothing is read from the log."""
    for target in ("b", "a"):
        done = await anywhere.move(target)
        assert (done.phase, done.integrity, done.path, done.attempts) == ("committed", "verified", "held", 1)
        assert asked[asked.index("hold") :] == ["hold"]
        asked.clear()
        await anywhere.say()
    await anywhere.check()


async def test_what_the_source_does_not_have_any_more_is_read_from_the_log(
    anywhere: World, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trails, "after", lambda *_: ())
    done = await anywhere.move("b")
    assert (done.phase, done.integrity, done.path, done.attempts) == ("committed", "verified", "held", 1)
    assert asked[asked.index("hold") :] == ["hold", "look ahead"]
    await anywhere.check()


async def test_what_the_source_wrote_to_another_generation_of_the_log_is_not_believed(
    anywhere: World, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not there when the log was promoted is not there, whoever remembers it."""
    hold = SourceLink.hold

    async def of_before(link: SourceLink, **options: Any) -> Any:
        held = await hold(link, **options)
        return held and msgspec.structs.replace(held, generation=held.generation + 1)

    monkeypatch.setattr(SourceLink, "hold", of_before)
    done = await anywhere.move("b")
    assert (done.phase, done.integrity, done.path) == ("committed", "verified", "held")
    assert asked[asked.index("hold") :] == ["hold", "look ahead"]
    await anywhere.check()


async def test_what_a_source_says_of_other_agents_is_passed_over(
    anywhere: World, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    after, other = Trails.after, AgentName("acme", "other")
    await anywhere.say(other)
    store = anywhere.engine.log.store
    (record,) = await store.agents([other])
    assert record is not None
    (row,) = await store.read_agent(record, EventFilter(types=("said",)), 1)

    def with_others(trails: Trails, agent_key: int, version: int) -> Sequence[SealedEvent]:
        own = list(after(trails, agent_key, version))
        return [*own, *(msgspec.structs.replace(row, partition=each.partition, offset=each.offset + 1, version=99) for each in own)]

    monkeypatch.setattr(Trails, "after", with_others)
    done = await anywhere.move("b")
    assert (done.phase, done.integrity, done.path, done.attempts) == ("committed", "verified", "held", 1)
    assert "hold" in asked
    assert (await anywhere.engine.verify()).ok


async def test_what_a_source_makes_up_moves_nothing(anywhere: World, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are held to the chain as if they were read; it goes on as if nothing had been asked."""
    after = Trails.after

    def made_up(trails: Trails, agent_key: int, version: int) -> Sequence[SealedEvent]:
        return [msgspec.structs.replace(row, epoch=row.epoch + 1) for row in after(trails, agent_key, version)]

    monkeypatch.setattr(Trails, "after", made_up)
    done = await anywhere.move("b")
    assert (done.phase, "is not the one that was written" in done.error) == ("aborted", True)
    assert asked[-1] == "hold"
    assert (await anywhere.owner())[0] == "a"
    await anywhere.say()
    await anywhere.check()
