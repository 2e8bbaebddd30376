"""What a node does with agents that are about to leave it, have left it, or are about to come.

Nothing here decides who owns an agent: the log does, by its epoch. Leaving: the agent is held, so that no append is sent which would be refused,
and callers are told at once where to go. Coming: callers that were sent here early wait until the log has decided.

Invariants:

1. A hold that nobody ends runs out by itself. That is no un-fencing: while it lasted the node chose to send nothing, and what it sends
   afterwards is accepted by the log only where the agent is still its own.
2. Of those who wait for an agent to come, a bounded number waits for a bounded time; all are answered.
"""

from __future__ import annotations

import asyncio
import copy
import time
from typing import Any, Final, TypeVar

import msgspec

from perdure.engine.log.records import AgentName, SealedEvent
from perdure.engine.stopping import rest
from perdure.errors import NotServed, Overloaded, PerdureError
from perdure.limits import MOVED_REMEMBERED_MAX, PARKED_COMMANDS_MAX
from perdure.recovery.commands import Command, CommandResult, Waiting

__all__ = ["HOLD_S", "MOVED_FRESH_S", "PARK_S", "Coming", "Handed", "Leaving", "Left", "Stand", "again", "moved_to"]

Problem = TypeVar("Problem", bound=Exception)

HOLD_S: Final = 1.0
"""How long an agent is held for a node that takes it over, and is not heard of again."""
MOVED_FRESH_S: Final = 2.0
"""How long it is believed where an agent went, before the log is asked again."""
PARK_S: Final = 2.0
"""How long a caller waits for an agent that is about to come."""


class Stand(msgspec.Struct, frozen=True):
    """Where an agent stands in its node's memory: version, epoch, digest of the document (hexadecimal)."""

    version: int
    epoch: int
    digest: str


class Handed(msgspec.Struct, frozen=True):
    """A held agent: the version in memory (None: it is not there), the epoch it was served under, the digest where it was asked for, and the newest
    events as they stand in the log, as far as this node still has those that follow the version it was asked about. generation: of the log that it
    wrote them to."""

    version: int | None
    epoch: int
    digest: str = ""
    tail: tuple[SealedEvent, ...] = ()
    generation: int = 0


class Left(msgspec.Struct, frozen=True):
    """An agent that is gone: how long it was held, and where it stood in memory (version 0: it was not there, or is back)."""

    held_s: float = 0.0
    version: int = 0
    digest: str = ""


def moved_to(name: AgentName, node: str, address: str) -> NotServed:
    """What a caller is told of an agent that another node serves, or is about to."""
    hint = f"send the command to {address}" if address else "ask again soon"
    details: dict[str, Any] = {"address": address} if address else {}
    return NotServed(f"agent {name.agent!r} is served by node {node!r}", hint=hint, tenant=name.tenant, agent=name.agent, **details)


def again(why: Problem) -> Problem:
    """The same for another caller: an error that is raised to many grows with each of them, and shows each the others' tracebacks."""
    if not isinstance(why, PerdureError):
        return why  # not every error can be made anew
    other = copy.copy(why)
    other.__cause__ = why.__cause__
    return other


class _Gone:
    """When it went, and what callers are told."""

    __slots__ = ("at", "since", "why")

    def __init__(self, why: NotServed) -> None:
        self.why = why
        self.since = self.at = time.monotonic()


class Leaving:
    """Agents that are held for another node, and those that went a moment ago."""

    def __init__(self) -> None:
        self._held: dict[AgentName, _Gone] = {}
        self._gone: dict[AgentName, _Gone] = {}

    def hold(self, name: AgentName, why: NotServed) -> None:
        """It is being handed over."""
        self._held[name] = _Gone(why)

    def held(self, name: AgentName) -> NotServed | None:
        """What callers are told while it is held; None when it is not, or not any more."""
        held = self._held.get(name)
        return again(held.why) if held is not None and time.monotonic() - held.at < HOLD_S else None

    def go_on(self, name: AgentName) -> None:
        """It is not handed over after all."""
        self._held.pop(name, None)

    def gone(self, name: AgentName, why: NotServed) -> float:
        """The log has given it to another node; for how many seconds it was held."""
        held = self._held.pop(name, None)
        if len(self._gone) >= MOVED_REMEMBERED_MAX:
            self._gone.clear()
        self._gone[name] = _Gone(why)
        return time.monotonic() - held.since if held is not None else 0.0

    def went(self, name: AgentName) -> NotServed | None:
        """Where it went a moment ago; None when that is not known, or may be old."""
        gone = self._gone.get(name)
        return again(gone.why) if gone is not None and time.monotonic() - gone.at < MOVED_FRESH_S else None

    def back(self, name: AgentName) -> None:
        """It is here."""
        self._held.pop(name, None)
        self._gone.pop(name, None)


class _Arrival:
    """An agent that is about to come, and who waits for it. otherwise: what they are told when it does not."""

    __slots__ = ("otherwise", "settled", "waiting")

    def __init__(self, otherwise: NotServed) -> None:
        self.otherwise = otherwise
        self.settled = asyncio.Event()
        self.waiting: list[Waiting] = []


class Coming:
    """Agents that are about to be this node's, and the commands that wait for them."""

    def __init__(self) -> None:
        self._arrivals: dict[AgentName, _Arrival] = {}
        self._parked = 0

    def expect(self, name: AgentName, otherwise: NotServed) -> None:
        """From now on commands wait. otherwise: what their callers are told when it does not come."""
        if name not in self._arrivals:
            self._arrivals[name] = _Arrival(otherwise)

    def expects(self, name: AgentName) -> bool:
        """Whether it is about to come."""
        return name in self._arrivals

    def waiting(self, name: AgentName) -> list[Waiting]:
        """The commands that wait for it so far."""
        arrival = self._arrivals.get(name)
        return arrival.waiting if arrival is not None else []

    def settled(self, name: AgentName) -> tuple[list[Waiting], NotServed] | None:
        """It has come, or will not: the commands that waited for it, and what their callers are told if it does not."""
        arrival = self._arrivals.pop(name, None)
        if arrival is None:
            return None
        arrival.settled.set()
        return arrival.waiting, again(arrival.otherwise)

    async def wait(self, name: AgentName) -> None:
        """Return at once when the agent is not expected, else when it is settled, or after `PARK_S`."""
        arrival = self._arrivals.get(name)
        if arrival is not None:
            await rest(arrival.settled, PARK_S)

    async def park(self, name: AgentName, command: Command) -> CommandResult | None:
        """Wait with a command for its agent; None when the agent is not expected. Raises NotServed when that takes too long, Overloaded."""
        arrival = self._arrivals.get(name)
        if arrival is None:
            return None
        if self._parked >= PARKED_COMMANDS_MAX:
            raise Overloaded(f"{self._parked} commands wait for agents to come", tenant=name.tenant, agent=name.agent)
        answer: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
        arrival.waiting.append(Waiting(command, answer))
        self._parked += 1
        # Until it is settled; how long the command itself then takes is another matter.
        settled = asyncio.ensure_future(rest(arrival.settled, PARK_S))
        try:
            either: list[asyncio.Future[Any]] = [answer, settled]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not arrival.settled.is_set():
                answer.cancel()  # whoever comes to it needs to do nothing more
                raise again(arrival.otherwise)
            return await answer
        finally:
            settled.cancel()
            self._parked -= 1
