"""Projections of users' own: a handler that gets every event of the log, in order, at least once.

Events come straight from the log, partition by partition, in the order of their offsets. After a handler has returned, the partition's
checkpoint is kept; a crash between the two repeats the batch. A handler that must not count twice remembers `(event.partition,
event.offset)`: per partition it only grows. A handler that raises pauses its projection, with the reason, until `resume`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final
from uuid import uuid4

import msgspec

from perdure.engine.event import RecordedEvent
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Lease, Position, SealedEvent
from perdure.engine.stopping import rest
from perdure.engine.vault import Vault
from perdure.errors import AlreadyExists, Compacted, Conflict, InvalidInput, KeyUnavailable, ProjectionNotFound, Unavailable
from perdure.projections.lag import PartitionLag, log_lag

__all__ = [
    "BATCH_EVENTS_MAX",
    "LEASE_S",
    "Checkpoint",
    "Handler",
    "ProjectionStatus",
    "Projections",
    "checkpoints",
    "encode_checkpoint",
    "read_checkpoints",
    "scope_of",
]

Handler = Callable[[Sequence[RecordedEvent]], Awaitable[None]]

BATCH_EVENTS_MAX: Final = 500
"""Events of one partition that a handler gets at once."""
NAME_LENGTH_MAX: Final = 128
REASON_LENGTH_MAX: Final = 500
LEASE_S: Final = 30.0
"""How long a projection stays with a process that has gone away."""
POLL_S: Final = 0.5
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 5.0
_STATUS: Final = "status"


class ProjectionStatus(msgspec.Struct, frozen=True):
    """Whether a projection stands still, why, and since when (unix microseconds)."""

    paused: bool = False
    reason: str = ""
    time_us: int = 0


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """Up to where a handler was given a partition's events."""

    offset: int
    time_us: int


class _Registered(msgspec.Struct):
    handler: Handler
    types: frozenset[str] | None


_encode = msgspec.msgpack.Encoder().encode
_decode_status = msgspec.msgpack.Decoder(ProjectionStatus).decode
_SCOPES: Final = "projection/"
_decode_checkpoint = msgspec.msgpack.Decoder(Checkpoint).decode


class Projections:
    """Registers handlers and runs them. One process at a time runs a projection (a lease); others wait for it."""

    def __init__(self, store: LogStore, vault: Vault) -> None:
        self._store = store
        self._vault = vault
        self._holder = uuid4().hex
        self._registered: dict[str, _Registered] = {}
        self.skipped_events = 0
        """Events of agents whose key was destroyed; nobody can read them any more."""

    def register(self, name: str, handler: Handler, *, types: Iterable[str] | None = None) -> None:
        """Add a projection. types: the event types it wants (None: all). Raises InvalidInput, AlreadyExists."""
        if not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
            raise InvalidInput(f"projection name {name!r:.200} is not usable", hint=f"1 to {NAME_LENGTH_MAX} printable characters")
        if name in self._registered:
            raise AlreadyExists(f"projection {name!r} is registered")
        self._registered[name] = _Registered(handler, None if types is None else frozenset(types))

    @property
    def names(self) -> list[str]:
        """The registered projections, sorted."""
        return sorted(self._registered)

    async def run(self, stop: asyncio.Event) -> None:
        """Run all registered projections until `stop` is set. Servers that are away are waited for."""
        async with asyncio.TaskGroup() as group:
            for name in self._registered:
                group.create_task(self._follow(name, stop), name=f"perdure-projection-{name}")

    async def drain(self, name: str) -> int:
        """Handle what the log holds now; how many events. 0 as well when the projection is paused, or runs in another process."""
        self._find(name)
        lease = await self._store.acquire_lease(scope_of(name), self._holder, LEASE_S)
        if lease is None:
            return 0
        try:
            return await self._pass(name, lease)
        finally:
            await self._store.release_lease(lease)

    async def status(self, name: str) -> ProjectionStatus:
        """Whether it stands still, and why."""
        document = await self._store.get_document(scope_of(name), _STATUS)
        return _decode_status(document.value) if document else ProjectionStatus()

    async def pause(self, name: str, reason: str = "paused by an operator") -> None:
        """Let it stand still, in every process, from its next batch on."""
        status = ProjectionStatus(True, reason[:REASON_LENGTH_MAX], time.time_ns() // 1_000)
        await self._store.put_document(scope_of(name), _STATUS, _encode(status), expected=None)

    async def resume(self, name: str) -> None:
        """Let it go on from its checkpoints."""
        await self._store.put_document(scope_of(name), _STATUS, _encode(ProjectionStatus()), expected=None)

    async def reset(self, name: str) -> None:
        """Let it begin at the log's beginning again. Raises Conflict while it runs; pause it first."""
        lease = await self._store.acquire_lease(scope_of(name), f"{self._holder}-reset", LEASE_S)
        if lease is None:
            raise Conflict(f"projection {name!r} is running", hint="stop it, then reset")
        try:
            for document in await self._store.list_documents(scope_of(name)):
                if document.name != _STATUS:
                    await self._store.delete_document(scope_of(name), document.name)
        finally:
            await self._store.release_lease(lease)

    async def lag(self, name: str) -> list[PartitionLag]:
        """Per partition, how far it is behind the log, in events and in seconds."""
        handled = await read_checkpoints(self._store, scope_of(name))
        return await log_lag(self._store, {partition: Position(point.offset, point.time_us) for partition, point in handled.items()})

    async def _follow(self, name: str, stop: asyncio.Event) -> None:
        delay_s = RETRY_FIRST_S
        while not stop.is_set():
            try:
                handled = await self.drain(name)
                delay_s = RETRY_FIRST_S
            except Unavailable:
                await rest(stop, delay_s)
                delay_s = min(2 * delay_s, RETRY_MAX_S)
            else:
                if not handled:
                    await rest(stop, POLL_S)

    async def _pass(self, name: str, lease: Lease) -> int:
        """One round over all partitions, until each is at its end or the projection pauses."""
        handled = 0
        renewed = time.monotonic()
        for partition in range(self._store.partitions):
            while not (await self.status(name)).paused:
                count = await self._batch(name, partition)
                if count is None:
                    break
                handled += count
                if time.monotonic() - renewed > LEASE_S / 3:
                    if await self._store.acquire_lease(lease.name, lease.holder, LEASE_S) is None:
                        return handled
                    renewed = time.monotonic()
        return handled

    async def _batch(self, name: str, partition: int) -> int | None:
        """Handle one page of a partition; how many events, or None at its end or when the handler failed."""
        registered = self._find(name)
        document = await self._store.get_document(scope_of(name), str(partition))
        after = _decode_checkpoint(document.value).offset if document else 0
        try:
            page = await self._store.read(partition, after, BATCH_EVENTS_MAX)
        except Compacted as removed:
            await self.pause(name, f"{removed.message}: what it would miss cannot be had any more")
            return None
        if not page:
            return None
        try:
            events = await self.wanted(name, page)
            if events:
                await registered.handler(events)
        except Unavailable:
            raise
        except Exception as problem:
            await self.pause(name, f"{type(problem).__name__}: {problem} (partition {partition}, offsets {after + 1} to {page[-1].offset})")
            return None
        value = encode_checkpoint(Checkpoint(page[-1].offset, page[-1].time_us))
        if await self._store.put_document(scope_of(name), str(partition), value, expected=document.revision if document else 0) is None:
            # Another process has handled this batch meanwhile; its checkpoint stands.
            return 0
        return len(events)

    async def wanted(self, name: str, page: Sequence[SealedEvent]) -> list[RecordedEvent]:
        """The events of a page that a projection's handler gets. Raises ProjectionNotFound, and what opening them raises."""
        types = self._find(name).types
        return await self._open([event for event in page if types is None or event.type in types])

    async def _open(self, sealed: Sequence[SealedEvent]) -> list[RecordedEvent]:
        try:
            return await self._vault.open_all(sealed)
        except KeyUnavailable:
            events = []
            for event in sealed:
                try:
                    events.append(await self._vault.open(event))
                except KeyUnavailable:
                    self.skipped_events += 1
            return events

    def _find(self, name: str) -> _Registered:
        registered = self._registered.get(name)
        if registered is None:
            raise ProjectionNotFound(f"no projection {name!r} is registered", hint=", ".join(self.names))
        return registered


def encode_checkpoint(point: Checkpoint) -> bytes:
    """The document of a partition, named by its number."""
    return _encode(point)


async def read_checkpoints(store: LogStore, scope: str) -> dict[int, Checkpoint]:
    """By partition, those that are kept in a scope; other documents may be in it, too."""
    return {int(each.name): _decode_checkpoint(each.value) for each in await store.list_documents(scope) if each.name.isdecimal()}


async def checkpoints(store: LogStore, partition: int) -> dict[str, int]:
    """How far each projection that has ever handled events of a partition has come: the offset by its name."""
    found = {}
    for scope in await store.scopes():
        if scope.startswith(_SCOPES) and (document := await store.get_document(scope, str(partition))) is not None:
            found[scope.removeprefix(_SCOPES)] = _decode_checkpoint(document.value).offset
    return found


def scope_of(name: str) -> str:
    """Where the checkpoints of a projection are kept, and the lease of who runs it."""
    return f"{_SCOPES}{name}"
