"""The part of HTTP/1.1 that a node needs to be asked a thousand times a second: whole requests in, whole answers out, connections kept.

A request costs a node a tenth of what a framework's layers would: routes are looked up by whoever is given the request, bodies are bounded and
held in memory, answers go out in one piece.

Invariants:

1. Requests of a connection are answered one after the other, in the order in which they came.
2. What a peer sends or leaves unread takes a bounded amount of memory: a head, a body, as much as was read at once.
3. An answer that was begun is finished before the server ends, as far as it is done in time; nobody is asked to do something twice.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple, cast

import httptools

__all__ = ["JSON", "Reply", "Request", "Server", "bind"]

JSON: Final = "application/json"
HEAD_BYTES_MAX: Final = 64 * 1024
"""A request's first line and headers, and as much more as was read at once."""
WAITING_MAX: Final = 64
"""Requests of one connection that were sent without waiting for answers; then no more is read."""
CONNECTIONS_MAX: Final = 16_384
UNUSED_S: Final = 75.0
"""A connection on which nothing came for so long, and that waits for no answer, is closed."""
SWEEP_S: Final = 15.0
END_S: Final = 5.0
"""How long requests under way may take when the server ends."""


class Request(NamedTuple):
    """target: as it was sent, quoted, with its query."""

    method: bytes
    target: bytes
    content: bytes


class Reply(NamedTuple):
    """An answer."""

    status: int
    content: bytes
    content_type: str = JSON


Answer = Callable[[Request], Awaitable[Reply]]
"""What a request comes to; it raises nothing but what is a fault of its own."""


class Server:
    """Answers requests on a listening socket from `start` until `close`. body_bytes_max: larger bodies are refused with `too_long`."""

    def __init__(self, answer: Answer, *, body_bytes_max: int, too_long: Reply) -> None:
        self.answer = answer
        self.body_bytes_max = body_bytes_max
        self.too_long = too_long
        self.ending = False
        self.connections: set[_Connection] = set()
        self._listening: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listening: socket.socket) -> None:
        """Answer from now on."""
        self._listening = await asyncio.get_running_loop().create_server(lambda: _Connection(self), sock=listening, backlog=1024)
        self._sweep()

    async def close(self) -> None:
        """Take no more requests, finish those under way, or give them up after `END_S`."""
        self.ending = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._listening is not None:
            self._listening.close()
        for connection in list(self.connections):
            connection.end()
        under_way = [connection.task for connection in self.connections if connection.task is not None]
        if under_way:
            await asyncio.wait(under_way, timeout=END_S)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.gather(*under_way, return_exceptions=True)

    def _sweep(self) -> None:
        before = time.monotonic() - UNUSED_S
        for connection in list(self.connections):
            if connection.task is None and connection.heard_at < before:
                connection.abort()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)


class _Refused(Exception):
    """The request is answered with this at once, and the connection ends."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class _Connection(asyncio.Protocol):
    """One peer's. task: answers what waits; None while nothing does. heard_at: when something came last."""

    def __init__(self, server: Server) -> None:
        self.task: asyncio.Task[None] | None = None
        self.heard_at = time.monotonic()
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._refused: Reply | None = None
        self._deaf = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._clear()

    def _clear(self) -> None:
        self._target = b""
        self._content = bytearray()
        self._in_body = False
        self._head_bytes = 0

    @property
    def open(self) -> bool:
        """Whether its peer is there."""
        return self._transport is not None

    def end(self) -> None:
        """Close it when what came is answered."""
        if self.task is None:
            self._close()
        elif self._transport is not None:
            self._transport.pause_reading()

    def abort(self) -> None:
        """Close it at once."""
        if self.task is not None:
            self.task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # --- from the transport ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class
        if len(self._server.connections) >= CONNECTIONS_MAX or self._server.ending:
            self._transport.abort()
        self._server.connections.add(self)

    def connection_lost(self, _problem: Exception | None) -> None:
        # What it asked for goes on: whether its command took effect must not depend on whether it waits.
        self._transport = None
        self._writable.set()
        if self.task is None:
            self._server.connections.discard(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self.heard_at = time.monotonic()
        try:
            if not self._in_body:
                self._head_bytes += len(data)
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as if it had not been asked for; what follows is no HTTP.
            self._deaf = True
            self._waiting.append((self._waiting.pop()[0], False))
        except httptools.HttpParserError as problem:
            refused = problem.__context__
            self._refuse(refused.reply if isinstance(refused, _Refused) else _plain(HTTPStatus.BAD_REQUEST))
        if self._head_bytes > HEAD_BYTES_MAX and not self._in_body and not self._deaf:
            self._refuse(_plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))

    def _refuse(self, reply: Reply) -> None:
        """Answer what came before, then this, then end: what follows cannot be told apart any more."""
        self._refused, self._deaf = reply, True
        self._go_on()

    # --- from the parser; what it raises comes out of `feed_data` ---
    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == len("expect") and name.lower() == b"expect" and value.lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_headers_complete(self) -> None:
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._content += body
        if len(self._content) > self._server.body_bytes_max:
            raise _Refused(self._server.too_long)

    def on_message_complete(self) -> None:
        request = Request(self._parser.get_method(), self._target, bytes(self._content))
        self._waiting.append((request, self._parser.should_keep_alive()))
        self._clear()
        if len(self._waiting) >= WAITING_MAX and self._transport is not None:
            self._transport.pause_reading()
        self._go_on()

    # --- answering ---
    def _go_on(self) -> None:
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._answer_all(), name="perdure-http")

    async def _answer_all(self) -> None:
        try:
            while self._waiting:
                request, keep = self._waiting.popleft()
                reply = await self._answered(request)
                keep = keep and not (self._server.ending and not self._waiting)
                self._write(reply, keep=keep, bodiless=request.method == b"HEAD")
                await self._writable.wait()
                if not keep:
                    return self._close()
                if self._transport is not None and len(self._waiting) == WAITING_MAX - 1:
                    self._transport.resume_reading()
            if self._refused is not None:
                self._write(self._refused, keep=False)
                self._close()
        finally:
            self.task = None
            if self._transport is None:
                self._server.connections.discard(self)

    async def _answered(self, request: Request) -> Reply:
        try:
            return await self._server.answer(request)
        except Exception as problem:
            context = {"message": "a request could not be answered", "exception": problem, "protocol": self}
            asyncio.get_running_loop().call_exception_handler(context)
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _write(self, reply: Reply, *, keep: bool, bodiless: bool = False) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        head = _head(reply.status, reply.content_type, keep, int(time.time()))
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(reply.content), b"" if bodiless else reply.content))


def _plain(status: HTTPStatus) -> Reply:
    return Reply(status, status.phrase.encode(), "text/plain; charset=utf-8")


_heads: dict[tuple[int, str, bool], tuple[int, bytes]] = {}


def _head(status: int, content_type: str, keep: bool, now_s: int) -> bytes:
    """Everything up to the length; made once a second."""
    made_s, head = _heads.get((status, content_type, keep), (0, b""))
    if made_s != now_s:
        phrase = HTTPStatus(status).phrase
        date = formatdate(now_s, usegmt=True)
        end = "" if keep else "connection: close\r\n"
        head = f"HTTP/1.1 {status} {phrase}\r\ndate: {date}\r\n{end}content-type: {content_type}\r\ncontent-length: ".encode("latin-1")
        _heads[status, content_type, keep] = now_s, head
    return head


def bind(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listening socket; port 0: a free one."""
    listening = socket.create_server((address, port), backlog=1024)
    # Connections inherit it: an answer shall not wait for the acknowledgement of the one before.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setblocking(False)
    return listening
