"""Schemas per agent type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest

from perdure.engine.agent_state import AgentState
from perdure.engine.schemas import SchemaRegistry, json_schema_of
from perdure.errors import AlreadyExists, ConfigurationError, LimitExceeded, SchemaViolation


class Order(msgspec.Struct):
    items: list[int]
    note: str = ""


class Support(msgspec.Struct):
    status: str
    orders: dict[str, Order] = {}
    history: list[Order] = []


class Dialog(TypedDict):
    messages: list[dict[str, Any]]


@dataclass
class Counter:
    count: int


@pytest.fixture
def registry() -> SchemaRegistry:
    registry = SchemaRegistry()
    registry.register("support", Support)
    return registry


def test_a_state_that_fits_is_accepted_with_what_the_schema_does_not_name(registry: SchemaRegistry) -> None:
    registry.validate("support", {"status": "open", "orders": {"a": {"items": [1]}}, "more": {"x": 1}})


def test_a_type_without_a_schema_takes_everything(registry: SchemaRegistry) -> None:
    registry.validate("other", {"status": 5})


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({}, ""),
        ({"status": 5}, "/status"),
        ({"status": "", "history": [{"items": [1]}, {"items": [1, "x"]}]}, "/history/1/items/1"),
        ({"status": "", "orders": {"a": {"items": None}}}, "/orders/*/items"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_with_its_place(registry: SchemaRegistry, document: dict[str, Any], path: str) -> None:
    with pytest.raises(SchemaViolation) as caught:
        registry.validate("support", document)
    assert caught.value.details["path"] == path


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (Dialog, {"messages": [{"role": "user"}]}, {"messages": [1]}),
        (Counter, {"count": 1}, {"count": 1.5}),
        (dict[str, int], {"a": 1}, {"a": "x"}),
        (AgentState, {"status": "idle"}, {"performance": 1}),
    ],
)
def test_many_kinds_of_types_are_schemas(schema: Any, good: Any, bad: Any) -> None:
    registry = SchemaRegistry()
    registry.register("x", schema)
    registry.validate("x", good)
    with pytest.raises(SchemaViolation):
        registry.validate("x", bad)
    assert registry.types() == ["x"]


def test_a_schema_is_replaced_only_on_purpose(registry: SchemaRegistry) -> None:
    registry.register("support", Support)
    with pytest.raises(AlreadyExists):
        registry.register("support", Order)
    registry.register("support", Order, replace=True)
    registry.validate("support", {"items": []})


@pytest.mark.parametrize("schema", [object(), "Support", 5])
def test_what_is_no_type_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigurationError):
        SchemaRegistry().register("x", schema)


@pytest.mark.parametrize(
    ("schema", "good", "bad", "path"),
    [
        ({"required": ["a"]}, {"a": 1}, {}, ""),
        ({"properties": {"a": {"items": {"type": "integer"}}}}, {"a": (1, 2)}, {"a": [1, "x"]}, "/a/1"),
        ({"properties": {"a/b": {"maximum": 3}}}, {"a/b": 3}, {"a/b": 2**64 - 1}, "/a~1b"),
        ({"$defs": {"n": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/n"}}}, {"n": 1}, {"n": "1"}, "/n"),
        ({"properties": {"p": {"pattern": "^(a+)+$"}}}, {"p": "aa"}, {"p": "a" * 60 + "b"}, "/p"),
        ({"properties": {"raw": {"type": "string"}}}, {"raw": b"\x00"}, {"raw": 1, "more": b""}, "/raw"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"const": 1}}}, {"a": 1}, {"a": 2}, "/a"),
    ],
)
def test_json_schemas_are_schemas(schema: Any, good: Any, bad: Any, path: str) -> None:
    registry = SchemaRegistry()
    registry.register("x", schema)
    registry.validate("x", good)
    with pytest.raises(SchemaViolation) as caught:
        registry.validate("x", bad)
    assert caught.value.details["path"] == path


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "thing"},
        {"$ref": "http://127.0.0.1:1/x"},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"$ref": "#/nowhere"},
        {"$schema": "http://127.0.0.1:1/x"},
        {"properties": {"p": {"pattern": "(?<=a)b"}}},
        {"a": float("nan"), "type": object()},
    ],
)
def test_what_is_no_json_schema_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigurationError):
        SchemaRegistry().register("x", schema)


def test_a_schema_may_not_be_endless() -> None:
    with pytest.raises(LimitExceeded):
        SchemaRegistry().register("x", {"enum": ["x" * 1_000] * 1_000})


def test_a_type_and_its_json_schema_refuse_the_same() -> None:
    registry = SchemaRegistry()
    registry.register("type", Support)
    registry.register("json", json_schema_of(Support, "it"))
    for document in ({"status": ""}, {}, {"status": 5}, {"status": "", "history": [{"items": [1, "x"]}]}, {"status": "", "more": 1}):
        outcomes = []
        for name in ("type", "json"):
            try:
                registry.validate(name, document)
                outcomes.append(None)
            except SchemaViolation as problem:
                outcomes.append(problem.details["path"])
        assert outcomes[0] == outcomes[1]
