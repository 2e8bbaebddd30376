"""Kept connections to nodes, for requests that may be sent again: commands are known by their ids.

HTTP/1.1 with one request at a time on a connection. It is small because what it costs is paid for every command, on both ends of a caller that
talks to its agents a thousand times a second; the parser is httptools, which uvicorn uses too.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from perdure.errors import InvalidInput, Unavailable

__all__ = ["Answer", "Connections"]

CONNECTIONS_MAX: Final = 128
"""Of one address at once; more requests wait for one of them."""
ANSWER_BYTES_MAX: Final = 1024 * 1024


class Answer(NamedTuple):
    """What a node answered."""

    status: int
    content_type: str
    content: bytes


class Connections:
    """`post` to any number of addresses (`http://host:port`, `https://…`); `close` ends all."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._pools: dict[str, _Pool] = {}

    async def post(self, address: str, path: str, content: bytes) -> Answer:
        """Send JSON and wait for the answer. Raises Unavailable: whether it arrived is not known."""
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = _Pool(address)
        request = pool.head % path.encode("ascii") + b"content-length: %d\r\n\r\n" % len(content) + content
        try:
            async with asyncio.timeout(self._timeout_s), pool.room:
                return await pool.ask(request)
        except TimeoutError as problem:
            raise Unavailable(f"node {address} did not answer within {self._timeout_s:g} s") from problem
        except (OSError, httptools.HttpParserError) as problem:
            raise Unavailable(f"node {address} does not answer: {type(problem).__name__}") from problem

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        ended = [connection.close() for pool in self._pools.values() for connection in list(pool.all)]
        self._pools.clear()
        await asyncio.gather(*ended)


class _Pool:
    """Connections to one address; the one that was used last is used first, so that those not needed grow old and are closed."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{address!r} is no address of a node", hint="http://HOST:PORT")
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        base = parts.path.rstrip("/").encode("ascii").replace(b"%", b"%%")
        self.head = b"POST " + base + b"%s HTTP/1.1\r\nhost: " + parts.netloc.encode("idna").replace(b"%", b"%%")
        self.head += b"\r\ncontent-type: application/json\r\n"
        self.room = asyncio.Semaphore(CONNECTIONS_MAX)
        self.all: set[_Connection] = set()
        self._idle: list[_Connection] = []

    async def ask(self, request: bytes) -> Answer:
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._ask(connection, request)
            except _EndedUnused:
                # The node closed it while nobody used it: no answer to this request has begun, and it may be sent again.
                continue
        _, opened = await asyncio.get_running_loop().create_connection(lambda: _Connection(self.all), self._host, self._port, ssl=self._ssl)
        return await self._ask(opened, request)

    async def _ask(self, connection: _Connection, request: bytes) -> Answer:
        try:
            answer = await connection.ask(request)
        except BaseException:
            connection.abort()
            raise
        if connection.usable:
            self._idle.append(connection)
        return answer


class _EndedUnused(ConnectionResetError):
    """A connection that had served before ended without a byte of an answer."""


class _Connection(asyncio.Protocol):
    """One connection. all: the set that it belongs to while it is open."""

    def __init__(self, all: set[_Connection]) -> None:
        self._all = all
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[Answer] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._served = 0
        self._type, self._body, self._begun = "", bytearray(), False
        self.usable = True

    async def ask(self, request: bytes) -> Answer:
        if self._transport is None or self._transport.is_closing():
            raise _EndedUnused
        self._waiting = asyncio.get_running_loop().create_future()
        self._type, self._body, self._begun = "", bytearray(), False
        self._transport.write(request)
        return await self._waiting

    def abort(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        self.abort()
        await self._ended

    # --- asyncio.Protocol ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._all.add(self)

    def data_received(self, data: bytes) -> None:
        self._begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self._fail(problem)
            self.abort()

    def connection_lost(self, problem: Exception | None) -> None:
        self.usable = False
        self._all.discard(self)
        if not self._ended.done():
            self._ended.set_result(None)
        self._fail(_EndedUnused() if self._served and not self._begun else problem or ConnectionResetError("closed before it answered"))

    def _fail(self, problem: Exception) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(problem)

    # --- httptools ---
    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._type = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > ANSWER_BYTES_MAX:
            self._fail(ConnectionAbortedError(f"an answer of more than {ANSWER_BYTES_MAX} bytes"))
            self.abort()

    def on_message_complete(self) -> None:
        self.usable = self.usable and self._parser.should_keep_alive()
        self._served += 1
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(Answer(self._parser.get_status_code(), self._type, bytes(self._body)))
        if not self.usable and self._transport is not None:
            self._transport.close()
