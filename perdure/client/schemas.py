"""Schemas of states by agent type: registered in this process, or published for every process of the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from perdure import limits
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Document
from perdure.engine.schemas import SchemaRegistry, json_schema_of
from perdure.errors import AlreadyExists, IntegrityError, LimitExceeded

__all__ = ["SCHEMAS_REFRESH_S", "SCHEMAS_SCOPE", "ListedSchema", "Schemas"]

SCHEMAS_SCOPE: Final = "schemas"
SCHEMAS_REFRESH_S: Final = 30.0
"""How long a process may go on without a schema that another one has published."""
_TYPES_CHANGED: Final = ""
"""Name of the document whose revision counts changes of agents' types; no agent type has an empty name."""


class ListedSchema(msgspec.Struct, frozen=True):
    """A schema in force here. published: every process of the log knows it; else this one only. schema: as JSON Schema."""

    type: str
    published: bool
    schema: dict[str, Any]


class Schemas:
    """What the states of an agent type must satisfy. It is checked when an append would lead to a state, never when events are replayed.

    `register` holds in this process and takes types of Python and JSON Schemas; `publish` keeps a JSON Schema in the log, for every process
    and for the command. Where both stand, both must be satisfied. A type without a schema takes every state.
    """

    def __init__(self, store: LogStore, types_changed: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._types_changed = types_changed
        """Called when another process gave an agent another type and a schema is concerned."""
        self._types_revision = 0
        self._registered = SchemaRegistry()
        self._published = SchemaRegistry()
        self._documents: dict[str, Document] = {}
        self.types: frozenset[str] = frozenset()
        """The agent types that have a schema, as this process knows them."""
        self._fresh_until = float("-inf")
        self._reading = asyncio.Lock()

    def register(self, agent_type: str, schema: Any, *, replace: bool = False) -> None:
        """Check states of the type in this process from now on.

        schema: a msgspec Struct (`AgentState` too), dataclass, TypedDict, any type that msgspec can check, or a JSON Schema as a map.
        Raises ConfigurationError (no schema), AlreadyExists (another one, and not `replace`), MissingDependency (JSON Schema's extra).
        """
        self._registered.register(agent_type, schema, replace=replace)
        self._count()

    async def publish(self, agent_type: str, schema: Any, *, replace: bool = False) -> None:
        """Check states of the type in every process: here at once, elsewhere within `SCHEMAS_REFRESH_S`. As `register`; and LimitExceeded."""
        what = f"the schema of agent type {agent_type!r}"
        plain = json_schema_of(schema, what)
        probe = SchemaRegistry()
        probe.register(agent_type, plain)
        await self._read()
        known = self._documents.get(agent_type)
        if known is None and len(self._documents) >= limits.SCHEMAS_MAX:
            raise LimitExceeded(f"{len(self._documents)} agent types have a schema, the limit")
        if self._published.schema(agent_type) not in (None, plain) and not replace:
            raise AlreadyExists(f"agent type {agent_type!r} has a schema already", hint="pass replace=True to put another in its place")
        value = msgspec.json.encode(plain, order="deterministic")
        if await self._store.put_document(SCHEMAS_SCOPE, agent_type, value, expected=known.revision if known else 0) is None:
            raise AlreadyExists(f"{what} was published by another process at this moment", hint="look at it, then decide anew")
        await self._read()

    async def withdraw(self, agent_type: str) -> None:
        """Forget the schema of a type, in this process and for all."""
        self._registered.forget(agent_type)
        await self._store.delete_document(SCHEMAS_SCOPE, agent_type)
        await self._read()

    async def list(self) -> list[ListedSchema]:
        """The schemas in force, by type; of a type with both, both."""
        await self._read()
        return [
            ListedSchema(agent_type, published, json_schema_of(registry.schema(agent_type), agent_type))
            for agent_type in sorted({*self._registered.types(), *self._published.types()})
            for published, registry in ((False, self._registered), (True, self._published))
            if agent_type in registry
        ]

    async def note_type(self, before: str, after: str) -> None:
        """An agent has got another type: where a schema is concerned, every process reads the agents' rows again, within `SCHEMAS_REFRESH_S`."""
        if before != after and not self.types.isdisjoint((before, after)):
            await self._store.put_document(SCHEMAS_SCOPE, _TYPES_CHANGED, b"", expected=None)

    @property
    def stale(self) -> bool:
        """Whether it is time to `refresh`."""
        return time.monotonic() >= self._fresh_until

    async def refresh(self) -> None:
        """Take over what others have published; many callers share one query. Raises Unavailable."""
        async with self._reading:
            if self.stale:
                await self._read()

    def validate(self, agent_type: str, document: Mapping[str, Any]) -> None:
        """Raise SchemaViolation, with a JSON pointer as `details["path"]`, unless the document may be a state of the type."""
        self._registered.validate(agent_type, document)
        self._published.validate(agent_type, document)

    async def _read(self) -> None:
        there = {document.name: document for document in await self._store.list_documents(SCHEMAS_SCOPE)}
        changed = there.pop(_TYPES_CHANGED, None)
        if changed is not None and changed.revision != self._types_revision:
            self._types_revision = changed.revision
            self._types_changed()
        for gone in self._documents.keys() - there.keys():
            self._published.forget(gone)
            del self._documents[gone]
        for name, document in there.items():
            # Compared with its content: one that was withdrawn and published again begins with the same revision.
            if self._documents.get(name) != document:
                self._published.register(name, _decode(document), replace=True)
                self._documents[name] = document
        self._count()
        self._fresh_until = time.monotonic() + SCHEMAS_REFRESH_S

    def _count(self) -> None:
        self.types = frozenset((*self._registered.types(), *self._published.types()))


def _decode(document: Document) -> dict[str, Any]:
    try:
        return msgspec.json.decode(document.value, type=dict[str, Any])
    except msgspec.MsgspecError as problem:
        raise IntegrityError(f"the published schema of agent type {document.name!r} is damaged: {problem}") from problem
