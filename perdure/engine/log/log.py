"""The log as its users see it: events in, recorded events out; sealing, rules and storage behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.checks import check_event
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log import decide
from perdure.engine.log.appended import Appended, name_of, result_of, results_of
from perdure.engine.log.codec import Draft, check_size, encode_payload, event_context
from perdure.engine.log.contract import LogStore
from perdure.engine.log.decide import FENCED, OWNED, Item
from perdure.engine.log.expected import ANY, ExpectedVersion
from perdure.engine.log.marks import RESERVED
from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter, SealedEvent
from perdure.engine.log.writer import Writer
from perdure.engine.vault import Vault
from perdure.errors import EventNotFound, InvalidEvent, InvalidInput, LimitExceeded
from perdure.security.cipher import Cipher

__all__ = ["AgentAppend", "Appended", "EventLog", "Owned", "read_pages"]

FOLLOW_TIMEOUT_S = 0.1
"""How long a follower waits for a signal of this process before it looks for events of others."""


class AgentAppend(NamedTuple):
    """Events for one agent, within an append to one or several. epoch: the ownership that the writer holds, None when it claims none."""

    name: AgentName
    events: Sequence[Event]
    expected: ExpectedVersion = ANY
    epoch: int | None = None


class Owned(NamedTuple):
    """An agent after its ownership changed: epoch, version and chain hash at the end. already: it was there before, under the same event id."""

    epoch: int
    version: int
    chain: bytes
    already: bool


class EventLog:
    """Appends and reads of one log."""

    def __init__(self, store: LogStore, vault: Vault) -> None:
        self.store = store
        self.vault = vault
        self.writer = Writer(store, vault.heads)

    async def close(self) -> None:
        """Write what is queued and close the store."""
        await self.writer.close()
        await self.store.close()

    # --- appending ---
    def append_event(
        self, name: AgentName, event: Event, *, expected: ExpectedVersion = ANY, epoch: int | None = None
    ) -> Coroutine[Any, Any, Appended]:
        """As `append_events`, of one event."""
        return self._append(name, (event,), expected, epoch)

    def append_events(
        self, name: AgentName, events: Sequence[Event], *, expected: ExpectedVersion = ANY, epoch: int | None = None
    ) -> Coroutine[Any, Any, Appended]:
        """Append events to one agent, all or none.

        Returns when they are durable. Raises Conflict, Fenced, AlreadyExists (some of the ids are there and some are not), InvalidEvent,
        LimitExceeded, Overloaded, Unavailable; after DeadlineExceeded the outcome is unknown and a retry with the same events is safe.
        """
        return self._append(name, events, expected, epoch)

    def append_new(self, name: AgentName, event: Event, *, expected: ExpectedVersion) -> Coroutine[Any, Any, Appended]:
        """As `append_event`, of an event that was made for this one call: its id is not looked for in the log."""
        return self._append(name, (event,), expected, None, fresh=True)

    async def _append(
        self, name: AgentName, events: Sequence[Event], expected: ExpectedVersion, epoch: int | None, *, fresh: bool = False
    ) -> Appended:
        if not 1 <= len(events) <= limits.EVENTS_PER_APPEND_MAX:
            _refuse_size(len(events))
        item = self._prepared(name, events, expected, epoch) or await self._item(name, events, expected, epoch)
        if fresh:
            item = msgspec.structs.replace(item, fresh=True)
        outcome = await self.writer.submit((item,))
        if type(outcome) is decide.Shut:
            await self._check_served((item,), outcome)
        return result_of(name, item, outcome)

    async def append_many(self, appends: Sequence[AgentAppend]) -> list[Appended]:
        """Append to several agents in one atomic step; as `append_events`."""
        _check_sizes(appends)
        items = [self._prepared(*append) for append in appends]
        others = [append for append, item in zip(appends, items, strict=True) if item is None]
        rest = iter(await self._items(others) if others else ())
        whole = [item or next(rest) for item in items]
        outcome = await self.writer.submit(whole)
        if type(outcome) is decide.Shut:
            await self._check_served(whole, outcome)
        return results_of(whole, outcome)

    async def _check_served(self, items: Sequence[Item], outcome: decide.Shut) -> None:
        if outcome.fenced:
            # Fenced because it goes to another engine: whoever asks is told so, and where to.
            await self.vault.check_served(name_of(items[outcome.item]))

    async def take_ownership(self, name: AgentName, owner: str, *, expected_epoch: int | None = None, over_fence: bool = True) -> int:
        """Make `owner` the agent's owner under the next epoch, which is returned; writers of older epochs are fenced from then on.

        over_fence: also where the agent is fenced; else Fenced is raised there.
        """
        given = Event(OWNED, data={"owner": owner})
        return (await self._change_owner(name, owner, given, expected_epoch, over_fence=over_fence)).epoch

    async def fence(self, name: AgentName, *, expected_epoch: int | None = None) -> int:
        """Let nobody append to the agent until `take_ownership`; the new epoch."""
        self.vault.forget(name)  # the owner may have changed elsewhere
        record, _ = await self.vault.obtain_served(name)
        return (await self._change_owner(name, record.owner, Event(FENCED), expected_epoch)).epoch

    def appends_straight(self, name: AgentName) -> bool:
        """Whether an append to this agent needs nothing but the log itself; only then may events go with `hand_over`."""
        return type(name) is AgentName

    async def hand_over(
        self,
        name: AgentName,
        owner: str,
        *,
        epoch: int,
        event: Event,
        version: ExpectedVersion = ANY,
        chain: bytes | None = None,
        first: Sequence[Event] = (),
    ) -> Owned:
        """Make `owner` the owner where the agent still stands exactly here: at this epoch, newest version and chain hash.

        event: its id makes asking again safe after the answer was lost. first: what the new owner appends in the same step. Raises Fenced
        (another epoch), Conflict (another version, or another history), AlreadyExists (some of `first` is there already) and what is raised
        of events that cannot be appended, with nothing written.
        """
        for each in first:
            check_event(each)
        given = Event(OWNED, data={**(event.data or {}), "owner": owner}, id=event.id, correlation_id=event.correlation_id)
        return await self._change_owner(name, owner, given, epoch, version, chain, first=first)

    async def look_ahead(self, record: AgentRecord) -> list[SealedEvent]:
        """Learn what others wrote in the agent's partition since this process last looked, so that the next append there is not refused for it;
        those events, in order of offset. They are hints, and may be too few."""
        return await self.writer.look_ahead(record)

    def learn(self, events: Sequence[SealedEvent]) -> bool:
        """As `look_ahead`, of one agent's events that another process committed and has told, each of them checked against the chain by who calls:
        whether they follow what is known here, so that no look ahead is needed."""
        return self.writer.learn(events)

    def keep_trail(self, name: AgentName) -> None:
        """Keep what this process appends to the agent from now on, as it stands in the log, for `trail`; until `drop_trail`."""
        if (known := self.vault.known(name)) is not None:
            self.writer.trails.keep(known[0].agent_key)

    def trail(self, name: AgentName, after: int) -> Sequence[SealedEvent]:
        """The agent's events that follow this version, as far as this process appended them and kept them: none where it lacks the first."""
        known = self.vault.known(name)
        return () if known is None else self.writer.trails.after(known[0].agent_key, after)

    def drop_trail(self, name: AgentName) -> None:
        """Keep them no longer."""
        if (known := self.vault.known(name)) is not None:
            self.writer.trails.drop(known[0].agent_key)

    async def fence_for(self, name: AgentName, *, epoch: int, event: Event) -> Owned:
        """As `fence`, with an event whose id makes asking again safe; where the agent then stands."""
        record, _ = await self.vault.obtain_served(name)
        given = Event(FENCED, data=event.data, id=event.id, correlation_id=event.correlation_id)
        return await self._change_owner(name, record.owner, given, epoch)

    async def _change_owner(
        self,
        name: AgentName,
        owner: str,
        event: Event,
        epoch: int | None,
        version: ExpectedVersion = ANY,
        chain: bytes | None = None,
        *,
        over_fence: bool = True,
        first: Sequence[Event] = (),
    ) -> Owned:
        check_names(name)
        record, cipher = await self.vault.obtain_served(name)
        if owner.startswith(RESERVED):
            raise InvalidInput(f"{owner!r} is no name of a node", hint=f"{RESERVED}… marks agents that move between engines")
        payloads = [encode_payload(each) for each in (event, *first)]
        if any(len(payload) > limits.INLINE_BYTES_MAX for payload in payloads):
            raise LimitExceeded("large values do not go with a change of owner", hint="append them afterwards")
        drafts = [_seal(cipher, each, payload) for each, payload in zip((event, *first), payloads, strict=True)]
        item = Item(record, version, epoch, drafts, owner, chain, over_fence)
        outcome = await self.writer.append([item])
        if isinstance(outcome, decide.Written):
            self.vault.owned(name, owner, outcome.places[0][3])
        else:
            self.vault.forget(name)
        done = result_of(name, item, outcome)
        if isinstance(outcome, decide.Written):
            return Owned(outcome.places[0][3], done.version, outcome.places[0][4], already=False)
        found = await self.store.find(record, [drafts[-1].id])
        return Owned(found[0].epoch, found[0].version, found[0].chain, already=True)

    def _prepared(self, name: AgentName, events: Sequence[Event], expected: ExpectedVersion, epoch: int | None) -> Item | None:
        """Checked, encoded and sealed without waiting for anything; None where that is not possible."""
        known = self.vault.known(name)
        if known is None:
            return None
        record, cipher = known
        if record.owner.startswith(RESERVED):
            return None
        drafts = []
        for event in events:
            check_event(event)
            payload = encode_payload(event)
            if len(payload) > limits.INLINE_BYTES_MAX:
                return None
            drafts.append(_seal(cipher, event, payload))
        if len(drafts) > 1:
            _check_ids(name, events)
        return Item(record, expected, epoch, drafts)

    async def _item(self, name: AgentName, events: Sequence[Event], expected: ExpectedVersion, epoch: int | None) -> Item:
        payloads = await self._payloads(name, events)
        record, cipher = await self.vault.obtain_served(name)
        return Item(record, expected, epoch, [_seal(cipher, event, payload) for event, payload in zip(events, payloads, strict=True)])

    async def _items(self, appends: Sequence[AgentAppend]) -> list[Item]:
        """As `_item` of each. All are checked and encoded before any agent is made, and the agents are made together."""
        payloads = [await self._payloads(append.name, append.events) for append in appends]
        known = await self.vault.obtain_all_served([append.name for append in appends])
        items = []
        for append, encoded, (record, cipher) in zip(appends, payloads, known, strict=True):
            drafts = [_seal(cipher, event, payload) for event, payload in zip(append.events, encoded, strict=True)]
            items.append(Item(record, append.expected, append.epoch, drafts))
        return items

    async def _payloads(self, name: AgentName, events: Sequence[Event]) -> list[bytes]:
        """The events checked and encoded, large values of theirs kept outside."""
        check_names(name)
        payloads = []
        for event in events:
            check_event(event)
            payloads.append(encode_payload(event))
        _check_ids(name, events)
        for number, event in enumerate(events):
            if len(payloads[number]) > limits.INLINE_BYTES_MAX:
                lighter, references = await self.vault.keep_large(name.tenant, event)
                payloads[number] = encode_payload(lighter, references)
                check_size(event, len(payloads[number]))
        return payloads

    # --- reading ---
    async def get_event(self, name: AgentName, id: UUID) -> RecordedEvent:
        """The agent's event with this id. Raises AgentNotFound, EventNotFound."""
        found = await self.store.find(await self.vault.served(*name), [id])
        if not found:
            raise EventNotFound(f"agent {name.agent!r} has no event {id}", tenant=name.tenant, agent=name.agent)
        return await self.vault.open(found[0])

    async def get_events(
        self, name: AgentName, where: EventFilter | None = None, *, limit: int = limits.READ_PAGE_EVENTS, descending: bool = False
    ) -> list[RecordedEvent]:
        """At most `limit` of the agent's events that pass the filter, in order of version. Raises AgentNotFound."""
        record = await self.vault.served(*name)
        return await self.vault.open_all(await self.store.read_agent(record, where or EventFilter(), limit, descending=descending))

    async def pages(self, name: AgentName, where: EventFilter | None = None) -> AsyncIterator[list[SealedEvent]]:
        """All of the agent's events that pass the filter, sealed, page by page."""
        record = await self.vault.served(*name)
        async for page in read_pages(self.store, record, where or EventFilter()):
            yield page

    async def stream_events(
        self, name: AgentName, where: EventFilter | None = None, *, follow: bool = False
    ) -> AsyncIterator[RecordedEvent]:
        """The agent's events in order; with `follow`, also those to come, for ever. None is skipped and none comes twice."""
        record = await self.vault.served(*name)
        where = where or EventFilter()
        signal = self.store.signal()
        version = where.from_version - 1
        while True:
            async for page in read_pages(self.store, record, msgspec.structs.replace(where, from_version=version + 1)):
                for event in await self.vault.open_all(page):
                    version = event.version
                    yield event
            if not follow or (where.to_version is not None and version >= where.to_version):
                return
            await signal.wait(FOLLOW_TIMEOUT_S)

    async def version(self, name: AgentName) -> int:
        """The agent's newest version in the log. Raises AgentNotFound."""
        (head,) = await self.store.heads([await self.vault.served(*name)])
        return head.version


async def read_pages(
    store: LogStore, record: AgentRecord, where: EventFilter, limit: int = limits.READ_PAGE_EVENTS
) -> AsyncIterator[list[SealedEvent]]:
    """One agent's sealed events in order of version, page by page; the next page is read while one is used."""
    page = await store.read_agent(record, where, limit)
    while page:
        ahead = None
        if len(page) == limit:
            following = msgspec.structs.replace(where, from_version=page[-1].version + 1)
            ahead = asyncio.ensure_future(store.read_agent(record, following, limit))
            await asyncio.sleep(0)  # the query is sent, and the server works on it while the caller works on this page
        try:
            yield page
        except GeneratorExit:
            if ahead is not None:
                ahead.cancel()
            raise
        page = await ahead if ahead is not None else []


def _check_sizes(appends: Sequence[AgentAppend]) -> None:
    if len(appends) > limits.AGENTS_PER_APPEND_MAX:
        raise LimitExceeded(f"{len(appends)} agents in one append, the limit is {limits.AGENTS_PER_APPEND_MAX}")
    events = sum(len(append.events) for append in appends)
    if not 1 <= events <= limits.EVENTS_PER_APPEND_MAX:
        _refuse_size(events)
    if len({append.name for append in appends}) < len(appends):
        raise InvalidEvent("an agent stands twice in one append", hint="put its events into one list")


def _refuse_size(events: int) -> NoReturn:
    if events == 0:
        raise InvalidEvent("there is no event to append")
    raise LimitExceeded(f"{events} events in one append, the limit is {limits.EVENTS_PER_APPEND_MAX}", hint="append them in several calls")


def _check_ids(name: AgentName, events: Sequence[Event]) -> None:
    if len({event.id for event in events}) < len(events):
        raise InvalidEvent("two events of one append have the same id", tenant=name.tenant, agent=name.agent)


def _seal(cipher: Cipher, event: Event, payload: bytes) -> Draft:
    return Draft(
        event.id,
        event.type,
        event.causation_id,
        event.correlation_id or None,
        event.trace_id or None,
        event.project or None,
        event.module or None,
        cipher.seal(event_context(event.id), payload),
    )
