"""An agent host's commands over HTTP: for callers of the same machine, or behind whatever guards the way to it.

`POST /v1/tenants/{tenant}/agents/{agent}/commands` takes `{"id": …, "body": …}`; `GET …/state` and `GET /v1/node` read; `POST /v1/where` tells
where many agents are. A WebSocket on `/v1/channel` takes the same commands, of any number of agents (`perdure.recovery.wire.Asked`).

Errors are problem details (RFC 9457) with the code of the error; 421 (misdirected) carries the address of the node that serves the agent. Pages in
a browser are refused: whoever guards the way to a node guards nothing from a page that is shown beside it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec

from perdure.engine.log.records import AgentName
from perdure.errors import Denied, InvalidInput, LimitExceeded, NotFound, PerdureError
from perdure.identifiers import uuid7
from perdure.recovery.commands import COMMAND_BYTES_MAX, Command
from perdure.recovery.host import AgentHost
from perdure.recovery.http_server import Reply, Request, Server, bind
from perdure.recovery.wire import AGENT_ROUTE, CHANNEL_ROUTE, NODE_ROUTE, WHERE_ROUTE, Answered, Asked, Where, status_of

__all__ = ["bind", "serving"]

PROBLEM: Final = "application/problem+json"
_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Body(msgspec.Struct):
    body: Any = None
    id: UUID | None = None


class _HandOver(msgspec.Struct):
    """do: stand (where is it?), hold (with the events that follow `after`), go_on, left (the log has given it to `node` under `epoch`)."""

    do: Literal["stand", "hold", "go_on", "left"]
    node: str = ""
    address: str = ""
    epoch: int = 0
    digest: bool = False
    after: int = 0


class _Route(NamedTuple):
    """What is asked, and of which agent ('': of none)."""

    what: str
    name: AgentName


_Content = bytes | msgspec.Raw
_decode = msgspec.json.Decoder(_Body).decode
_decode_asked = msgspec.json.Decoder(Asked).decode
_decode_where = msgspec.json.Decoder(Where).decode
_decode_hand_over = msgspec.json.Decoder(_HandOver).decode
_METHODS: Final = {"commands": b"POST", "hand-over": b"POST", "where": b"POST", "state": b"GET", "node": b"GET"}
_OTHERS: Final = {WHERE_ROUTE.encode(): "where", NODE_ROUTE.encode(): "node"}
_NOBODY: Final = AgentName("", "")
_HINTS: Final = {"commands": 'send {"id": a UUIDv7, "body": any JSON}', "where": 'send {"agents": [[tenant, agent], …]}'}


def _route(method: bytes, target: bytes) -> _Route | None:
    """None: there is no such route."""
    path = target.partition(b"?")[0]
    if (found := AGENT_ROUTE.fullmatch(path)) is not None:
        route = _Route(found["what"].decode(), AgentName(_unquoted(found["tenant"]), _unquoted(found["agent"])))
    elif (what := _OTHERS.get(path)) is not None:
        route = _Route(what, _NOBODY)
    else:
        return None
    return route if method == _METHODS[route.what] else None


class _Routes:
    """Answers requests as the host does."""

    def __init__(self, host: AgentHost) -> None:
        self._host = host
        self._by_what: dict[str, Callable[[AgentName, _Content], Awaitable[Reply]]] = {
            "commands": self._command,
            "hand-over": self._hand_over,
            "state": self._state,
            "where": self._where,
            "node": self._node,
        }

    async def answer(self, request: Request) -> Reply:
        if request.origin:
            return _problem(Denied("a node takes nothing from pages in a browser", hint="send it without an Origin header"))
        try:
            route = _route(request.method, request.target)
        except UnicodeDecodeError:
            return _problem(InvalidInput("the path is not quoted UTF-8"))
        if route is None:
            return _problem(NotFound("there is no such route"))
        return await self._answer(route, request.content)

    async def answer_message(self, content: bytes) -> bytes | None:
        """One command on a channel, and its answer."""
        try:
            number, tenant, agent, command = msgspec.structs.astuple(_decode_asked(content))
        except msgspec.MsgspecError:
            return None
        reply = await self._answer(_Route("commands", AgentName(tenant, agent)), command)
        return _encode(Answered(number, reply.status, msgspec.Raw(reply.content)))

    async def _answer(self, route: _Route, content: _Content) -> Reply:
        try:
            return await self._by_what[route.what](route.name, content)
        except msgspec.MsgspecError as problem:
            return _problem(InvalidInput(f"not understood: {problem}", hint=_HINTS.get(route.what, "")))
        except PerdureError as problem:
            return _problem(problem)

    async def _command(self, name: AgentName, content: _Content) -> Reply:
        asked = _decode(content)
        return Reply(200, _encode(await self._host.command(name, Command(asked.body, asked.id or uuid7()))))

    async def _hand_over(self, name: AgentName, content: _Content) -> Reply:
        asked, host = _decode_hand_over(content), self._host
        answer: Any = None
        match asked.do:
            case "stand":
                answer = await host.stand(name)
            case "hold":
                answer = await host.hold(name, asked.node, asked.address, with_digest=asked.digest, after=asked.after)
            case "go_on":
                host.go_on(name)
            case "left":
                answer = await host.leave(name, asked.node, asked.address, asked.epoch)
        return Reply(200, _encode(answer))

    async def _state(self, name: AgentName, _: _Content) -> Reply:
        read = await self._host.state(name)
        return Reply(200, _encode({"version": read.version, "epoch": read.epoch, "document": read.document}))

    async def _where(self, _: AgentName, content: _Content) -> Reply:
        asked = _decode_where(content)
        return Reply(200, _encode(await self._host.find([AgentName(*agent) for agent in asked.agents], asked.silent, asked.wait_s)))

    async def _node(self, _: AgentName, __: _Content) -> Reply:
        host = self._host
        facts = {"node": host.name, "address": host.address, "serving": host.serving, "lease": host.holds_lease()}
        return Reply(200 if facts["lease"] else 503, _encode(facts))


def _unquoted(part: bytes) -> str:
    return unquote_to_bytes(part).decode()


@contextlib.asynccontextmanager
async def serving(host: AgentHost, listening: socket.socket) -> AsyncIterator[None]:
    """Serve the host's commands on the socket inside the block; requests under way are finished at its end."""
    too_long = _problem(LimitExceeded(f"a command has more than {COMMAND_BYTES_MAX} bytes"))
    routes = _Routes(host)
    server = Server(routes.answer, body_bytes_max=COMMAND_BYTES_MAX, too_long=too_long, channel=(CHANNEL_ROUTE, routes.answer_message))
    server.start(listening)
    try:
        yield
    finally:
        host.end_waits()  # requests under way are waited for
        await server.close()
        listening.close()


def _problem(problem: PerdureError) -> Reply:
    status = status_of(problem)
    facts = problem.as_dict()
    body = {"type": f"urn:perdure:{problem.code}", "title": problem.code, "status": status, "detail": facts.pop("message"), **facts}
    return Reply(status, _encode(body), PROBLEM)
