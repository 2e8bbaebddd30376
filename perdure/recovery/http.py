"""An agent host's commands over HTTP: for callers of the same machine, or behind whatever guards the way to it.

`POST /v1/tenants/{tenant}/agents/{agent}/commands` takes `{"id": …, "body": …}`; `GET …/state` and `GET /v1/node` read; `POST /v1/where` tells
where many agents are. Errors are problem
details (RFC 9457) with the code of the error; 421 (misdirected) carries the address of the node that serves the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from perdure.engine.log.contract import AgentName
from perdure.errors import InvalidInput, LimitExceeded, PerdureError
from perdure.identifiers import uuid7
from perdure.recovery.commands import COMMAND_BYTES_MAX, Command
from perdure.recovery.host import AgentHost
from perdure.recovery.wire import AGENT_ROUTE, WHERE_ROUTE, Where, status_of

__all__ = ["application", "bind", "serving"]

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
_COMMANDS: Final = compile_path(f"{AGENT_ROUTE}/commands")[0]
_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Body(msgspec.Struct):
    body: Any = None
    id: UUID | None = None


class _HandOver(msgspec.Struct):
    """do: stand (where is it?), hold, go_on, left (the log has given it to `node` under `epoch`)."""

    do: Literal["stand", "hold", "go_on", "left"]
    node: str = ""
    address: str = ""
    epoch: int = 0
    digest: bool = False


_decode = msgspec.json.Decoder(_Body).decode
_decode_where = msgspec.json.Decoder(Where).decode
_decode_hand_over = msgspec.json.Decoder(_HandOver).decode


def application(host: AgentHost) -> ASGIApp:
    """The host's routes."""
    others = _others(host)

    async def command(name: AgentName, receive: Receive) -> Response:
        try:
            asked = _decode(await _content(receive))
            done = await host.command(name, Command(asked.body, asked.id or uuid7()))
        except msgspec.MsgspecError as problem:
            return _problem(InvalidInput(f"the command is not understood: {problem}", hint='send {"id": a UUIDv7, "body": any JSON}'))
        except PerdureError as problem:
            return _problem(problem)
        return Response(_encode(done), media_type=JSON)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # What is asked a thousand times a second does not go through layers that find routes and catch what was not foreseen.
        name = _commanded(scope)
        if name is None:
            await others(scope, receive, send)
        else:
            await (await command(name, receive))(scope, receive, send)

    return serve


def _others(host: AgentHost) -> Starlette:
    """The routes of everything but commands."""

    async def hand_over(request: Request) -> Response:
        try:
            asked, name = _decode_hand_over(await _content(request.receive)), _name(request)
            answer: Any = None
            match asked.do:
                case "stand":
                    answer = await host.stand(name)
                case "hold":
                    answer = await host.hold(name, asked.node, asked.address, with_digest=asked.digest)
                case "go_on":
                    host.go_on(name)
                case "left":
                    answer = await host.leave(name, asked.node, asked.address, asked.epoch)
        except msgspec.MsgspecError as problem:
            return _problem(InvalidInput(f"not understood: {problem}"))
        except PerdureError as problem:
            return _problem(problem)
        return Response(_encode(answer), media_type=JSON)

    async def state(request: Request) -> Response:
        try:
            read = await host.state(_name(request))
        except PerdureError as problem:
            return _problem(problem)
        return Response(_encode({"version": read.version, "epoch": read.epoch, "document": read.document}), media_type=JSON)

    async def where(request: Request) -> Response:
        try:
            asked = _decode_where(await _content(request.receive))
            found = await host.find([AgentName(*agent) for agent in asked.agents], asked.silent, asked.wait_s)
        except msgspec.MsgspecError as problem:
            return _problem(InvalidInput(f"not understood: {problem}", hint='send {"agents": [[tenant, agent], …]}'))
        except PerdureError as problem:
            return _problem(problem)
        return Response(_encode(found), media_type=JSON)

    async def node(_: Request) -> Response:
        facts = {"node": host.name, "address": host.address, "serving": host.serving, "lease": host.holds_lease()}
        return Response(_encode(facts), media_type=JSON, status_code=200 if facts["lease"] else 503)

    return Starlette(
        routes=[
            Route(f"{AGENT_ROUTE}/hand-over", hand_over, methods=["POST"]),
            Route(f"{AGENT_ROUTE}/state", state, methods=["GET"]),
            Route("/v1/node", node, methods=["GET"]),
            Route(WHERE_ROUTE, where, methods=["POST"]),
        ]
    )


def bind(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listening socket; port 0: a free one."""
    listening = socket.create_server((address, port), backlog=1024)
    # Connections inherit it. Answers go out in two pieces, and the second would else wait for the first's acknowledgement, some 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setblocking(False)
    return listening


@contextlib.asynccontextmanager
async def serving(host: AgentHost, listening: socket.socket) -> AsyncIterator[None]:
    """Serve the host's commands on the socket inside the block; requests under way are finished at its end."""
    settings = uvicorn.Config(application(host), proxy_headers=False, log_level="error", access_log=False, lifespan="off")
    settings.timeout_graceful_shutdown = 5
    server = uvicorn.Server(settings)
    # The process decides what a signal means, not the HTTP server.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve([listening]), name="perdure-host-http")
    try:
        yield
    finally:
        host.end_waits()  # requests under way are waited for
        server.should_exit = True
        await task
        listening.close()


def _name(request: Request) -> AgentName:
    return AgentName(request.path_params["tenant"], request.path_params["agent"])


def _commanded(scope: Scope) -> AgentName | None:
    """Which agent is sent a command; None: it is another request."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    found = _COMMANDS.fullmatch(scope["path"])
    return AgentName(found["tenant"], found["agent"]) if found is not None else None


async def _content(receive: Receive) -> bytes:
    """The body, refused as soon as it is too long."""
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        content += message.get("body", b"")
        if len(content) > COMMAND_BYTES_MAX:
            raise LimitExceeded(f"a command has more than {COMMAND_BYTES_MAX} bytes")
        if not message.get("more_body", False):
            return bytes(content)


def _problem(problem: PerdureError) -> Response:
    status = status_of(problem)
    facts = problem.as_dict()
    body = {"type": f"urn:perdure:{problem.code}", "title": problem.code, "status": status, "detail": facts.pop("message"), **facts}
    return Response(_encode(body), status_code=status, media_type=PROBLEM)
