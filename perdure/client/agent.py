"""The agent handle: the common few operations, bound to one agent. Cheap; thousands of them are fine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from perdure.client.state import State, Updated
from perdure.engine.changes import Change, Path, parse_path
from perdure.engine.diff import diff
from perdure.engine.digest import digest
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.fold import apply
from perdure.engine.log.contract import AgentName, EventFilter, to_microseconds
from perdure.engine.log.expected import ANY, ExpectedVersion
from perdure.engine.log.log import Appended
from perdure.engine.patches import from_json_patch, from_merge_patch
from perdure.errors import AgentNotFound, Conflict, InvalidInput

if TYPE_CHECKING:
    from perdure.client.engine import Engine

__all__ = ["Agent", "Consistency"]

Consistency = Literal["strong", "eventual"]
UPDATE_ATTEMPTS_MAX = 5


class Agent:
    """One agent of one tenant."""

    def __init__(self, engine: Engine, name: AgentName) -> None:
        self._engine = engine
        self.name = name

    def __repr__(self) -> str:
        return f"Agent({self.name.tenant!r}, {self.name.agent!r})"

    async def append(self, events: Event | Sequence[Event], *, expected: ExpectedVersion = ANY, epoch: int | None = None) -> Appended:
        """Append events, all or none; durable when it returns. Errors: see `EventLog.append_events`."""
        listed = [events] if isinstance(events, Event) else events
        return await self._engine.log.append_events(self.name, listed, expected=expected, epoch=epoch)

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
        self,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        type: str = "state_updated",
        expected: int | None = None,
        epoch: int | None = None,
        actor: str = "",
    ) -> Updated:
        """Change the state by an RFC 7396 merge patch (a map) or RFC 6902 operations (a list), as one event.

        It is checked against the state that it changes: without `expected` it is decided anew when somebody else was faster. Raises
        Conflict, InvalidPatch, Fenced.
        """
        for _ in range(UPDATE_ATTEMPTS_MAX):
            before, version = await self._before(expected)
            changes = from_merge_patch(patch) if isinstance(patch, Mapping) else from_json_patch(before, patch)
            event = Event(type, changes=changes, actor=actor)
            try:
                done = await self.append(event, expected=version, epoch=epoch)
            except Conflict:
                if expected is not None:
                    raise
                continue
            after, _warnings = apply(before, changes)
            return Updated(version, done.version, changes, digest(after).hex(), after)
        raise Conflict("others change this agent all the time", tenant=self.name.tenant, agent=self.name.agent)

    async def _before(self, expected: int | None) -> tuple[dict[str, Any], int]:
        try:
            state = await self.state()
        except AgentNotFound:
            state = State(self.name.tenant, self.name.agent, 0, 0, None, {})
        if expected is not None and state.version != expected:
            raise Conflict(
                f"agent {self.name.agent!r} is at version {state.version}, expected {expected}",
                tenant=self.name.tenant,
                agent=self.name.agent,
                version=state.version,
            )
        return state.document, state.version

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
    ) -> AsyncIterator[RecordedEvent]:
        """The agent's events in order of version; with `follow` also those to come."""
        where = EventFilter(
            types=tuple(types),
            from_version=from_version,
            to_version=to_version,
            since_us=None if since is None else to_microseconds(since),
            until_us=None if until is None else to_microseconds(until),
            correlation_id=correlation_id,
            trace_id=trace_id,
        )
        async for event in self._engine.log.stream_events(self.name, where, follow=follow):
            yield event

    async def diff(self, from_version: int, to_version: int) -> tuple[Change, ...]:
        """The changes that lead from one version's state to another's."""
        before = await self.state(at_version=from_version)
        after = await self.state(at_version=to_version)
        return diff(before.document, after.document)

    async def blame(self, path: str | Path) -> RecordedEvent | None:
        """The newest event that changed what is at a path (or above or below it), None where none did."""
        wanted = parse_path(path)
        page_start: int | None = None
        while True:
            where = EventFilter(to_version=page_start)
            page = await self._engine.log.get_events(self.name, where, descending=True)
            for event in page:
                if any(_concerns(change, wanted) for change in event.changes):
                    return event
            if not page or page[-1].version == 1:
                return None
            page_start = page[-1].version - 1

    async def version(self) -> int:
        """The newest version in the log."""
        return await self._engine.log.version(self.name)

    async def describe(self, *, type: str, labels: Mapping[str, str] | None = None) -> None:
        """Set what the directory says of the agent."""
        record, _ = await self._engine.log.vault.obtain(self.name)
        await self._engine.log.store.describe_agent(record, type=type, labels=labels or {})
        self._engine.log.vault.forget(self.name)


def _concerns(change: Change, wanted: Path) -> bool:
    path = change.path
    if change.op == "merge" and isinstance(change.value, dict) and len(path) < len(wanted) and wanted[: len(path)] == path:
        return wanted[len(path)] in change.value
    shorter = min(len(path), len(wanted))
    return path[:shorter] == wanted[:shorter]
