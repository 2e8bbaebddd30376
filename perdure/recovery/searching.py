"""How a process that calls agents finds them again: which addresses answer, and one question for all agents whose node is gone.

Invariants:

1. An address that does not answer is tried again by one caller at a time, after pauses that grow; the others pass it over meanwhile.
2. However many agents lost their node at once, few questions about them are under way, each about many.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from perdure.engine.log.records import AgentName
from perdure.errors import PerdureError, Unavailable
from perdure.limits import WHERE_AGENTS_MAX
from perdure.recovery.connections import Connections
from perdure.recovery.wire import WHERE_ROUTE, Where

__all__ = ["Addresses", "Search"]

SILENT_S: Final = 0.5
"""How long an address that did not answer is passed over at first."""
SILENT_MAX_S: Final = 4.0
SILENT_ADDRESSES_MAX: Final = 256
"""Silent addresses that are remembered, the newest ones: nodes that are gone for good would else gather."""
QUESTIONS_MAX: Final = 4
"""Questions under way at once: agents that are lost a moment after others need not wait until those are found."""
GATHER_S: Final = 0.01
"""How long a question waits for more agents that lost their node with the first."""
WAIT_S: Final = 1.0
"""How long a node may wait before it answers that it knows of none."""
PAUSE_S: Final = 0.1
"""After a question that no node answered."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[str | None]).decode


class Addresses:
    """Which of the nodes' addresses answer."""

    def __init__(self, addresses: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = list(addresses)
        self._clock = clock
        self._silent: dict[str, tuple[float, float]] = {}  # until when it is passed over, and for how long the next time

    def answered(self, address: str) -> None:
        """It answered, whatever it said."""
        self._silent.pop(address, None)

    def fell_silent(self, address: str) -> None:
        """It did not answer. Those who asked it at the same time say so, too; that counts once."""
        until, pause_s = self._silent.get(address, (0.0, SILENT_S))
        now = self._clock()
        if now >= until:
            self._silent.pop(address, None)
            self._silent[address] = (now + pause_s, min(pause_s * 2, SILENT_MAX_S))
            if len(self._silent) > SILENT_ADDRESSES_MAX:
                del self._silent[next(iter(self._silent))]

    def answers(self, address: str) -> bool:
        """Whether to try it. Who is told so of a silent one is the only one that tries."""
        silent = self._silent.get(address)
        if silent is None:
            return True
        if self._clock() < silent[0]:
            return False
        self.fell_silent(address)  # until it answers
        return True

    def silent(self) -> list[str]:
        """Those that did not answer when they were asked last."""
        return list(self._silent)

    def choice(self, turn: int) -> str:
        """One of them; a silent one only where there is no other."""
        choice = [address for address in self._addresses if self.answers(address)] or self._addresses
        return choice[turn % len(choice)]


class Search:
    """`find` where an agent is; `close` ends it."""

    def __init__(self, addresses: Addresses, connections: Connections) -> None:
        self._addresses = addresses
        self._connections = connections
        self._lost: dict[AgentName, list[asyncio.Future[str]]] = {}
        self._asked: set[AgentName] = set()
        self._questions: set[asyncio.Task[None]] = set()

    async def find(self, name: AgentName, timeout_s: float) -> str | None:
        """The address of the node that the agent belongs to; '': any node will do; None: nobody knew in time."""
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lost.setdefault(name, []).append(found)
        if len(self._questions) < QUESTIONS_MAX and name not in self._asked:
            question = asyncio.create_task(self._ask(), name="perdure-search")
            self._questions.add(question)
            question.add_done_callback(self._questions.discard)
        try:
            async with asyncio.timeout(timeout_s):
                return await found
        except TimeoutError:
            return None
        finally:
            self._forget(name, found)

    async def close(self) -> None:
        """Ask no more."""
        for question in self._questions:
            question.cancel()
        await asyncio.gather(*self._questions, return_exceptions=True)

    def _forget(self, name: AgentName, found: asyncio.Future[str]) -> None:
        waiting = self._lost.get(name, [])
        if found in waiting:
            waiting.remove(found)
        if not waiting:
            self._lost.pop(name, None)

    async def _ask(self) -> None:
        """Ask about agents that nobody asks about, until there are none."""
        await asyncio.sleep(GATHER_S)
        turn = random.randrange(1 << 16)  # noqa: S311 - no secret
        while names := [name for name in self._lost if name not in self._asked][:WHERE_AGENTS_MAX]:
            self._asked.update(names)
            try:
                answers = await self._question(self._addresses.choice(turn), names)
            finally:
                self._asked.difference_update(names)
            turn += 1
            if answers is None:
                await asyncio.sleep(PAUSE_S * (0.5 + random.random()))  # noqa: S311 - no secret
                continue
            for name, address in zip(names, answers, strict=False):
                if address is not None:
                    self._tell(name, address)

    async def _question(self, address: str, names: list[AgentName]) -> list[str | None] | None:
        """What one node knows; None: it does not answer, or not this."""
        try:
            answer = await self._connections.post(address, WHERE_ROUTE, _encode(Where(list(names), self._addresses.silent(), WAIT_S)))
            self._addresses.answered(address)
            return _decode(answer.content) if answer.status == HTTPStatus.OK else None
        except Unavailable:
            self._addresses.fell_silent(address)
        except (PerdureError, msgspec.MsgspecError):
            pass  # no address of a node; who sends a command there is told
        return None

    def _tell(self, name: AgentName, address: str) -> None:
        for found in self._lost.get(name, ()):
            if not found.done():
                found.set_result(address)
        self._lost.pop(name, None)
