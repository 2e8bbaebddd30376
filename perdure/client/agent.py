"""The agent handle: the common few operations, bound to one agent. Cheap; thousands of them are fine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

from perdure.client.filters import check_events, event_filter
from perdure.client.parts import Parts
from perdure.client.state import State, Updated, VersionEntry
from perdure.client.states import Consistency, Patch
from perdure.engine.changes import Change, Path
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.expected import ANY, ExpectedVersion
from perdure.engine.log.log import Appended
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput

__all__ = ["Agent", "Consistency"]


class Agent:
    """One agent of one tenant. What it does is done by the engine's managers; their docstrings hold."""

    __slots__ = ("_engine", "_type", "name")

    def __init__(self, engine: Parts, name: AgentName, type: str = "") -> None:
        self._engine = engine
        self._type = type
        self.name = name

    def __repr__(self) -> str:
        return f"Agent({self.name.tenant!r}, {self.name.agent!r})"

    def append(
        self, events: Event | Sequence[Event], *, expected: ExpectedVersion = ANY, epoch: int | None = None
    ) -> Coroutine[Any, Any, Appended]:
        """Append events, all or none; durable when it returns. Errors: see `EventLog.append_events`, and SchemaViolation."""
        # Not `async`: a handle costs no coroutine of its own. What is wrong raises when it is awaited.
        log = self._engine.log
        if self._type:
            return self._append_typed([events] if isinstance(events, Event) else events, expected, epoch)
        if isinstance(events, Event):
            return log.append_event(self.name, events, expected=expected, epoch=epoch)
        return log.append_events(self.name, events, expected=expected, epoch=epoch)

    async def _append_typed(self, events: Sequence[Event], expected: ExpectedVersion, epoch: int | None) -> Appended:
        check_events(events)  # before the agent is made
        await self._be_of_type()
        return await self._engine.log.append_events(self.name, events, expected=expected, epoch=epoch)

    async def state(
        self,
        *,
        at_version: int | None = None,
        at_time: datetime | None = None,
        consistency: Consistency = "strong",
        at_least: int | None = None,
    ) -> State:
        """The state now, at a version, or at a moment.

        consistency: strong sees every acknowledged event; eventual is what the cache has. at_least: not older than this version (a write's
        own, to read it back). Raises AgentNotFound, VersionNotFound, InvalidInput.
        """
        states = self._engine.states
        if at_version is not None and at_time is not None:
            raise InvalidInput("at_version and at_time exclude each other")
        if at_version is not None:
            return await states.project_state(self.name, at_version)
        if at_time is not None:
            return await states.project_state_at_time(self.name, at_time)
        return await states.get_current_state(self.name, consistency=consistency, at_least=at_least)

    async def update(
        self, patch: Patch, *, type: str = "state_updated", expected: int | None = None, epoch: int | None = None, **envelope: Any
    ) -> Updated:
        """Change the state by an RFC 7396 merge patch (a map) or RFC 6902 operations (a list), as one event; see `States.update_state`."""
        if self._type:
            await self._be_of_type()
        return await self._engine.states.update_state(self.name, patch, type=type, expected=expected, epoch=epoch, **envelope)

    async def events(
        self,
        *,
        from_version: int = 1,
        to_version: int | None = None,
        follow: bool = False,
        types: Sequence[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        correlation_id: str | None = None,
        trace_id: str | None = None,
        as_stored: bool = False,
    ) -> AsyncIterator[RecordedEvent]:
        """The agent's events in order of version; with `follow` also those to come. as_stored: without upcasters."""
        where = event_filter(
            from_version=from_version,
            to_version=to_version,
            types=types,
            since=since,
            until=until,
            correlation_id=correlation_id,
            trace_id=trace_id,
        )
        async with aclosing(self._engine.log.stream_events(self.name, where, follow=follow, as_stored=as_stored)) as events:
            async for event in events:
                yield event

    async def diff(self, from_version: int, to_version: int) -> tuple[Change, ...]:
        """The changes that lead from one version's state to another's."""
        return await self._engine.states.diff(self.name, from_version, to_version)

    async def blame(self, path: str | Path) -> RecordedEvent | None:
        """The event that made what is at a path, None where none did; see `States.blame`."""
        return await self._engine.states.blame(self.name, path)

    async def history(self, *, limit: int = 100) -> list[VersionEntry]:
        """The newest versions and the events that made them, the newest first."""
        return await self._engine.states.get_version_history(self.name, limit=limit)

    async def version(self) -> int:
        """The newest version in the log."""
        return await self._engine.log.version(self.name)

    async def describe(self, *, type: str, labels: Mapping[str, str] | None = None) -> None:
        """Set what the directory says of the agent; the agent is made when it is not there. Its labels are replaced."""
        await self._engine.directory.describe(self.name, type=type, labels=labels or {})

    async def _be_of_type(self) -> None:
        """Give a new agent the type that this handle was made with, before its first event. Raises InvalidInput where it has another."""
        known = await self._engine.directory.obtain_type(self.name, self._type)
        if known != self._type:
            raise InvalidInput(
                f"agent {self.name.agent!r} is of type {known!r}, not {self._type!r}", tenant=self.name.tenant, agent=self.name.agent
            )
        self._type = ""
