"""Kept connections to nodes, for requests that may be sent again: commands are known by their ids.

HTTP/1.1, one request at a time on a connection. A client library does much that nobody needs here (cookies, redirects, proxies), and takes more of a
caller's time than the command itself.

Invariants:

1. A connection is used again only after a whole answer that allows it; whatever else happens on it ends it. So nobody gets another's answer.
2. At most `CONNECTIONS_MAX` requests to an address are under way; the others wait, and the wait counts into their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from http import HTTPStatus
from typing import Final, NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

import httptools

from perdure.errors import InvalidInput, Unavailable

__all__ = ["ANSWER_BYTES_MAX", "Answer", "Connections"]

CONNECTIONS_MAX: Final = 128
"""To one address at once; more requests wait for one of them."""
ANSWER_BYTES_MAX: Final = 1024 * 1024
HEAD_BYTES_MAX: Final = 64 * 1024
"""An answer's first line and headers."""
ADDRESSES_MAX: Final = 1_024
"""Addresses whose connections are kept; those of the one that was asked longest ago are closed for another."""
UNUSED_S: Final = 30.0
"""A connection that nobody used for so long is closed: nodes keep theirs for longer (`http_server.UNUSED_S`)."""


class Answer(NamedTuple):
    """What a node answered."""

    status: int
    content_type: str
    content: bytes


class _Broken(Exception):
    """What came is no answer, or only a part of one."""


class _Ended(Exception):
    """The connection ended before anything of an answer came."""


class _Link(asyncio.Protocol):
    """One connection. idle_since: when it was used last."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._asked: asyncio.Future[Answer] | None = None
        self._clear()

    def _clear(self) -> None:
        self._content = bytearray()
        self._content_type = ""
        self._begun = self._in_body = False
        self._head_bytes = 0

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Send, and wait for the answer. Raises _Ended, _Broken."""
        if self._transport is None or not self.usable:
            raise _Ended
        self._clear()
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._transport.write(request)
        try:
            return await asked
        finally:
            if self._asked is not None:  # its caller has gone; what comes is nobody's
                self.abort()

    def abort(self) -> None:
        self._asked = None
        if self._transport is not None:
            self._transport.abort()

    # --- from the transport ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class

    def connection_lost(self, _problem: Exception | None) -> None:
        self._transport = None
        self.fail(_Broken("it ends early") if self._begun else _Ended())

    def data_received(self, data: bytes) -> None:
        if self._asked is None:
            return self.abort()  # nobody has asked
        self._begun = True
        if not self._in_body:
            if self._head_bytes > HEAD_BYTES_MAX:
                return self.fail(_Broken("its head is too long"))
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self.fail(_Broken(type(problem).__name__))

    def fail(self, problem: Exception) -> None:
        """End it; who waits for an answer is told why."""
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_exception(problem)
        self.abort()

    # --- from the parser; what it raises comes out of `feed_data` ---
    def on_message_begin(self) -> None:
        if self._asked is None:
            raise _Broken  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == len("content-type") and name.lower() == b"content-type":
            self._content_type = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._content += body
        if len(self._content) > ANSWER_BYTES_MAX:
            raise _Broken

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < HTTPStatus.OK:  # the answer itself follows
            return self._clear()
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(Answer(status, self._content_type, bytes(self._content)))
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()


class _Node:
    """One address, and the connections to it."""

    def __init__(self, address: str) -> None:
        parts = _parts(address)
        encrypted = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if encrypted else 80)
        self._tls = ssl.create_default_context() if encrypted else None
        self._line = b"POST " + parts.path.rstrip("/").encode()
        where = parts.netloc.rpartition("@")[2].encode()
        self._headers = b" HTTP/1.1\r\nhost: " + where + b"\r\ncontent-type: application/json\r\ncontent-length: "
        self._free: list[_Link] = []
        self._busy: set[_Link] = set()
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)

    async def ask(self, path: str, content: bytes, *, anew: bool = False) -> Answer:
        """anew: on a connection that nobody has used. Raises _Ended, _Broken, OSError."""
        request = b"%b%b%b%d\r\n\r\n%b" % (self._line, path.encode("ascii"), self._headers, len(content), content)
        async with self._places:
            link = (None if anew else self._kept()) or await self._connected()
            self._busy.add(link)
            try:
                return await link.ask(request)
            finally:
                self._busy.discard(link)
                if link.usable:
                    link.idle_since = time.monotonic()
                    self._free.append(link)

    def _kept(self) -> _Link | None:
        """The connection that was used last, so that those that are not needed grow old; those that are too old are closed."""
        old = time.monotonic() - UNUSED_S
        while self._free and (self._free[0].idle_since < old or not self._free[0].usable):
            self._free.pop(0).abort()
        while self._free:
            if (link := self._free.pop()).usable:
                return link
        return None

    async def _connected(self) -> _Link:
        _, link = await asyncio.get_running_loop().create_connection(_Link, self._host, self._port, ssl=self._tls)
        return link

    def close(self) -> None:
        for link in (*self._free, *self._busy):
            link.fail(_Broken("its caller is closed"))
        self._free.clear()


def _parts(address: str) -> SplitResult:
    """Of an address of a node. Raises InvalidInput."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        plain = address.isascii() and address.isprintable() and " " not in address
        if plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    raise InvalidInput(f"{address!r} is no address of a node", hint="http://HOST:PORT")


class Connections:
    """`post` to any number of addresses (`http://host:port`, `https://…`); `close` ends all. timeout_s: of one request, waiting included."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._nodes: dict[str, _Node] = {}

    async def post(self, address: str, path: str, content: bytes) -> Answer:
        """Send JSON and wait for the answer. path: quoted as it is sent. Raises InvalidInput; Unavailable: whether it arrived is not known."""
        node = self._node(address)
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await node.ask(path, content)
                except _Ended:
                    # Mostly a kept connection that the node had closed while nobody used it; this one request more costs little elsewhere.
                    return await node.ask(path, content, anew=True)
        except TimeoutError as problem:
            raise Unavailable(f"node {address} did not answer within {self._timeout_s:g} s") from problem
        except (_Ended, _Broken, OSError) as problem:
            raise Unavailable(f"node {address} does not answer: {type(problem).__name__.lstrip('_')}") from problem

    def _node(self, address: str) -> _Node:
        node = self._nodes.get(address)
        if node is None:
            while len(self._nodes) >= ADDRESSES_MAX:
                self._nodes.pop(next(iter(self._nodes))).close()
            node = self._nodes[address] = _Node(address)
        return node

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        for node in self._nodes.values():
            node.close()
        self._nodes.clear()
