"""Schemas at the surface: no state that an append leads to breaks one, whoever writes at the same moment."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import msgspec
import pytest

import perdure
from perdure.client.engine import Engine
from perdure.client.schemas import Schemas
from perdure.engine.agent_state import AgentState
from perdure.engine.log.log import AgentAppend
from perdure.engine.log.records import AgentName
from perdure.errors import AlreadyExists, ConfigurationError, Conflict, InvalidInput, SchemaViolation
from tests.fix_client import OpenEngine

WRITERS = 12
BUDGET = {"type": "object", "properties": {"spent": {"type": "array", "maxItems": 5}}, "required": ["status"]}


class Support(msgspec.Struct):
    status: str
    spent: list[int] = []


def status(value: Any) -> perdure.Event:
    return perdure.Event("status_set", changes=(perdure.set_value("/status", value),))


def spend(amount: int) -> perdure.Event:
    return perdure.Event("spent", changes=(perdure.append("/spent", amount),))


async def test_what_breaks_the_schema_is_refused_with_its_place_and_nothing_is_stored(embedded: Engine) -> None:
    embedded.schemas.register("support", Support)
    agent = embedded.agent("a", type="support")
    with pytest.raises(SchemaViolation) as first:
        await agent.append(spend(1))
    assert (first.value.details["path"], first.value.version, first.value.agent) == ("", 0, "a")
    await agent.append(status("open"))
    with pytest.raises(SchemaViolation) as caught:
        await agent.append([status("busy"), spend(1), spend("x")])  # type: ignore[arg-type]
    assert caught.value.details["path"] == "/spent/1"
    with pytest.raises(SchemaViolation):
        await agent.update({"status": None})
    assert (await agent.version(), (await agent.state()).document) == (1, {"status": "open"})


async def test_only_the_state_that_an_append_leads_to_counts(embedded: Engine) -> None:
    embedded.schemas.register("support", Support)
    done = await embedded.agent("a", type="support").append([spend(1), status("open")])
    assert done.version == 2


async def test_agents_of_other_types_cost_no_read_of_their_state(embedded: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.schemas.register("support", Support)
    agents = [embedded.agent("b"), embedded.agent("c", type="other")]

    async def read(*names: str) -> Any:
        raise AssertionError("a state was read")

    assert embedded.log.reader is not None
    monkeypatch.setattr(embedded.log.reader, "state", read)
    for agent in agents:
        await agent.append([status(5), status("x")])


async def test_agents_of_other_types_are_as_they_like(embedded: Engine) -> None:
    embedded.schemas.register("support", Support)
    await embedded.agent("b").append(status(5))
    await embedded.agent("c", type="other").append(status(5))
    name, other = AgentName("default", "a"), AgentName("default", "b")
    await embedded.directory.describe(name, type="support", labels={})
    with pytest.raises(SchemaViolation):
        await embedded.log.append_many([AgentAppend(other, [status(6)]), AgentAppend(name, [status(6)])])
    assert await embedded.agent("b").version() == 1


async def test_a_retry_is_answered_although_the_state_would_no_longer_take_it(embedded: Engine) -> None:
    embedded.schemas.register("support", BUDGET)
    agent = embedded.agent("a", type="support")
    await agent.append(status("open"))
    events = [spend(1), spend(2), spend(3)]
    first = await agent.append(events, expected=1)
    for expected in (1, 99, perdure.ANY, perdure.STREAM_EXISTS):
        again = await agent.append(events, expected=expected)
        assert (again.already, again.versions) == (True, first.versions)


async def test_expectations_hold_as_without_a_schema(embedded: Engine) -> None:
    embedded.schemas.register("support", Support)
    agent = embedded.agent("a", type="support")
    for expected in (3, perdure.STREAM_EXISTS):
        with pytest.raises(Conflict):
            await agent.append(status("open"), expected=expected)
    await agent.append(status("open"), expected=perdure.NO_STREAM)
    for expected in (0, 2, perdure.NO_STREAM):
        with pytest.raises(Conflict) as caught:
            await agent.append(status("open"), expected=expected)
        assert caught.value.version == 1


async def test_writers_in_two_processes_never_pass_the_limit_together(open_engine: OpenEngine) -> None:
    async with open_engine() as one, open_engine() as two:
        await one.schemas.publish("support", BUDGET)
        await two.schemas.list()
        await one.agent("a", type="support").append(status("open"))

        async def attempt(engine: Engine, amount: int) -> bool:
            try:
                await engine.agent("a").append(spend(amount))
            except (SchemaViolation, Conflict):
                return False
            return True

        outcomes = await asyncio.gather(*(attempt(engine, number) for number in range(WRITERS) for engine in (one, two)))
        document = (await one.agent("a").state()).document
        assert len(document["spent"]) == sum(outcomes) == 5


async def test_a_published_schema_holds_in_processes_that_have_not_heard_of_it_yet(open_engine: OpenEngine) -> None:
    async with open_engine() as one:
        await one.schemas.publish("support", Support)
    async with open_engine() as two:
        agent = two.agent("a", type="support")
        with pytest.raises(SchemaViolation) as caught:
            await agent.append(status(5))
        assert caught.value.details["path"] == "/status"
        await two.schemas.withdraw("support")
        await two.schemas.publish("support", {"required": ["note"]})
        with pytest.raises(SchemaViolation):
            await agent.append(status("open"))
        with pytest.raises(AlreadyExists):
            await two.schemas.publish("support", Support)
        await two.schemas.publish("support", Support, replace=True)
        await agent.append(status("open"))
    assert [(each.type, each.published) for each in await listed(open_engine)] == [("support", True)]


async def listed(open_engine: OpenEngine) -> list[Any]:
    async with open_engine() as engine:
        return await engine.schemas.list()


async def test_one_that_was_withdrawn_and_published_anew_is_another(open_engine: OpenEngine) -> None:
    async with open_engine() as one, open_engine() as two:
        await one.schemas.publish("x", {"required": ["a"]})
        before = Schemas(two.log.store)
        await before.list()
        await one.schemas.withdraw("x")
        await one.schemas.publish("x", {"required": ["b"]})
        await before.list()
        before.validate("x", {"b": 1})


async def test_a_type_that_another_process_gives_an_agent_brings_its_schema(open_engine: OpenEngine) -> None:
    async with open_engine() as one, open_engine() as two:
        await one.schemas.publish("support", BUDGET)
        agent = two.agent("a")
        await agent.append(spend(1))  # this process knows it without a type
        await one.agent("a").describe(type="support")
        await two.schemas.list()
        with pytest.raises(SchemaViolation):
            await agent.append(spend(2))
        await agent.append(status("open"))
        await one.agent("a").describe(type="free")
        await two.schemas.list()
        await agent.update({"status": None})


async def test_agent_state_is_a_schema_and_keeps_a_member_named_document(embedded: Engine) -> None:
    embedded.schemas.register("worker", AgentState)
    agent = embedded.agent("a", type="worker")
    await agent.update({"status": "idle", "document": 5, "more": [1]})
    with pytest.raises(SchemaViolation) as caught:
        await agent.update({"performance": {"error_rate": "high"}})
    assert caught.value.details["path"] == "/performance/error_rate"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "thing"},
        {"$ref": "http://127.0.0.1:1/schema"},
        {"properties": {"a": {"$ref": "other.json"}}},
        {"a": object()},
        object(),
    ],
)
async def test_what_is_no_schema_is_refused(embedded: Engine, schema: Any) -> None:
    with pytest.raises(ConfigurationError):
        embedded.schemas.register("x", schema)
    with pytest.raises(ConfigurationError):
        await embedded.schemas.publish("x", schema)
    assert await embedded.schemas.list() == []


async def test_an_error_tells_the_rule_and_not_the_state(embedded: Engine) -> None:
    embedded.schemas.register("x", {"properties": {"secret": {"type": "integer"}, "tags": {"items": {"maxLength": 2}}}})
    for document, path in (({"secret": "hunter2"}, "/secret"), ({"tags": ["a", "hunter2"]}, "/tags/1")):
        with pytest.raises(SchemaViolation) as caught:
            await embedded.agent(f"a{uuid4()}", type="x").update(document)
        assert caught.value.details["path"] == path
        assert "hunter2" not in str(caught.value)


async def test_a_handle_of_another_type_does_not_write(embedded: Engine) -> None:
    await embedded.agent("a", type="support").append(status("open"))
    with pytest.raises(InvalidInput):
        await embedded.agent("a", type="coder").append(status("open"))
    assert await embedded.agent("a").version() == 1
