"""The log as people hold it: the engine's log, with schemas before what is written and upcasters behind what is read."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from perdure import limits
from perdure.client.checked import append_checked
from perdure.client.fidelity import Fidelity
from perdure.client.filters import check_events, check_expected, check_limit, check_name, event_filter
from perdure.client.replaying import Replayed, Replaying
from perdure.client.schemas import Schemas
from perdure.client.training import Trainer
from perdure.client.turns import Turns
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.chain import EMPTY_CHAIN, check_chain
from perdure.engine.log.contract import LogStore
from perdure.engine.log.expected import ANY, Expected, ExpectedVersion
from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.log import AgentAppend, Appended, EventLog
from perdure.engine.log.records import AgentName, EventFilter
from perdure.engine.upcasters import UpcasterRegistry
from perdure.engine.vault import Vault
from perdure.errors import InvalidInput
from perdure.projections.reader import StateReader

__all__ = ["EventPage", "Log"]


class EventPage(msgspec.Struct, frozen=True):
    """Events of one agent. next_version: hand it in as from_version (to_version where descending) to go on; None: these were the last."""

    events: list[RecordedEvent]
    next_version: int | None


class Log(EventLog):
    """Appends and reads of one log. What stands in `EventLog` holds here too.

    schemas: checked before anything is written. fidelity: which agents' events may be merged. upcasters: bring events of an older schema version
    up to date when they are read; states are folded from events as they are stored, always.
    """

    def __init__(self, store: LogStore, vault: Vault) -> None:
        super().__init__(store, vault)
        self.schemas = Schemas(store, vault.forget_all)
        self.upcasters = UpcasterRegistry()
        self.fidelity = Fidelity(vault, self.schemas, self._write)
        self.trainer: Trainer | None = None
        """Trains dictionaries by itself; None: nobody does."""
        self._turns = Turns()
        self.reader: StateReader | None = None

    def read_with(self, reader: StateReader) -> None:
        """The reader of the states that schemas are checked against and that batches are merged on."""
        self.reader = self.fidelity.reader = reader

    async def close(self) -> None:
        """Write what waits and what is queued, finish a training that is under way, and close the store."""
        try:
            await self.fidelity.close()
            if self.trainer is not None:
                await self.trainer.close()
        finally:
            await super().close()

    # --- appending ---
    # Not `async`, and the common case first: what nobody has asked for shall cost an append nothing. What is wrong raises when it is awaited.
    def append_event(
        self, name: AgentName, event: Event, *, expected: ExpectedVersion = ANY, epoch: int | None = None
    ) -> Coroutine[Any, Any, Appended]:
        """As `append_events`, of one event."""
        if not self._straight(name, expected):
            return self._append_one(AgentAppend(name, (event,), expected, epoch))
        if self.trainer is not None:
            self.trainer.note(name.tenant, 1)
        return super().append_event(name, event, expected=expected, epoch=epoch)

    def append_events(
        self, name: AgentName, events: Sequence[Event], *, expected: ExpectedVersion = ANY, epoch: int | None = None
    ) -> Coroutine[Any, Any, Appended]:
        """Append events to one agent, all or none. Raises SchemaViolation (nothing is stored), and what `EventLog.append_events` raises."""
        if (type(events) is not list and type(events) is not tuple) or not self._straight(name, expected):
            return self._append_one(AgentAppend(name, events, expected, epoch))
        if self.trainer is not None:
            self.trainer.note(name.tenant, len(events))
        return super().append_events(name, events, expected=expected, epoch=epoch)

    async def append_many(self, appends: Sequence[AgentAppend]) -> list[Appended]:
        """Append to several agents in one atomic step; as `append_events`."""
        for append in appends:
            if (type(append.events) is not list and type(append.events) is not tuple) or not self._straight(append.name, append.expected):
                return await self._append_checked(appends)
        if self.trainer is not None:
            for append in appends:
                self.trainer.note(append.name.tenant, len(append.events))
        return await super().append_many(appends)

    async def take_ownership(self, name: AgentName, owner: str, *, expected_epoch: int | None = None, over_fence: bool = True) -> int:
        """Make `owner` the agent's owner under the next epoch, which is returned; writers of older epochs are fenced from then on."""
        await self.settle(name)
        return await super().take_ownership(name, owner, expected_epoch=expected_epoch, over_fence=over_fence)

    async def fence(self, name: AgentName, *, expected_epoch: int | None = None) -> int:
        """Let nobody append to the agent until `take_ownership`; the new epoch."""
        await self.settle(name)
        return await super().fence(name, expected_epoch=expected_epoch)

    def appends_straight(self, name: AgentName) -> bool:
        """Whether neither a schema nor the fast path has to do with an append to this agent."""
        return self._straight(name, ANY)

    def _straight(self, name: AgentName, expected: ExpectedVersion) -> bool:
        """Whether an append needs nothing but the log itself."""
        if type(name) is not AgentName:
            return False
        if type(expected) is not Expected and (type(expected) is not int or expected < 0):
            return False
        return not self.schemas.types and not self.schemas.stale and self.fidelity.idle

    async def _append_one(self, append: AgentAppend) -> Appended:
        return (await self._append_checked([append]))[0]

    async def _append_checked(self, appends: Sequence[AgentAppend]) -> list[Appended]:
        for append in appends:
            self._check(append)
        if self.schemas.stale:
            await self.schemas.refresh()
        return await (self._write(appends) if self.fidelity.idle else self.fidelity.append(appends))

    def _check(self, append: AgentAppend) -> None:
        """What needs no state is checked before anything is made or read for it."""
        check_name(append.name)
        check_expected(append.expected)
        check_events(append.events)
        if self.trainer is not None:
            self.trainer.note(append.name.tenant, len(append.events))

    async def _write(self, appends: Sequence[AgentAppend]) -> list[Appended]:
        if not self.schemas.types:
            return await super().append_many(appends)
        async with self._turns.of(append.name for append in appends):
            return await append_checked(appends, self.vault, self.schemas, self._reader(), super().append_many)

    def _reader(self) -> StateReader:
        assert self.reader is not None, "the engine gives the log its reader"
        return self.reader

    async def settle(self, name: AgentName) -> None:
        """Write what waits of an agent on the fast path, so that a reader of what is newest sees it. Raises InvalidInput for what is no name."""
        check_name(name)
        if not self.fidelity.idle:
            await self.fidelity.flush(name)

    # --- reading ---
    async def get_event(self, name: AgentName, id: UUID, *, as_stored: bool = False) -> RecordedEvent:
        """The agent's event with this id. Raises AgentNotFound, EventNotFound, InvalidInput."""
        if not isinstance(id, UUID):
            raise InvalidInput(f"an event's id is a UUID, not {id!r:.60}", hint="uuid.UUID(text) makes one of a text")
        await self.settle(name)
        event = await super().get_event(name, id)
        return event if as_stored else self.upcasters.upcast(event)

    async def get_events(
        self,
        name: AgentName,
        where: EventFilter | None = None,
        *,
        limit: int = limits.READ_PAGE_EVENTS,
        descending: bool = False,
        as_stored: bool = False,
    ) -> list[RecordedEvent]:
        """At most `limit` of the agent's events that pass the filter, in order of version; as_stored: without upcasters. Raises AgentNotFound."""
        await self.settle(name)
        events = await super().get_events(name, where, limit=check_limit(limit), descending=descending)
        return events if as_stored or not self.upcasters else [self.upcasters.upcast(event) for event in events]

    async def get_events_by_version(self, name: AgentName, from_version: int, to_version: int | None = None) -> list[RecordedEvent]:
        """The events of a range of versions, both ends included, at most `limits.READ_PAGE_EVENTS`; to_version None: only `from_version`."""
        last = from_version if to_version is None else to_version
        return await self.get_events(name, event_filter(from_version=from_version, to_version=last))

    async def get_event_history(
        self,
        name: AgentName,
        *,
        from_version: int = 1,
        to_version: int | None = None,
        types: Sequence[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        correlation_id: str | None = None,
        trace_id: str | None = None,
        limit: int = 100,
        descending: bool = False,
    ) -> EventPage:
        """A page of the agent's events that pass the filters. A filter by correlation or trace looks through the agent's events one by one."""
        where = event_filter(
            from_version=from_version,
            to_version=to_version,
            types=types,
            since=since,
            until=until,
            correlation_id=correlation_id,
            trace_id=trace_id,
        )
        events = await self.get_events(name, where, limit=limit, descending=descending)
        if len(events) < limit:
            return EventPage(events, None)
        following = events[-1].version + (-1 if descending else 1)
        return EventPage(events, following if following >= where.from_version else None)

    async def stream_events(
        self, name: AgentName, where: EventFilter | None = None, *, follow: bool = False, as_stored: bool = False
    ) -> AsyncGenerator[RecordedEvent, None]:
        """The agent's events in order; with `follow`, also those to come, for ever. None is skipped and none comes twice."""
        await self.settle(name)
        async with aclosing(super().stream_events(name, where, follow=follow)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event if as_stored else self.upcasters.upcast(event)

    async def replay_events(
        self,
        name: AgentName,
        *,
        from_version: int = 1,
        to_version: int | None = None,
        types: Sequence[str] = (),
        handler: Callable[[RecordedEvent], object] | None = None,
    ) -> Replayed:
        """Fold the agent's events again, and hand those of the range to a handler; what came of it.

        handler: gets each event of the range (of these types, replayable ones only), upcast; it may be a coroutine function. What it raises
        is counted, and the replay goes on. The state is folded from the first event to `to_version`, from events as they are stored; where the
        first ones were removed, from the state that stands for them. Raises AgentNotFound, InvalidInput, Compacted (of the range), and ChainBroken
        and SealBroken for the first event that is not the one that was written.
        """
        await self.settle(name)
        wanted = event_filter(from_version=from_version, to_version=to_version, types=types)
        floor = await self.floor(name)
        first = floor.version if from_version >= floor.version else 1  # a range that is gone is refused where it is read
        document = (await self._reader().state_at_version(*name, first - 1)).document if first > 1 else {}
        replaying = Replaying(self.upcasters, wanted, handler, document, first - 1)
        started = time.perf_counter()
        version, chain = first - 1, floor.chain if first > 1 else EMPTY_CHAIN
        async for page in super().pages(name, EventFilter(from_version=first, to_version=to_version)):
            version, chain = check_chain(page, version=version, chain=chain)
            await replaying.take(page, await (self.vault.open_effects(page) if replaying.alone else self.vault.open_all(page)))
        return replaying.result(name, time.perf_counter() - started)

    async def version(self, name: AgentName) -> int:
        """The agent's newest version in the log. Raises AgentNotFound."""
        await self.settle(name)
        return await super().version(name)

    async def floor(self, name: AgentName) -> Floor:
        """Where the agent's events begin: at version 1, unless the first ones were removed. Raises AgentNotFound."""
        return (await self.store.floors([await self.vault.served(*name)]))[0]
