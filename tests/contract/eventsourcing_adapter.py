"""The log behind the recorders of the `eventsourcing` package: a synchronous facade over `EventLog`, which runs on a loop of its own.

An originator is an agent, a topic is an event's type, and the notification id is the offset in the log's only partition. Tracking records are
events of agents of a second tenant, written in the same append as the events that they belong to.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar
from uuid import UUID

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    IntegrityError,
    Notification,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    Tracking,
    TrackingRecorder,
)

from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.contract import LogStore
from perdure.engine.log.expected import NO_STREAM
from perdure.engine.log.log import AgentAppend, EventLog
from perdure.engine.log.records import AgentName, EventFilter
from perdure.errors import AgentNotFound, Conflict, Unavailable
from perdure.testing.log_rows import LogUnderTest

EVENTS = "events"
TRACKING = "tracking"
PAGE_EVENTS = 500
POLL_S = 0.05

T = TypeVar("T")


class SyncLog:
    """An event log, used from any thread.

    Whoever has asked gets an answer, also when the log is closed meanwhile: the public cases do not join the threads that read beside their
    writers, and such a thread, waiting for a loop that has ended, would keep the process from ending.
    """

    def __init__(self, opener: Callable[[], Awaitable[LogStore]]) -> None:
        self._lock = threading.Lock()
        self._asked: set[Future[Any]] = set()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._under = LogUnderTest(opener)
        self.log: EventLog = self.run(self._under.open_log())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, run on the log's loop."""
        with self._lock:
            if self._closed:
                work.close()
                raise Unavailable("the log is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._asked.add(future)
        try:
            return future.result()
        finally:
            with self._lock:
                self._asked.discard(future)

    def close(self) -> None:
        """Answer whoever has asked, close the log and end its loop."""
        with self._lock:
            self._closed = True
            asked = list(self._asked)
        wait(asked)
        asyncio.run_coroutine_threadsafe(self._under.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class PerdureAggregateRecorder(AggregateRecorder):
    """Events of aggregates. Versions of an originator may begin anywhere and go on without a gap."""

    def __init__(self, sync: SyncLog) -> None:
        self.sync = sync
        self.log = sync.log
        self._first: dict[AgentName, int] = {}  # the originator's version that our version 1 is

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        self.sync.run(self._insert(stored_events, kwargs.get("tracking")))
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        return self.sync.run(self._select(_name(originator_id), gt, lte, desc, limit))

    async def _insert(self, stored: Sequence[StoredEvent], tracking: Tracking | None) -> list[int]:
        appends, places = await self._appends(stored)
        if tracking is not None:
            appends.append(await self._track(tracking))
        if not appends:
            return []
        try:
            await self.log.append_many(appends)
        except Conflict as problem:
            raise IntegrityError(str(problem)) from problem
        return [await self._offset(name, event) for name, event in places]

    async def _appends(self, stored: Sequence[StoredEvent]) -> tuple[list[AgentAppend], list[tuple[AgentName, Event]]]:
        grouped: dict[AgentName, list[StoredEvent]] = {}
        for each in stored:
            grouped.setdefault(_name(each.originator_id), []).append(each)
        appends, made = [], {}
        for name, group in grouped.items():
            versions = [each.originator_version for each in group]
            if versions != list(range(versions[0], versions[0] + len(versions))):
                raise IntegrityError(f"versions {versions} of {name.agent} do not follow each other")
            first = await self._first_version(name)
            if first is not None and versions[0] < first:
                raise IntegrityError(f"version {versions[0]} of {name.agent} is before its first")
            events = [_event(each) for each in group]
            made.update({id(each): event for each, event in zip(group, events, strict=True)})
            appends.append(AgentAppend(name, events, NO_STREAM if first is None else versions[0] - first))
        return appends, [(_name(each.originator_id), made[id(each)]) for each in stored]

    async def _offset(self, name: AgentName, event: Event) -> int:
        return (await self.log.get_event(name, event.id)).offset

    async def _first_version(self, name: AgentName) -> int | None:
        if name not in self._first:
            try:
                events = await self.log.get_events(name, limit=1)
            except AgentNotFound:
                return None
            if not events:
                return None
            self._first[name] = events[0].data["version"]
        return self._first[name]

    async def _select(self, name: AgentName, gt: int | None, lte: int | None, desc: bool, limit: int | None) -> list[StoredEvent]:
        first = await self._first_version(name)
        if first is None:
            return []
        from_version = 1 if gt is None else max(1, gt - first + 2)
        where = EventFilter(from_version=from_version, to_version=None if lte is None else lte - first + 1)
        if limit is not None:
            events = await self.log.get_events(name, where, limit=limit, descending=desc)
        else:
            events = [event async for event in self.log.stream_events(name, where)]
            events = events[::-1] if desc else events
        return [_stored(event) for event in events]

    async def _last_tracked(self, application: str) -> tuple[int, int | None]:
        try:
            events = await self.log.get_events(AgentName(TRACKING, application), limit=1, descending=True)
        except AgentNotFound:
            events = []
        return (events[0].version, events[0].data) if events else (0, None)

    async def _track(self, tracking: Tracking) -> AgentAppend:
        version, newest = await self._last_tracked(tracking.application_name)
        if newest is not None and tracking.notification_id <= newest:
            raise IntegrityError(f"{tracking} is not after {newest}")
        return AgentAppend(AgentName(TRACKING, tracking.application_name), [Event("tracked", data=tracking.notification_id)], version)


class PerdureApplicationRecorder(PerdureAggregateRecorder, ApplicationRecorder):
    """Events of aggregates, and all of them in one sequence."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        return self.sync.run(self._insert(stored_events, kwargs.get("tracking")))

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        after = 0 if start is None else start - 1 if inclusive_of_start else start
        return self.sync.run(self._notifications(after, limit, stop, EventFilter(types=tuple(topics))))

    async def _notifications(self, after: int, limit: int, stop: int | None, where: EventFilter) -> list[Notification]:
        found = await self.log.vault.open_all(await self.log.store.read_tenant(EVENTS, 0, after, where, limit))
        return [_notification(event) for event in found if stop is None or event.offset <= stop]

    def max_notification_id(self) -> int | None:
        return self.sync.run(self.log.store.positions())[0].offset or None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        return PerdureSubscription(self, gt, topics)


class PerdureTrackingRecorder(TrackingRecorder):
    """How far applications have been processed."""

    def __init__(self, sync: SyncLog) -> None:
        self._events = PerdureAggregateRecorder(sync)

    def insert_tracking(self, tracking: Tracking) -> None:
        self._events.insert_events([], tracking=tracking)

    def max_tracking_id(self, application_name: str) -> int | None:
        return self._events.sync.run(self._events._last_tracked(application_name))[1]


class PerdureProcessRecorder(PerdureApplicationRecorder, ProcessRecorder):
    """Both, atomically."""

    def insert_tracking(self, tracking: Tracking) -> None:
        self.insert_events([], tracking=tracking)

    def max_tracking_id(self, application_name: str) -> int | None:
        return self.sync.run(self._last_tracked(application_name))[1]


class PerdureSubscription(Subscription[PerdureApplicationRecorder]):
    """Notifications for ever, until it is stopped."""

    def __init__(self, recorder: PerdureApplicationRecorder, gt: int | None, topics: Sequence[str]) -> None:
        super().__init__(recorder, gt, topics)
        self._signal = recorder.log.store.signal()
        self._waiting: list[Notification] = []

    def __next__(self) -> Notification:
        while not self._has_been_stopped:
            if self._waiting:
                return self._waiting.pop(0)
            after = self._last_notification_id or 0
            self._waiting = list(self._recorder.select_notifications(after, PAGE_EVENTS, None, self._topics, inclusive_of_start=False))
            if self._waiting:
                self._last_notification_id = self._waiting[-1].id
            else:
                self._recorder.sync.run(self._signal.wait(POLL_S))
        raise StopIteration


def _name(originator_id: UUID | str) -> AgentName:
    return AgentName(EVENTS, str(originator_id))


def _event(stored: StoredEvent) -> Event:
    is_uuid = isinstance(stored.originator_id, UUID)
    return Event(stored.topic, data={"version": stored.originator_version, "state": stored.state, "uuid": is_uuid})


def _parts(event: RecordedEvent) -> tuple[UUID | str, int, str, bytes]:
    originator = UUID(event.agent) if event.data["uuid"] else event.agent
    return originator, event.data["version"], event.type, event.data["state"]


def _stored(event: RecordedEvent) -> StoredEvent:
    return StoredEvent(*_parts(event))


def _notification(event: RecordedEvent) -> Notification:
    originator_id, version, topic, state = _parts(event)
    return Notification(originator_id=originator_id, originator_version=version, topic=topic, state=state, id=event.offset)
