"""Calling agents wherever they are served: follows *moved* answers and repeats a command by its id until it took effect once."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from perdure.engine.log.records import AgentName
from perdure.engine.remembering import forget_oldest
from perdure.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from perdure.recovery.channels import Channels
from perdure.recovery.commands import Command, CommandResult
from perdure.recovery.connections import Connections
from perdure.recovery.searching import Addresses, Search
from perdure.recovery.wire import error_of

__all__ = ["Caller"]

PAUSE_S: Final = 0.02
PAUSE_MAX_S: Final = 0.5
REQUEST_TIMEOUT_S: Final = 5.0
FIND_S: Final = 5.0
"""How long, about, an agent is looked for before a node is asked for it all the same."""
ROUTES_MAX: Final = 100_000
"""Agents whose node is remembered."""

_encode = msgspec.json.Encoder(enc_hook=str).encode
_result = msgspec.json.Decoder(CommandResult).decode
_problem = msgspec.json.Decoder(dict[str, Any]).decode


class Caller:
    """addresses: URLs of nodes to begin with. One that does not answer is passed over; one that says where the agent is, is believed."""

    def __init__(self, addresses: list[str], *, timeout_s: float = 15.0) -> None:
        if not addresses:
            raise InvalidInput("no address of a node was given")
        self._timeout_s = timeout_s
        self._routes: dict[AgentName, str] = {}
        self._connections = Connections(REQUEST_TIMEOUT_S)
        self._channels = Channels(REQUEST_TIMEOUT_S)
        self._addresses = Addresses(addresses)
        self._search = Search(self._addresses, self._connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        await self._search.close()
        await self._channels.close()
        await self._connections.close()

    async def command(self, name: AgentName, body: Any, command: Command | None = None) -> CommandResult:
        """Send a command until it took effect; what the handler raised comes as CommandFailed, DeadlineExceeded: nobody answered in time."""
        command = command or Command(body)
        content = _encode({"id": command.id, "body": command.body})
        deadline = time.monotonic() + self._timeout_s
        # Agents that nobody serves yet spread over the nodes.
        turn, pause_s = zlib.crc32(name.agent.encode()), 0.0
        problem = "no node answered"
        while time.monotonic() < deadline:
            address = self._routes.get(name) or self._addresses.choice(turn)
            turn += 1
            try:
                return await self._send(address, name, content)
            except Unavailable as refused:
                problem = refused.message
                known = refused.details.get("address")
                if known and known != address and self._addresses.answers(known):
                    self._remember(name, known)
                    continue
                if not isinstance(refused, Overloaded):
                    self._routes.pop(name, None)
            # Apart from each other: callers that failed together shall not come together again.
            await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 - no secret
            pause_s = min(pause_s * 2 or PAUSE_S, PAUSE_MAX_S)
            if name not in self._routes:
                find_s = FIND_S * (0.75 + random.random() / 2)  # noqa: S311 - no secret
                found = await self._search.find(name, min(find_s, deadline - time.monotonic()))
                if found:
                    self._remember(name, found)
        raise DeadlineExceeded(f"{problem} (for {self._timeout_s:g} s)", tenant=name.tenant, agent=name.agent)

    async def _send(self, address: str, name: AgentName, content: bytes) -> CommandResult:
        try:
            answer = await self._channels.ask(address, name, content)
        except Unavailable:
            self._addresses.fell_silent(address)
            raise
        self._addresses.answered(address)
        try:
            if answer.status == HTTPStatus.OK:
                result = _result(answer.content)
                self._remember(name, address)
                return result
            facts = _problem(answer.content)
        except msgspec.MsgspecError as problem:
            raise Unavailable(f"node {address} answers what nobody understands: {problem}") from problem
        detail = facts.get("detail") or f"node {address} answered {answer.status}"
        where = {"address": facts["address"]} if "address" in facts else {}
        raise error_of(answer.status)(detail, hint=facts.get("hint") or "", tenant=name.tenant, agent=name.agent, **where)

    def _remember(self, name: AgentName, address: str) -> None:
        self._routes[name] = address
        forget_oldest(self._routes, ROUTES_MAX)
