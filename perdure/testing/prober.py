"""Open-loop probers: commands to agents at fixed intended times, whatever becomes of those before, and what came of each.

How long an agent was away is what somebody outside saw of it: the longest gap between commands that it accepted. A prober that waits for one
answer before it asks again would not ask while the agent is away, and see nothing (coordinated omission); so every command has its intended
time, is sent without looking at the others, and is measured from that time. When the prober itself is late, its record says so.

One process probes many agents; a command costs it a task and some forty bytes of record.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from perdure.engine.changes import set_value
from perdure.engine.event import Event
from perdure.engine.log.records import AgentName
from perdure.errors import Conflict, InvalidInput, PerdureError, Unavailable
from perdure.recovery.commands import Command, CommandResult
from perdure.testing.history import Acknowledged

__all__ = ["COUNT", "Outcome", "Probe", "Prober", "Probing", "count"]

RATE_MAX: Final = 10_000.0
"""Commands a second to one agent."""
IN_FLIGHT_MAX: Final = 1_024
"""Commands to one agent under way at once, as many as its mailbox holds; what is due above is recorded as not sent, and so counts as time in
which the agent was away. Without a bound, repeats of what a busy machine did not answer in time would keep it busy for ever."""
TICK_S: Final = 0.0005
"""The shortest rest between two looks at what is due."""
COUNT: Final = "perdure.testing.prober:count"
"""The handler to give to hosts of probed agents."""

Send = Callable[[AgentName, Command], Awaitable[CommandResult]]
"""Sends one command and returns when it took effect; what it raises is recorded, and raised only when it is no PerdureError."""


def count(state: dict[str, Any], body: Any) -> Sequence[Event]:
    """A handler whose events tell which state they were decided on: each counts one further, whoever serves the agent."""
    after = state.get("count", 0) + 1
    return [Event("probed", changes=(set_value("/count", after), set_value("/last", body)), data={"count": after})]


class Outcome(IntEnum):
    """What came of a command. UNKNOWN: nobody answered in time; it may be in the log or not. NOT_SENT: too many were under way."""

    UNKNOWN = 0
    ACCEPTED = 1
    REFUSED = 2
    NOT_SENT = 3


class Probe(NamedTuple):
    """One command. Times in seconds on the machine's monotonic clock; version and epoch are 0 where it was not accepted."""

    id: UUID
    intended_s: float
    sent_s: float
    answered_s: float
    outcome: Outcome
    version: int
    epoch: int


class Probing:
    """The record of one agent's commands, in the order of their intended times."""

    def __init__(self, name: AgentName) -> None:
        self.name = name
        self._ids = bytearray()
        self._intended, self._sent, self._answered = array("d"), array("d"), array("d")
        self._outcomes = bytearray()
        self._versions, self._epochs = array("q"), array("q")
        self._gaps: tuple[int, list[float]] = (0, [])

    def __len__(self) -> int:
        return len(self._outcomes)

    def __iter__(self) -> Iterator[Probe]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Probe:
        id = UUID(bytes=bytes(self._ids[16 * number : 16 * number + 16]))
        times = self._intended[number], self._sent[number], self._answered[number]
        return Probe(id, *times, Outcome(self._outcomes[number]), self._versions[number], self._epochs[number])

    def begin(self, id: UUID, intended_s: float, sent_s: float, outcome: Outcome = Outcome.UNKNOWN) -> int:
        """Note a command as it is sent; its number."""
        self._ids += id.bytes
        self._intended.append(intended_s)
        self._sent.append(sent_s)
        self._answered.append(float("inf"))
        self._outcomes.append(outcome)
        self._versions.append(0)
        self._epochs.append(0)
        return len(self._outcomes) - 1

    def end(self, number: int, answered_s: float, outcome: Outcome, version: int = 0, epoch: int = 0) -> None:
        """Note what came of it."""
        self._answered[number] = answered_s
        self._outcomes[number] = outcome
        self._versions[number] = version
        self._epochs[number] = epoch

    def dump(self) -> bytes:
        """The whole record as bytes for another process of this machine."""
        columns = (self._intended, self._sent, self._answered, self._versions, self._epochs)
        parts = (*self.name, bytes(self._ids), bytes(self._outcomes), *(column.tobytes() for column in columns))
        return msgspec.msgpack.encode(parts)

    @classmethod
    def load(cls, dumped: bytes) -> Probing:
        """What `dump` gave."""
        tenant, agent, ids, outcomes, *columns = msgspec.msgpack.decode(dumped)
        record = cls(AgentName(tenant, agent))
        record._ids += ids
        record._outcomes += outcomes
        for column, content in zip((record._intended, record._sent, record._answered), columns[:3], strict=True):
            column.frombytes(content)
        record._versions.frombytes(columns[3])
        record._epochs.frombytes(columns[4])
        return record

    def of(self, outcome: Outcome) -> int:
        """How many commands came to this."""
        return self._outcomes.count(outcome)

    def acknowledged(self) -> Iterator[Acknowledged]:
        """What was accepted, as the history checkers take it."""
        return (Acknowledged(*self.name, each.id, each.version, each.epoch) for each in self if each.outcome is Outcome.ACCEPTED)

    def accepted_s(self) -> list[float]:
        """The times at which commands were accepted, ascending."""
        known, times = self._gaps
        accepted = self.of(Outcome.ACCEPTED)
        if known != accepted or len(times) != accepted:
            pairs = zip(self._answered, self._outcomes, strict=True)
            times = sorted(at for at, outcome in pairs if outcome == Outcome.ACCEPTED)
            self._gaps = (accepted, times)
        return times

    def longest_gap_s(self, start_s: float, end_s: float) -> float:
        """The longest time between two accepted commands that overlaps the window; infinite when nothing was accepted before, or since."""
        times = self.accepted_s()
        first = bisect.bisect_right(times, start_s) - 1
        last = bisect.bisect_left(times, end_s)
        if first < 0 or last >= len(times):
            return float("inf")
        return max((times[at + 1] - times[at] for at in range(first, last)), default=0.0)

    def latencies_s(self, start_s: float, end_s: float) -> list[float]:
        """From the intended time to the answer, of accepted commands that were due within the window."""
        return [answered - intended for intended, answered in self._between(start_s, end_s, self._answered) if answered < float("inf")]

    def lateness_s(self, start_s: float, end_s: float) -> list[float]:
        """By how much the prober itself was late: from the intended time to the sending."""
        return [sent - intended for intended, sent in self._between(start_s, end_s, self._sent)]

    def _between(self, start_s: float, end_s: float, times: array[float]) -> Iterator[tuple[float, float]]:
        first, last = bisect.bisect_left(self._intended, start_s), bisect.bisect_left(self._intended, end_s)
        for number in range(first, last):
            if times is self._sent or self._outcomes[number] == Outcome.ACCEPTED:
                yield self._intended[number], times[number]


class Prober:
    """Sends to each agent at its rate (commands a second) from `start` until `stop`; `records` may be read at any time.

    send: e.g. `lambda name, command: caller.command(name, None, command)`. body: what the commands carry. in_flight_max: of one agent.
    """

    def __init__(self, send: Send, rates: Mapping[AgentName, float], *, body: Any = None, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        if not rates or not all(0 < rate <= RATE_MAX for rate in rates.values()):
            raise InvalidInput(f"probe at least one agent, at up to {RATE_MAX:g} commands a second")
        self.records = {name: Probing(name) for name in rates}
        self._send = send
        self._intervals_s = {name: 1 / rate for name, rate in rates.items()}
        self._body = body
        self._in_flight_max = in_flight_max
        self._under_way: set[asyncio.Task[None]] = set()
        self._in_flight = dict.fromkeys(rates, 0)
        self._running: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._accepted = asyncio.Event()
        self._failed: BaseException | None = None

    @property
    def under_way(self) -> int:
        """Commands that were sent and not answered yet."""
        return len(self._under_way)

    async def __aenter__(self) -> Prober:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Begin to probe."""
        assert self._running is None
        self._running = asyncio.create_task(self._run(), name="perdure-prober")

    async def stop(self) -> None:
        """Send no more, and wait for the answers. Raises what sending raised, when that was a fault of the prober's caller."""
        self._stop.set()
        self._accepted.set()
        if self._running is not None:
            await self._running
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._failed is not None:
            raise self._failed

    async def accepted(self, name: AgentName, commands: int = 1) -> None:
        """Wait until this many more commands were accepted by the agent."""
        wanted = self.records[name].of(Outcome.ACCEPTED) + commands
        while self.records[name].of(Outcome.ACCEPTED) < wanted:
            if self._stop.is_set():
                raise Unavailable("the prober has stopped", tenant=name.tenant, agent=name.agent)
            self._accepted.clear()
            await self._accepted.wait()

    async def _run(self) -> None:
        begun_s = time.monotonic()
        share = 1 / len(self._intervals_s)
        # Apart from each other from the first command on.
        due = [(begun_s + interval_s * number * share, name) for number, (name, interval_s) in enumerate(self._intervals_s.items())]
        heapq.heapify(due)
        while not self._stop.is_set():
            now_s = time.monotonic()
            while due[0][0] <= now_s:
                intended_s, name = due[0]
                self._begin(name, intended_s)
                heapq.heapreplace(due, (intended_s + self._intervals_s[name], name))
            await asyncio.sleep(max(TICK_S, due[0][0] - time.monotonic()))

    def _begin(self, name: AgentName, intended_s: float) -> None:
        command = Command(self._body)
        if self._in_flight[name] >= self._in_flight_max:
            self.records[name].begin(command.id, intended_s, time.monotonic(), Outcome.NOT_SENT)
            return
        number = self.records[name].begin(command.id, intended_s, time.monotonic())
        self._in_flight[name] += 1
        task = asyncio.create_task(self._one(name, command, number))
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None and self._failed is None:
            self._failed = problem
            self._stop.set()
            self._accepted.set()

    async def _counted(self, name: AgentName, command: Command) -> CommandResult:
        try:
            return await self._send(name, command)
        finally:
            self._in_flight[name] -= 1

    async def _one(self, name: AgentName, command: Command, number: int) -> None:
        record = self.records[name]
        try:
            done = await self._counted(name, command)
        except PerdureError as problem:
            # Where nobody answered, or somebody else was first, it may have taken effect; any other error says that it did not.
            outcome = Outcome.UNKNOWN if isinstance(problem, Unavailable | Conflict) else Outcome.REFUSED
            record.end(number, time.monotonic(), outcome)
            return
        record.end(number, time.monotonic(), Outcome.ACCEPTED, done.version, done.epoch)
        self._accepted.set()
