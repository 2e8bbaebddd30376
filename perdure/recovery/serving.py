"""One agent being served: its state in memory, its mailbox, and the loop that turns commands into events.

Invariants:

1. A command is answered with success only after its events are durable, under the epoch that this node holds.
2. The state in memory is the fold of the log up to `version`. Whenever the outcome of an append is not known, it is loaded anew first.
3. Nothing is appended once the node's lease is no longer trusted (`may_act`).
4. A held agent begins no append. Holding protects nothing by itself (the log's epoch does); it spares appends that would be refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine import steps
from perdure.engine.event import Event
from perdure.engine.fold import apply
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName
from perdure.engine.readonly import freeze
from perdure.errors import AlreadyExists, CommandFailed, Conflict, Fenced, NotServed, Overloaded, PerdureError, ReadOnly
from perdure.recovery.commands import Command, CommandResult, Handler, Waiting, events_of
from perdure.recovery.handover import again

__all__ = ["Loaded", "ServedAgent"]

MAILBOX_MAX: Final = 1_024
BATCH_COMMANDS_MAX: Final = 256
"""Commands of one agent that are decided one after the other and appended at once."""
REMEMBERED_MAX: Final = 1_024
"""Newest commands of an agent whose results are answered from memory when they are sent again."""
FIRST_COMMANDS_MAX: Final = 16
"""Commands that are written in the step that makes an agent ours: it holds the partition's lock."""
ATTEMPTS_MAX: Final = 8
"""How often in a row a batch is decided anew because somebody else appended to the agent meanwhile."""


class Loaded(NamedTuple):
    """An agent's state as it is served from; the document is read-only, and shown to handlers as it is."""

    document: dict[str, Any]
    version: int


class ServedAgent:
    """load: reads the newest state. may_act: whether the node still holds its lease. moved: what to tell callers once the log says that the
    agent is not ours. gone: called once then. state: what it is served from, where that is known. staged: it is not ours yet, and waits for
    `begin`."""

    def __init__(
        self,
        name: AgentName,
        epoch: int,
        *,
        log: EventLog,
        handler: Handler,
        load: Callable[[AgentName], Awaitable[Loaded]],
        may_act: Callable[[], bool],
        moved: Callable[[AgentName, Fenced], Awaitable[PerdureError]],
        gone: Callable[[AgentName], None],
        state: Loaded | None = None,
        staged: bool = False,
    ) -> None:
        self.name = name
        self.epoch = epoch
        self._log = log
        self._handler = handler
        self._load = load
        self._may_act = may_act
        self._moved = moved
        self._gone = gone
        self._state = state
        self._held: PerdureError | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._mailbox: asyncio.Queue[Waiting] = asyncio.Queue(MAILBOX_MAX)
        self._remembered: OrderedDict[UUID, CommandResult] = OrderedDict()
        self._closed: PerdureError | None = None
        self._first: list[tuple[Waiting, int, int]] = []
        self._after_first = state
        self._task: asyncio.Task[None] | None = None
        if not staged:
            self._start()

    def _start(self) -> None:
        self._task = asyncio.create_task(self._serve(), name=f"perdure-agent-{self.name.agent}")

    async def decide_first(self, waiting: Sequence[Waiting]) -> list[Event]:
        """Of an agent that is staged: what the first commands come to, for being written in the very step that makes it ours."""
        if self._state is None or inspect.iscoroutinefunction(self._handler):
            return []  # a handler that waits would make everybody wait
        document, version = self._state
        events: list[Event] = []
        seen: set[UUID] = set()
        for each in waiting[:FIRST_COMMANDS_MAX]:
            if each.answer.done() or each.command.id in seen:
                continue
            seen.add(each.command.id)
            own = await self._decide(document, each)
            if own is None:
                continue
            document = _folded(document, own)
            events += own
            self._first.append((each, version + len(events), len(own)))
        self._after_first = Loaded(document, version + len(events))
        return events

    def begin(self, *, wrote_first: bool, state_known: bool = True) -> None:
        """It is ours now. wrote_first: with what `decide_first` came to; state_known: and it stands where it was expected to."""
        if wrote_first and state_known:
            self._state = self._after_first
            for each, at, count in self._first:
                self._answer(each, CommandResult(at, count, self.epoch))
        elif not state_known:
            self._state = None
        self._start()

    def take_over(self, waiting: Sequence[Waiting]) -> None:
        """Commands that came before it was ours; those that were answered meanwhile need nothing more."""
        for each in waiting:
            if each.answer.done():
                continue
            try:
                self._mailbox.put_nowait(each)
            except asyncio.QueueFull:
                _refuse(each, self._full())

    @property
    def version(self) -> int | None:
        """Of the state in memory; None before the first command."""
        return None if self._state is None else self._state.version

    @property
    def in_memory(self) -> Loaded | None:
        """The state that the next command is decided on; None when it will be read first."""
        return self._state

    @property
    def waiting(self) -> int:
        """Commands in the mailbox."""
        return self._mailbox.qsize()

    def submit(self, command: Command) -> asyncio.Future[CommandResult]:
        """Put a command into the mailbox. Raises Overloaded when it is full, and why the agent is not served any more."""
        if (refusal := self._closed or self._held) is not None:
            raise again(refusal)
        answer: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
        try:
            self._mailbox.put_nowait(Waiting(command, answer))
        except asyncio.QueueFull:
            raise self._full() from None
        return answer

    def _full(self) -> Overloaded:
        return Overloaded(f"{MAILBOX_MAX} commands wait for agent {self.name.agent!r}", tenant=self.name.tenant, agent=self.name.agent)

    async def standing(self) -> Loaded:
        """The state and its version, of a moment when no append was under way; read again where it is not in memory."""
        return self._state or await self._load(self.name)

    async def hold(self, why: PerdureError) -> int | None:
        """Take no more commands until `go_on`: who waits is answered with `why`. The version when the append under way is through (None: it
        is not in memory)."""
        self._held = why
        _refuse_all(self._emptied(), why)
        await self._quiet.wait()
        return self.version

    def go_on(self) -> None:
        """Take commands again."""
        self._held = None

    async def close(self, why: PerdureError) -> None:
        """Take no more commands; the one being appended is finished, the others are answered with `why`."""
        if self._closed is None:
            self._closed = why
            if self._task is not None and self._quiet.is_set():
                self._task.cancel()  # else it sees its append through: the callers get the answer that is true
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        _refuse_all(self._emptied(), why)

    def give_up(self, why: PerdureError) -> None:
        """Take no more commands, and wait for no append: it is not known what becomes of the one under way, and no matter of this node's."""
        self._closed = self._closed or why
        if self._task is not None:
            self._task.cancel()
        _refuse_all(self._emptied(), why)

    def _emptied(self) -> list[Waiting]:
        """Who waits in the mailbox, and waits there no more."""
        return [self._mailbox.get_nowait() for _ in range(self._mailbox.qsize())]

    async def _serve(self) -> None:
        while self._closed is None:
            batch = [await self._mailbox.get()]
            while len(batch) < BATCH_COMMANDS_MAX and not self._mailbox.empty():
                batch.append(self._mailbox.get_nowait())
            if self._held is not None:
                _refuse_all(batch, self._held)
                continue
            self._quiet.clear()
            try:
                await self._batch(batch)
            except asyncio.CancelledError:
                _refuse_all(batch, self._closed or NotServed("this node stops", hint="send the command again"))
                raise
            finally:
                self._quiet.set()

    async def _batch(self, batch: list[Waiting]) -> None:
        try:
            await self._take(batch)
        except Fenced as problem:
            await self._shut(batch, problem)
        except Exception as problem:
            # Refused as a whole, or the outcome is unknown: what is in memory may be behind the log.
            self._state = None
            _refuse_all(batch, problem)

    async def _shut(self, batch: list[Waiting], problem: Fenced) -> None:
        """Somebody else owns the agent from here on."""
        try:
            moved = await self._moved(self.name, problem)
        except PerdureError as unknown:
            moved = NotServed(
                f"agent {self.name.agent!r} is not served here any more: {problem}; where it is: {unknown}",
                tenant=self.name.tenant,
                agent=self.name.agent,
            )
        self._closed = moved
        _refuse_all([*batch, *self._emptied()], moved)
        self._gone(self.name)

    async def _take(self, batch: Sequence[Waiting]) -> None:
        """Answer every command of the batch, or raise."""
        conflicts = 0
        while fresh := self._unanswered(batch):
            if self._state is None:
                self._state = await self._load(self.name)
            try:
                await self._together(fresh)
            except Fenced:
                raise
            except AlreadyExists:
                # One of them took effect before: the log is asked about each.
                for each in fresh:
                    await self._settle(each)
                self._state = None
            except Conflict:
                self._state = None
                conflicts += 1
                if conflicts == ATTEMPTS_MAX:
                    raise

    def _unanswered(self, batch: Sequence[Waiting]) -> list[Waiting]:
        """What is left to do; of a command that stands twice in the batch the second waits for the first's result."""
        left: dict[UUID, Waiting] = {}
        for each in batch:
            if not self._answered(each):
                left.setdefault(each.command.id, each)
        return list(left.values())

    async def _together(self, batch: Sequence[Waiting]) -> None:
        """Decide one after the other as many as one append holds, append at once, answer."""
        assert self._state is not None
        document, version = self._state
        events: list[Event] = []
        decided: list[tuple[Waiting, int, int]] = []
        for each in batch:
            own = await self._decide(document, each)
            if own is None:
                continue
            document = _folded(document, own)
            events += own
            decided.append((each, version + len(events), len(own)))
            if len(events) >= limits.BATCH_EVENTS_MAX:
                break
        await self._append(events, version)
        self._state = Loaded(document, version + len(events))
        for each, at, count in decided:
            self._answer(each, CommandResult(at, count, self.epoch))

    async def _settle(self, each: Waiting) -> None:
        """Answer a command that took effect before, as the log has it."""
        found = await self._log.store.find(await self._log.vault.record(*self.name), [each.command.id])
        if found:
            self._answer(each, CommandResult(found[0].version, 0, found[0].epoch, already=True))

    async def _decide(self, document: dict[str, Any], each: Waiting) -> list[Event] | None:
        """The command's events; None when the handler refused it, which its caller is told."""
        try:
            decided = self._handler(document, each.command.body)
            if inspect.isawaitable(decided):
                decided = await decided
            return events_of(each.command, decided)
        except Exception as problem:
            # That a state was changed in place is a fault of the handler, and nothing that its caller did.
            if isinstance(problem, PerdureError) and not isinstance(problem, ReadOnly):
                _refuse(each, problem)
                return None
            failed = CommandFailed(
                f"{type(problem).__name__}: {problem}",
                hint="raised by the handler; nothing was written",
                tenant=self.name.tenant,
                agent=self.name.agent,
            )
            failed.__cause__ = problem
            _refuse(each, failed)
        return None

    async def _append(self, events: Sequence[Event], version: int) -> None:
        if not self._may_act():
            raise NotServed("this node's lease has run out", hint="ask again soon", tenant=self.name.tenant, agent=self.name.agent)
        if not events:
            return
        steps.reach("host.decided")
        done = await self._log.append_events(self.name, events, expected=version, epoch=self.epoch)
        steps.reach("host.appended")
        if done.already:
            raise AlreadyExists("these commands took effect before")

    def _answered(self, each: Waiting) -> bool:
        """Answer a command that was sent again from memory. One whose caller has gone needs nothing more."""
        if each.answer.done():
            return True
        known = self._remembered.get(each.command.id)
        if known is None:
            return False
        each.answer.set_result(msgspec.structs.replace(known, already=True))
        return True

    def _answer(self, each: Waiting, result: CommandResult) -> None:
        self._remembered[each.command.id] = result
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        if not each.answer.done():
            each.answer.set_result(result)


def _folded(document: dict[str, Any], events: Sequence[Event]) -> dict[str, Any]:
    """The document after the events, read-only again: what they did not change is shared."""
    for event in events:
        document, _warnings = apply(document, event.changes)
    after: dict[str, Any] = freeze(document)
    return after


def _refuse_all(waiting: Sequence[Waiting], problem: Exception) -> None:
    for each in waiting:
        _refuse(each, again(problem))


def _refuse(each: Waiting, problem: Exception) -> None:
    if not each.answer.done():
        each.answer.set_exception(problem)
        each.answer.exception()  # its caller may be gone
