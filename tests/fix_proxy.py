"""A TCP proxy before a real server, that cuts, stalls and loses what passes through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

import pytest

from perdure.services import state

CHUNK_BYTES = 65_536


class Proxy:
    """Connections to `url` go to the server behind it. host: the address that it listens on."""

    def __init__(self, url: str, host: str = "127.0.0.1") -> None:
        self._parts = urlsplit(url)
        self._host = host
        self._server: asyncio.Server | None = None
        # A server's port, not one of the system's choice: nobody's outgoing connection takes it while the proxy is shut.
        (self._port,) = state.free_ports(1)
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._separated = False
        self._pattern: bytes | None = None
        self._reply = True
        self.cut_done = asyncio.Event()
        """Set when the cut that `cut_reply_to` or `cut_request` asked for has happened."""
        self._released = asyncio.Event()
        self._released.set()
        self.held = asyncio.Event()
        """Set when what `hold_request` waits for is here."""

    @property
    def url(self) -> str:
        """The server's URL with the proxy's address."""
        user = f"{self._parts.username}@" if self._parts.username else ""
        return urlunsplit(self._parts._replace(netloc=f"{user}{self._host}:{self._port}"))

    async def open(self) -> None:
        """Take connections, on the same port each time."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port)

    async def shut(self) -> None:
        """Refuse connections, and cut those that are there."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection."""
        for pair in self._pairs:
            for side in pair:
                side.transport.abort()

    def stall(self) -> None:
        """Let nothing through from the server, though connections stay, until `flow`."""
        self._flowing.clear()

    def separate(self) -> None:
        """Let nothing through in either direction, though connections stay, until `flow`."""
        self._separated = True
        self._flowing.clear()

    def flow(self) -> None:
        """Let everything through."""
        self._separated = False
        self._flowing.set()

    def flow_for_new_connections(self) -> None:
        """Let replies through on connections that are made from now on; those that are there stay silent."""
        self._flowing = asyncio.Event()
        self._flowing.set()

    def cut_reply_to(self, pattern: bytes) -> None:
        """Once: cut the connection that sends these bytes when the server has answered, before a byte of its answer passes."""
        self._pattern, self._reply = pattern, True
        self.cut_done.clear()

    def cut_request(self, pattern: bytes) -> None:
        """Once: cut the connection that sends these bytes; the server does not get them."""
        self._pattern, self._reply = pattern, False
        self.cut_done.clear()

    def hold_request(self, pattern: bytes) -> None:
        """Once: let the connection that sends these bytes wait with them until `release`."""
        self._pattern = pattern
        self._released.clear()
        self.held.clear()

    def release(self) -> None:
        """Let what is held go on to the server."""
        self._released.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        lost = asyncio.Event()
        tasks = [
            asyncio.create_task(self._requests(reader, far_writer, lost)),
            asyncio.create_task(self._replies(far_reader, writer, lost)),
        ]
        self._tasks.update(tasks)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for side in pair:
                side.transport.abort()
            for task in tasks:
                task.cancel()
            self._tasks.difference_update(tasks)
            self._pairs.discard(pair)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        seen = b""
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                seen = seen[-256:] + data if self._pattern is not None else b""  # what came before does not count
                if self._pattern is not None and self._pattern in seen:
                    self._pattern = None
                    if not self._released.is_set():
                        self.held.set()
                        await self._released.wait()
                    elif not self._reply:
                        self.cut_done.set()
                        return
                    else:
                        lost.set()
                if self._separated:
                    await self._flowing.wait()
                writer.write(data)
                await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        flowing = self._flowing
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if lost.is_set():
                    self.cut_done.set()
                    return
                await flowing.wait()
                writer.write(data)
                await writer.drain()


@pytest.fixture
async def proxy_before() -> AsyncIterator[Callable[[str], Awaitable[Proxy]]]:
    """A factory: `await proxy_before(url)` is an open proxy before the server of that URL."""
    made: list[Proxy] = []

    async def make(url: str) -> Proxy:
        proxy = Proxy(url)
        await proxy.open()
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        await proxy.shut()
