"""The vault: agents' rows and ciphers, remembered, and sealed events opened with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

import msgspec

from perdure.engine import blobs
from perdure.engine.births import CREATE_BATCH_MAX, Births
from perdure.engine.changes import Change
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.codec import EVENT_CONTEXT, Effect, StoredPayload, decode_effects, decode_payload, event_context, recorded_event
from perdure.engine.log.contract import LogStore
from perdure.engine.log.heads import KnownHeads, first_head
from perdure.engine.log.marks import RESERVED, refusal
from perdure.engine.log.records import AgentName, AgentRecord, SealedEvent
from perdure.engine.moves import Moves
from perdure.engine.remembering import forget_oldest
from perdure.errors import AgentNotFound, DictionaryNotFound, IntegrityError, KeyUnavailable, PerdureError, SealBroken
from perdure.security.cipher import Cipher
from perdure.security.dictionaries import DictionaryBook
from perdure.security.dictionary_set import DictionarySet
from perdure.security.heirs import cipher_for
from perdure.security.ring import KeyRing, TenantKey

__all__ = ["Vault"]

AGENTS_MAX = 200_000

Result = TypeVar("Result")


class Vault(Births):
    """Rows and ciphers of at most `AGENTS_MAX` agents of one log, and the tenants' keys and dictionaries behind them.

    heads: what the log's writer knows; agents that are made here are known to it from birth.
    """

    def __init__(self, store: LogStore, ring: KeyRing, book: DictionaryBook) -> None:
        super().__init__()
        self.store = store
        self.ring = ring
        self.book = book
        self._known: dict[AgentName, tuple[AgentRecord, Cipher]] = {}
        self.heads = KnownHeads()
        self.moves = Moves(store)

    async def served(self, tenant: str, agent: str) -> AgentRecord:
        """As `record`, for who serves somebody: an agent that is on its way between two engines, or gone, is refused.

        Raises AgentMoved (with its address), NotServed, AgentNotFound, Unavailable."""
        name = AgentName(tenant, agent)
        await self.moves.refresh()
        if self.moves.concern(name):
            self.forget(name)
        try:
            record = await self.record(tenant, agent)
        except KeyUnavailable:
            await self.check_served(name)  # erased here, after it went
            raise
        if record.owner.startswith(RESERVED):
            await self.check_served(name)
            record = await self.record(tenant, agent)
        return record

    async def obtain_served(self, name: AgentName) -> tuple[AgentRecord, Cipher]:
        """As `obtain`, for who serves somebody; raises as `served`."""
        try:
            known = await self.obtain(name)
        except KeyUnavailable:
            await self.check_served(name)
            raise
        if known[0].owner.startswith(RESERVED):
            await self.check_served(name)
            known = await self.obtain(name)
        return known

    async def obtain_all_served(self, names: Sequence[AgentName]) -> list[tuple[AgentRecord, Cipher]]:
        """As `obtain_served`, of agents that are looked up and made together."""
        try:
            found = await self.obtain_all(names)
        except KeyUnavailable:
            return [await self.obtain_served(name) for name in names]  # tells which one is gone, and where it went
        return [
            await self.obtain_served(name) if known[0].owner.startswith(RESERVED) else known
            for name, known in zip(names, found, strict=True)
        ]

    async def check_served(self, name: AgentName) -> None:
        """Look at the agent's row as it stands in the log now; raises as `served`. What was remembered of it is forgotten."""
        self.forget(name)
        (record,) = await self.store.agents([name])
        if record is not None and record.owner.startswith(RESERVED):
            await self.moves.refresh(now=True)
            refused = refusal(record, self.moves.address(name))
            if refused is not None:
                raise refused

    async def record(self, tenant: str, agent: str) -> AgentRecord:
        """The agent's row. Raises AgentNotFound."""
        return (await self._look(AgentName(tenant, agent)))[0]

    async def cipher(self, tenant: str, agent: str) -> Cipher:
        """The agent's cipher. Raises AgentNotFound, KeyUnavailable."""
        known = await self._renewed(AgentName(tenant, agent))
        return (known or await self._look(AgentName(tenant, agent)))[1]

    async def remember(self, record: AgentRecord) -> None:
        """Take over a row as it was just written, or read. Raises what opening its key raises."""
        await self._remember(record)

    async def look_up(self, names: Iterable[AgentName]) -> None:
        """Remember these agents, one round trip for all that are not known yet. Those that are not there, or whose key cannot be had, are
        left out: whoever needs one of them is told then."""
        missing = [name for name in names if name not in self._known]
        for first in range(0, len(missing), CREATE_BATCH_MAX):
            for record in await self.store.agents(missing[first : first + CREATE_BATCH_MAX]):
                if record is None:
                    continue
                try:
                    await self._remember(record)
                except PerdureError as problem:
                    if problem.retryable:
                        raise

    def known(self, name: AgentName) -> tuple[AgentRecord, Cipher] | None:
        """What is remembered of an agent; None also when the tenant's key has to be asked for again before it is used."""
        return self._known.get(name) if self.ring.is_fresh(name.tenant) else None

    async def fork(self, parent: AgentRecord, version: int, agent: str) -> AgentRecord:
        """The row of a new agent of the same tenant that goes on from the parent's version; one that is there already is given as it stands.

        Raises VersionNotFound, Compacted, LimitExceeded, KeyUnavailable.
        """
        key = await self.ring.tenant_key(parent.tenant)
        keys: dict[bytes, bytes] = {}
        (row,) = self._new_rows([AgentName(parent.tenant, agent)], key, keys)
        before = self.heads.before_birth()
        made = await self.store.create_fork(msgspec.structs.replace(row, type=parent.type, labels=parent.labels), parent, version)
        if (data_key := keys.get(made.data_key)) is None:
            return (await self._remember(made))[0]
        self.heads.born(before, [(made.agent_key, made.partition)], first_head(made))
        return self._keep(made, self._cipher_of(made, data_key, await self.book.ensure(made.tenant), key))[0]

    async def opening(self, tenant: str, work: Callable[[], Result]) -> Result:
        """Run what opens sealed values of a tenant. What it misses, because another process has made it since, is loaded, and it runs again.

        Raises what it raises, and SealBroken for a value that names a version of the tenant's key which there is not.
        """
        for _ in range(2):
            try:
                return work()
            except DictionaryNotFound:
                await self.book.load(tenant)  # ciphers share the book's set and see it at once
            except KeyUnavailable as problem:
                if problem.details.get("reason") != "unknown_version":
                    raise
                key = await self.ring.tenant_key(tenant, refresh=True)  # the same for keys
                version = problem.details["key_version"]
                if version not in key.versions:
                    raise SealBroken(f"a sealed value names version {version} of the tenant's key, which there is not") from problem
        return work()

    async def open(self, sealed: SealedEvent) -> RecordedEvent:
        """The event inside. Raises SealBroken, KeyUnavailable, AgentNotFound, IntegrityError; each names tenant, agent and version."""
        try:
            return await self._whole(sealed, await self._plaintext(sealed))
        except PerdureError as problem:
            problem.tenant, problem.agent, problem.version = sealed.tenant, sealed.agent, sealed.version
            raise

    async def _plaintext(self, sealed: SealedEvent) -> bytes:
        name = AgentName(sealed.tenant, sealed.agent)
        cipher = await self.cipher(*name)
        try:
            return await self.opening(sealed.tenant, lambda: cipher.open(event_context(sealed.id), sealed.payload))
        except SealBroken:
            # An agent that came back from another engine has brought keys along since it was remembered here.
            known = self._known.get(name)
            (record,) = await self.store.agents([name])
            if known is None or record is None or record.data_key == known[0].data_key:
                raise
            self.forget(name)
            renewed = await self.cipher(*name)
        return await self.opening(sealed.tenant, lambda: renewed.open(event_context(sealed.id), sealed.payload))

    async def open_all(self, events: Iterable[SealedEvent]) -> list[RecordedEvent]:
        """The events inside, in order; the first that cannot be opened raises."""
        opened: list[RecordedEvent] = []
        for sealed in events:
            known = self.known(AgentName(sealed.tenant, sealed.agent))
            if known is not None:
                try:
                    payload = decode_payload(sealed, known[1].open(event_context(sealed.id), sealed.payload))
                    if not payload.references:
                        opened.append(recorded_event(sealed, payload))
                        continue
                except (DictionaryNotFound, KeyUnavailable, SealBroken):
                    pass  # `open` loads what is missing, or tells what is wrong
                except PerdureError as problem:
                    problem.tenant, problem.agent, problem.version = sealed.tenant, sealed.agent, sealed.version
                    raise
            opened.append(await self.open(sealed))
        return opened

    async def open_effects(self, events: Sequence[SealedEvent]) -> Sequence[Effect | RecordedEvent]:
        """What the events do to a state, in order: as `open_all`, but what a fold does not need stays closed. It is fast for agent after agent."""
        if not events:
            return []
        first, last = events[0], events[-1]
        if first.agent != last.agent or first.tenant != last.tenant:
            runs = groupby(events, lambda event: (event.tenant, event.agent))
            return [effect for _, run in runs for effect in await self._open_run(list(run))]
        return await self._open_run(events)

    async def _open_run(self, events: Sequence[SealedEvent]) -> Sequence[Effect | RecordedEvent]:
        known = self.known(AgentName(events[0].tenant, events[0].agent))
        if known is None:
            return await self.open_all(events)
        try:
            ids = [event.id.int.to_bytes(16, "big") for event in events]
            effects, others = decode_effects(known[1].open_many(EVENT_CONTEXT, ids, [event.payload for event in events]))
        except (PerdureError, msgspec.MsgspecError):
            # One by one: what is missing is loaded then, and the event that does not open is named.
            return await self.open_all(events)
        if not others:
            return effects
        found: list[Effect | RecordedEvent] = [*effects]
        for at in others:
            found[at] = await self.open(events[at])
        return found

    async def keep_large(self, tenant: str, event: Event) -> tuple[Event, int]:
        """The event with its large values kept outside, durable when this returns, and how many there are. Raises LimitExceeded."""
        key = await self.ring.tenant_key(tenant)
        sealed: dict[bytes, bytes] = {}

        def keep(encoded: bytes) -> bytes:
            name, content = key.seal_blob(encoded)
            sealed[name] = content
            return name

        count = 0
        changes = []
        for change in event.changes:
            value, taken = blobs.take_out(change.value, keep)
            changes.append(Change(change.op, change.path, value))
            count += taken
        data, taken = blobs.take_out(event.data, keep)
        for name, content in sealed.items():
            await self.store.put_blob(tenant, name, content)
        return msgspec.structs.replace(event, changes=tuple(changes), data=data), count + taken

    async def _whole(self, sealed: SealedEvent, plaintext: bytes) -> RecordedEvent:
        payload = decode_payload(sealed, plaintext)
        return recorded_event(sealed, await self._put_back(sealed, payload) if payload.references else payload)

    async def _put_back(self, sealed: SealedEvent, payload: StoredPayload) -> StoredPayload:
        async def fetch(reference: blobs.Reference) -> bytes:
            content = await self.store.get_blob(sealed.tenant, reference.name)
            if content is None:
                raise IntegrityError(f"a large value ({reference.size_bytes} bytes) of event {sealed.id} is not there")
            key = await self.ring.key_for(sealed.tenant, content)
            return key.open_blob(reference.name, content)

        changes = [Change(change.op, change.path, await blobs.put_back(change.value, fetch)) for change in payload.changes]
        return msgspec.structs.replace(payload, changes=tuple(changes), data=await blobs.put_back(payload.data, fetch))

    def owned(self, name: AgentName, owner: str, epoch: int) -> None:
        """Remember what this process has just written to the agent's row: the next append to it need not ask for the row."""
        known = self._known.pop(name, None)
        if known is not None:
            self._keep(msgspec.structs.replace(known[0], owner=owner, epoch=epoch), known[1])

    def forget(self, name: AgentName) -> None:
        """Drop what is remembered of an agent, e.g. after its row changed."""
        self._known.pop(name, None)

    def forget_all(self) -> None:
        """Drop what is remembered of all agents; their rows are read again when they are next asked for."""
        self._known.clear()

    async def _renewed(self, name: AgentName) -> tuple[AgentRecord, Cipher] | None:
        """What is remembered of an agent, after the tenant's key was asked for again where it is time to."""
        known = self._known.get(name)
        if known is not None and not self.ring.is_fresh(name.tenant):
            await self.ring.tenant_key(name.tenant)
        return known

    async def _look(self, name: AgentName) -> tuple[AgentRecord, Cipher]:
        known = self._known.get(name)
        if known is None:
            (record,) = await self.store.agents([name])
            if record is None:
                raise AgentNotFound(f"there is no agent {name.agent!r} of tenant {name.tenant!r}", tenant=name.tenant, agent=name.agent)
            known = await self._remember(record)
        return known

    async def _remember(self, record: AgentRecord) -> tuple[AgentRecord, Cipher]:
        material = await self.ring.unwrap_material(record.tenant, record.agent, record.data_key)
        dictionaries = await self.book.ensure(record.tenant)
        versions = await self.ring.tenant_key(record.tenant)
        return self._keep(record, self._cipher_of(record, material, dictionaries, versions))

    def _cipher_of(self, record: AgentRecord, material: bytes, dictionaries: DictionarySet, versions: TenantKey) -> Cipher:
        return cipher_for(record.tenant, record.agent, material, dictionaries, versions=versions)

    def _keep(self, record: AgentRecord, cipher: Cipher) -> tuple[AgentRecord, Cipher]:
        known = self._known[AgentName(record.tenant, record.agent)] = (record, cipher)
        forget_oldest(self._known, AGENTS_MAX)
        return known
