"""The HTTP server of a node: uvicorn, with whole requests in and whole answers out, and channels on which many are under way at once.

Requests go from it straight to whoever answers them. A framework would find a route and make objects for each; of the few things that a node is
asked, one is asked a thousand times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from perdure.recovery.http_channel import AnswerMessage, Channel, Message, Receive, Send
from perdure.recovery.wire import CHANNEL_MESSAGE_MORE_BYTES

__all__ = ["JSON", "Reply", "Request", "Server", "bind"]

JSON: Final = "application/json"
HEAD_BYTES_MAX: Final = 64 * 1024
"""A request's first line and headers, and as much more as was read at once."""
END_S: Final = 5
"""How long requests under way may take when the server ends."""


class Request(NamedTuple):
    """target: as it was sent, quoted, without its query. origin: of the page that a browser sent it for; nobody else says one."""

    method: bytes
    target: bytes
    content: bytes
    origin: bytes = b""


class Reply(NamedTuple):
    """An answer."""

    status: int
    content: bytes
    content_type: str = JSON


Answer = Callable[[Request], Awaitable[Reply]]
"""What a request comes to; it raises nothing but what is a fault of its own."""


class _Bounded(HttpToolsProtocol):
    """uvicorn's protocol, which by itself would keep a head that has no end."""

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self.send_400_response("The head is too long.")

    def on_headers_complete(self) -> None:
        self._head_bytes = -sys.maxsize  # what comes now is a body, which has a bound of its own
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()


class Server:
    """Answers requests on a listening socket from `start` until `close`. body_bytes_max: larger bodies are refused with `too_long`.

    channel: the path of channels, and what a message on one comes to; longer ones than a body may be end the channel.
    """

    def __init__(self, answer: Answer, *, body_bytes_max: int, too_long: Reply, channel: tuple[str, AnswerMessage] | None = None) -> None:
        self._answer = answer
        self._body_bytes_max = body_bytes_max
        self._too_long = too_long
        self._channel = channel
        self._channels: dict[Channel, asyncio.Task[object]] = {}
        self._ending = False
        settings = uvicorn.Config(
            self._serve,
            http=_Bounded,
            ws=WebSocketsSansIOProtocol,
            ws_max_size=body_bytes_max + CHANNEL_MESSAGE_MORE_BYTES,
            ws_per_message_deflate=False,
            interface="asgi3",
            lifespan="off",
            proxy_headers=False,
            log_level="error",
            access_log=False,
        )
        settings.timeout_graceful_shutdown = END_S
        self._server = uvicorn.Server(settings)
        # The process decides what a signal means, not the HTTP server.
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._task: asyncio.Task[None] | None = None

    def start(self, listening: socket.socket) -> None:
        """Answer from now on."""
        self._task = asyncio.create_task(self._server.serve([listening]), name="perdure-host-http")

    async def close(self) -> None:
        """Take no more requests, finish those under way, or give them up after `END_S`."""
        self._ending = True
        for channel in self._channels:
            channel.end()
        if self._channels:
            await asyncio.wait(self._channels.values(), timeout=END_S)
        self._server.should_exit = True
        if self._task is not None:
            await self._task

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """The application, as ASGI has it."""
        if scope["type"] == "websocket":
            return await self._serve_channel(scope, receive, send)
        content = bytearray()
        more = True
        while more and len(content) <= self._body_bytes_max:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            content += message.get("body", b"")
            more = message.get("more_body", False)
        if len(content) > self._body_bytes_max:
            reply = self._too_long
        else:
            reply = await self._answer(Request(scope["method"].encode(), scope["raw_path"], bytes(content), _origin(scope)))
        headers = [(b"content-type", reply.content_type.encode()), (b"content-length", b"%d" % len(reply.content))]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.content})

    async def _serve_channel(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()  # that somebody wants to connect
        # A browser would open it for any page of the web, and show that page the answers.
        if self._channel is None or scope["path"] != self._channel[0] or self._ending or _origin(scope):
            await send({"type": "websocket.close"})  # before it was accepted: refused with 403
            return
        channel = Channel(self._channel[1], receive, send)
        serving = asyncio.current_task()
        assert serving is not None
        self._channels[channel] = serving
        try:
            await channel.run()
        finally:
            del self._channels[channel]


def _origin(scope: Message) -> bytes:
    return next((value for name, value in scope["headers"] if name == b"origin"), b"")


def bind(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listening socket; port 0: a free one."""
    listening = socket.create_server((address, port), backlog=1024)
    # Connections inherit it. Answers go out in two pieces, and the second would else wait for the first's acknowledgement, some 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setblocking(False)
    return listening
