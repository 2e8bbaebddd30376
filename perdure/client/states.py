"""States by their agents' names: now, at a version, at a moment; what led to them, and their next version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from perdure.client.filters import check_limit, check_name, check_version, event_filter, moment
from perdure.client.log import Log
from perdure.client.state import AppliedChange, State, Updated, VersionEntry
from perdure.client.turns import Turns
from perdure.engine.blame import Tracker, concerns, through_lists
from perdure.engine.changes import Change, Path, parse_path
from perdure.engine.diff import diff
from perdure.engine.digest import digest
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.fold import MISSING, apply, lookup
from perdure.engine.log.records import AgentName, EventFilter
from perdure.engine.log.versions import no_version
from perdure.engine.patches import from_json_patch, from_merge_patch
from perdure.engine.readonly import freeze
from perdure.errors import AgentNotFound, Compacted, Conflict, Fenced, InvalidInput
from perdure.projections.reader import ReadState, StateReader

__all__ = ["UPDATE_ATTEMPTS_MAX", "Consistency", "Patch", "States"]

Consistency = Literal["strong", "eventual"]
Patch = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""An RFC 7396 merge patch (a map), or RFC 6902 operations (a list)."""
UPDATE_ATTEMPTS_MAX: Final = 8


class States:
    """`engine.states`: reads of states now, at a version and at a time; updates decided on a state; history, diff and blame of its parts."""

    def __init__(self, reader: StateReader, log: Log) -> None:
        self._reader = reader
        self._log = log
        self._turns = Turns()

    @property
    def reader(self) -> StateReader:
        """What reads them."""
        return self._reader

    # --- reading ---
    async def get_current_state(self, name: AgentName, *, consistency: Consistency = "strong", at_least: int | None = None) -> State:
        """The state now. strong: every acknowledged event; eventual: what the cache has. at_least: not older than this version.

        Raises AgentNotFound, InvalidInput, DeadlineExceeded (the version did not come), Unavailable.
        """
        check_name(name)
        if at_least is not None:
            check_version("at_least", at_least)
        if consistency == "strong":
            await self._log.settle(name)
        return _state(name, await self._reader.state(*name, consistency=consistency, at_least=at_least))

    async def project_state(self, name: AgentName, version: int) -> State:
        """The state at a version, 0 being the empty one. Raises VersionNotFound, AgentNotFound, InvalidInput."""
        await self._log.settle(name)
        return _state(name, await self._reader.state_at_version(*name, check_version("version", version)))

    async def project_state_at_time(self, name: AgentName, time: datetime) -> State:
        """The state at a moment: of the newest version at or before it; version 0 before the first event."""
        moment("time", time)
        await self._log.settle(name)
        return _state(name, await self._reader.state_at_time(*name, time))

    async def diff(self, name: AgentName, from_version: int, to_version: int) -> tuple[Change, ...]:
        """The changes that lead from one version's state to another's."""
        before = await self.project_state(name, from_version)
        after = await self.project_state(name, to_version)
        return diff(before.document, after.document)

    async def blame(self, name: AgentName, path: str | Path) -> RecordedEvent | None:
        """The newest event that made what is at a path (or changed something below it), None where none did.

        An element of a list is followed to where it came from, whatever was inserted before it or deleted since. The event is as it is stored.
        Raises Compacted where it was removed, AgentNotFound, InvalidPath.
        """
        wanted = parse_path(path)
        found = await (self._made_by(name, wanted) if through_lists(wanted) else self._newest_touching(name, wanted))
        if found is None:
            await self._check_told(name, wanted)
        return found

    async def _made_by(self, name: AgentName, wanted: Path) -> RecordedEvent | None:
        floor = await self._log.floor(name)
        tracker = Tracker(wanted)
        document = (await self.project_state(name, floor.version - 1)).document if floor.version > 1 else {}
        async for event in self._log.stream_events(name, EventFilter(from_version=floor.version), as_stored=True):
            for change in event.changes:
                tracker.take(event.version, document, change)
                document, _warnings = apply(document, (change,), own=True)
        version = tracker.version()
        return None if version is None else (await self._log.get_events(name, EventFilter((), version, version), as_stored=True))[0]

    async def _newest_touching(self, name: AgentName, wanted: Path) -> RecordedEvent | None:
        to_version: int | None = None
        while page := await self._log.get_events(name, EventFilter(to_version=to_version), descending=True, as_stored=True):
            for event in page:
                if any(concerns(change, wanted) for change in event.changes):
                    return event
            if page[-1].version == 1:
                break
            to_version = page[-1].version - 1
        return None

    async def _check_told(self, name: AgentName, wanted: Path) -> None:
        """Raise Compacted where something is at the path that no event which is left has made."""
        floor = await self._log.floor(name)
        if floor.version > 1 and lookup((await self.get_current_state(name)).document, wanted) is not MISSING:
            raise Compacted(
                f"what is there was made before version {floor.version}, and the events before it were removed",
                hint=f"it stands in the state of version {floor.version - 1}",
                tenant=name.tenant,
                agent=name.agent,
                version=floor.version - 1,
            )

    async def get_version_history(
        self, name: AgentName, *, from_version: int = 1, to_version: int | None = None, limit: int = 100, descending: bool = True
    ) -> list[VersionEntry]:
        """Versions and the events that made them, the newest first; at most `limit`."""
        where = event_filter(from_version=from_version, to_version=to_version)
        events = await self._log.get_events(name, where, limit=check_limit(limit), descending=descending, as_stored=True)
        return [_entry(event) for event in events]

    async def get_changes(self, name: AgentName, version: int) -> list[AppliedChange]:
        """What a version changed, with the values before and after each change; they are read from the log, not stored."""
        before = await self.project_state(name, check_version("version", version, least=1) - 1)
        found = await self._log.get_events(name, event_filter(from_version=version, to_version=version), as_stored=True)
        if not found:
            raise no_version(name, version, version - 1)
        document = before.document
        applied: list[AppliedChange] = []
        for change in found[0].changes:
            after, _warnings = apply(document, (change,))
            applied.append(AppliedChange(change.op, change.pointer, _value(document, change.path), _value(after, change.path)))
            document = after
        return applied

    # --- writing ---
    async def update_state(
        self,
        name: AgentName,
        patch: Patch,
        *,
        type: str = "state_updated",
        expected: int | None = None,
        epoch: int | None = None,
        **envelope: Any,
    ) -> Updated:
        """Change the state by an RFC 7396 merge patch (a map) or RFC 6902 operations (a list), as one event.

        It is decided on the state that it changes: without `expected` it is decided anew when somebody else was faster. envelope: further
        fields of the event, e.g. actor, correlation_id, data. Raises Conflict, InvalidPatch, SchemaViolation, Fenced, LimitExceeded.
        """
        check_name(name)
        if expected is not None:
            check_version("expected", expected)
        event = _event(type, envelope)
        async with self._turns.of([name]):
            return await self._update(name, patch, event, expected, epoch)

    async def _update(self, name: AgentName, patch: Patch, event: Event, expected: int | None, epoch: int | None) -> Updated:
        for _ in range(UPDATE_ATTEMPTS_MAX):
            before, version = await self._before(name, expected)
            changes = from_merge_patch(patch) if isinstance(patch, Mapping) else from_json_patch(before, patch)
            try:
                done = await self._log.append_event(name, _with(event, changes), expected=version, epoch=epoch)
            except Fenced:
                raise
            except Conflict:
                if expected is not None:
                    raise
                continue
            after, _warnings = apply(before, changes)
            (written,) = await self._log.get_events_by_version(name, done.version)
            return Updated(version, done.version, changes, (written,), digest(after).hex(), written.time, after)
        raise Conflict(
            f"others changed agent {name.agent!r} {UPDATE_ATTEMPTS_MAX} times meanwhile", hint="retry", tenant=name.tenant, agent=name.agent
        )

    async def _before(self, name: AgentName, expected: int | None) -> tuple[dict[str, Any], int]:
        try:
            state = await self.get_current_state(name)
        except AgentNotFound:
            state = State(name.tenant, name.agent, 0, 0, None, {})
        if expected is not None and state.version != expected:
            raise Conflict(
                f"agent {name.agent!r} is at version {state.version}, expected {expected}",
                tenant=name.tenant,
                agent=name.agent,
                version=state.version,
            )
        return state.document, state.version


def _state(name: AgentName, read: ReadState) -> State:
    return State(name.tenant, name.agent, read.version, read.epoch, read.time, read.document)


def _event(type: str, envelope: Mapping[str, Any]) -> Event:
    if unknown := envelope.keys() - (set(Event.__struct_fields__) - {"type", "changes"}):
        raise InvalidInput(f"an event has no field {sorted(unknown)[0]!r}", hint="e.g. actor, correlation_id, data, metadata")
    return Event(type, **envelope)


def _with(event: Event, changes: tuple[Change, ...]) -> Event:
    fields = {name: getattr(event, name) for name in Event.__struct_fields__}
    return Event(**{**fields, "changes": changes})


def _entry(event: RecordedEvent) -> VersionEntry:
    paths = tuple(dict.fromkeys(change.pointer for change in event.changes))
    return VersionEntry(event.version, event.time, event.epoch, event.type, event.id, event.actor, event.correlation_id, paths)


def _value(document: dict[str, Any], path: Path) -> Any:
    found = lookup(document, path)
    return None if found is MISSING else freeze(found)
