"""Fidelity by agent type: every event as it is (full, the default), or critical ones at once and the others merged (fast).

On the fast path an append of events that are not critical returns before anything is durable. They wait in this process, bounded in number,
bytes and age, and become one event that leads to the same state. Invariants:

1. The state in the log after a batch is the state that its events, one by one, would have led to.
2. What was appended before a critical event is in the log before it; both are written in one step.
3. A reader of this process that asks for what is newest sees what this process has appended: reading writes the batch first.

A crash loses what waits: at most `events_max` events or `age_max_s` seconds of each agent. What merging gives up for ever: the events' ids (so
a retry is recognized only while the first waits), their data and metadata, and the states between them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from perdure import limits
from perdure.client.batch import Batch, FastMode
from perdure.client.schemas import Schemas
from perdure.client.turns import Turns
from perdure.engine.event import Event
from perdure.engine.log.codec import encode_payload
from perdure.engine.log.expected import ANY, ExpectedVersion, holds
from perdure.engine.log.log import AgentAppend, Appended
from perdure.engine.log.records import AgentName
from perdure.engine.vault import Vault
from perdure.errors import AlreadyExists, Conflict, Fenced, InvalidInput, PerdureError
from perdure.projections.reader import StateReader

__all__ = ["Fidelity", "Held"]

PINNED_ATTEMPTS_MAX: Final = 3
"""Attempts to write a batch as the difference to the very state that it was made for; then all its changes are written, which fit any state."""

_logger = logging.getLogger(__name__)
Write = Callable[[Sequence[AgentAppend]], Awaitable[list[Appended]]]


class Held(Appended, frozen=True):
    """Events that wait in this process and are not durable yet: `versions` is empty, `version` 0. waiting: events of the agent that do."""

    waiting: int = 0


class Fidelity:
    """Which agent types are written how, and the events that wait."""

    def __init__(self, vault: Vault, schemas: Schemas, write: Write) -> None:
        self._vault = vault
        self._schemas = schemas
        self._write = write
        self._modes: dict[str, FastMode] = {}
        self._batches: dict[AgentName, Batch] = {}
        self._timers: dict[AgentName, asyncio.TimerHandle] = {}
        self._flushing: set[asyncio.Task[None]] = set()
        self._turns = Turns()
        self._bytes = 0
        self.reader: StateReader | None = None

    # --- modes ---
    def fast(
        self,
        agent_type: str,
        *,
        critical: Iterable[str],
        events_max: int = limits.FAST_EVENTS_DEFAULT,
        age_max_s: float = limits.FAST_AGE_DEFAULT_S,
    ) -> None:
        """Write agents of this type on the fast path, in this process, from now on. Raises InvalidInput."""
        if not isinstance(agent_type, str) or not agent_type:
            raise InvalidInput(f"an agent type is a name, not {agent_type!r:.80}")
        if isinstance(critical, str):
            raise InvalidInput(f"critical is the text {critical!r:.80}, not a list of event types")
        self._modes[agent_type] = FastMode(frozenset(critical), events_max, age_max_s)

    async def full(self, agent_type: str) -> None:
        """Write every event of agents of this type as it is again; what waits is written now."""
        self._modes.pop(agent_type, None)
        await self.flush()

    def mode(self, agent_type: str) -> FastMode | None:
        """How agents of a type are written; None: full."""
        return self._modes.get(agent_type)

    @property
    def idle(self) -> bool:
        """Whether nothing is fast and nothing waits."""
        return not self._modes and not self._batches

    def waiting(self, name: AgentName) -> int:
        """Events of an agent that are not in the log yet."""
        batch = self._batches.get(name)
        return 0 if batch is None else len(batch.events)

    # --- appending ---
    async def append(self, appends: Sequence[AgentAppend]) -> list[Appended]:
        """Append well-formed events, or let them wait."""
        if len(appends) == 1 and 1 <= len(appends[0].events) <= limits.EVENTS_PER_APPEND_MAX:
            if self._join(appends[0]):
                return [self._held(appends[0].name)]
            mode = self._modes.get((await self._vault.obtain_served(appends[0].name))[0].type)
            if mode is not None:
                return [await self._append(appends[0], mode)]
        for append in appends:
            await self.flush(append.name)
        return await self._write(appends)

    def _join(self, append: AgentAppend) -> bool:
        """Let the events wait with others of their agent, where nothing stands against it and nobody writes those: without a turn or a wait."""
        batch = self._batches.get(append.name)
        if batch is None or batch.shut or batch.epoch != append.epoch or append.expected is not ANY or self._schemas.types:
            return False
        if any(event.type in batch.mode.critical for event in append.events) or not batch.fits(append.events):
            return False
        size_bytes = sum(len(encode_payload(event)) for event in append.events)
        if size_bytes > limits.INLINE_BYTES_MAX or self._bytes + size_bytes > limits.FAST_BYTES_TOTAL_MAX:
            return False
        self._add(append.name, batch, append.events, size_bytes)
        return True

    def _add(self, name: AgentName, batch: Batch, events: Sequence[Event], size_bytes: int) -> None:
        batch.add(events, size_bytes)
        self._bytes += size_bytes
        if batch.full:
            # Written from here on, but not awaited: whoever appended has nothing to do with what may fail there. The next one waits for it.
            self._ring(name, batch)

    def _held(self, name: AgentName) -> Held:
        return Held(name, (), 0, already=False, waiting=self.waiting(name))

    async def _append(self, append: AgentAppend, mode: FastMode) -> Appended:
        size_bytes = sum(len(encode_payload(event)) for event in append.events)
        at_once = append.expected is not ANY or size_bytes > limits.INLINE_BYTES_MAX
        at_once = at_once or self._bytes + size_bytes > limits.FAST_BYTES_TOTAL_MAX
        async with self._turns.of([append.name]):
            batch = self._batches.get(append.name)
            if batch is not None and not batch.without_known(append.events):
                return self._held(append.name)  # a retry: it is written once, with the batch
            if at_once or any(event.type in mode.critical for event in append.events):
                return await self._critical(append)
            await self._hold(append, mode, size_bytes)
            return self._held(append.name)

    async def _hold(self, append: AgentAppend, mode: FastMode, size_bytes: int) -> None:
        name = append.name
        batch = self._batches.get(name)
        events = append.events if batch is None else batch.without_known(append.events)
        if batch is not None and (batch.shut or batch.epoch != append.epoch or not batch.fits(events)):
            await self._flush(name)
            batch = None
        if batch is None:
            batch = Batch(mode, append.epoch)
        await self._check(batch, append._replace(events=events))
        if name not in self._batches:
            self._batches[name] = batch
            self._arm(name, batch)
        self._add(name, batch, events, size_bytes)

    async def _check(self, batch: Batch, append: AgentAppend) -> None:
        """Raise SchemaViolation where the state with these events would not satisfy its type's schema."""
        agent_type = (await self._vault.obtain_served(append.name))[0].type
        if agent_type not in self._schemas.types:
            return
        assert self.reader is not None
        document = batch.pending
        if document is None:
            document = batch.applied((await self.reader.state(*append.name)).document, batch.events)
        document = batch.applied(document, append.events)
        self._schemas.validate(agent_type, document)
        batch.pending = document

    async def _critical(self, append: AgentAppend) -> Appended:
        """Write what waits and the append in one step."""
        for attempt in range(PINNED_ATTEMPTS_MAX + 1):
            batch = self._batches.get(append.name)
            merged, version = (None, ANY) if batch is None else await self._merge(append.name, batch, pinned=attempt < PINNED_ATTEMPTS_MAX)
            if batch is None or merged is None or batch.epoch != append.epoch or len(append.events) >= limits.EVENTS_PER_APPEND_MAX:
                break
            expected = version if isinstance(version, int) and holds(append.expected, version) else append.expected
            try:
                done = (await self._write([AgentAppend(append.name, (merged, *append.events), expected, append.epoch)]))[0]
            except AlreadyExists:
                break  # a retry of what was written before the batch began
            except Fenced:
                raise
            except Conflict:
                if append.expected is not ANY:
                    raise
                continue
            self._drop(append.name)
            return Appended(done.name, done.versions[1:], done.version, done.already)
        await self._flush(append.name)
        return (await self._write([append]))[0]

    # --- flushing ---
    async def flush(self, name: AgentName | None = None) -> None:
        """Write what waits, of one agent or of all. Raises what writing raises; after `Unavailable` and `Conflict` it still waits."""
        for each in list(self._batches) if name is None else [name] if name in self._batches else []:
            async with self._turns.of([each]):
                await self._flush(each)

    async def close(self) -> None:
        """Write what waits. An agent that cannot be written does not keep the others back; the first error is raised at the end."""
        problems: list[PerdureError] = []
        for task in list(self._flushing):
            await asyncio.wait([task])
        for name in list(self._batches):
            try:
                await self.flush(name)
            except PerdureError as problem:
                problems.append(problem)
        for name in list(self._batches):
            self._drop(name)
        if problems:
            raise problems[0]

    async def _flush(self, name: AgentName) -> None:
        batch = self._batches.get(name)
        if batch is None:
            return
        try:
            for attempt in range(PINNED_ATTEMPTS_MAX + 1):
                merged, version = await self._merge(name, batch, pinned=attempt < PINNED_ATTEMPTS_MAX)
                if merged is None or await self._written(AgentAppend(name, (merged,), version, batch.epoch)):
                    self._drop(name)
                    return
        except PerdureError as problem:
            if not problem.retryable:
                self._drop(name)  # it can never be written: the caller is told, and the next batch is not held up by it
            raise
        raise Conflict(f"others change agent {name.agent!r} all the time", tenant=name.tenant, agent=name.agent)

    async def _merge(self, name: AgentName, batch: Batch, *, pinned: bool) -> tuple[Event | None, ExpectedVersion]:
        """The event that the batch becomes, None where it changes nothing; and the version that it must meet.

        After an outcome that nobody knows it has the same id again: what was written then is answered by the log as known already.
        """
        assert self.reader is not None
        batch.tried = True
        if not pinned:
            return batch.concatenated(), ANY
        state = await self.reader.state(*name)
        return batch.merged(state.document), state.version

    async def _written(self, append: AgentAppend) -> bool:
        try:
            await self._write([append])
        except Fenced:
            raise
        except Conflict:
            return False
        return True

    def _drop(self, name: AgentName) -> None:
        batch = self._batches.pop(name, None)
        if batch is not None:
            self._bytes -= batch.size_bytes
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _arm(self, name: AgentName, batch: Batch) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(batch.mode.age_max_s, self._ring, name, batch)

    def _ring(self, name: AgentName, batch: Batch) -> None:
        task = asyncio.create_task(self._flush_old(name, batch), name="perdure-fast-path")
        self._flushing.add(task)
        task.add_done_callback(self._flushing.discard)

    async def _flush_old(self, name: AgentName, batch: Batch) -> None:
        async with self._turns.of([name]):
            if self._batches.get(name) is not batch:
                return
            try:
                await self._flush(name)
            except PerdureError as problem:
                _logger.warning("%d events of agent %r were not written: %s", len(batch.events), name.agent, problem.message)
                if name in self._batches:
                    self._arm(name, batch)
