"""What a node answers requests with: whole answers in order, within bounds, and finished before it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perdure.recovery.http_server import HEAD_BYTES_MAX, Reply, Request, Server, bind

BODY_BYTES_MAX = 1_000
TIMEOUT_S = 60.0


class Peer:
    """A server, and one connection to it. go: what `/wait` waits for."""

    def __init__(self) -> None:
        self.server = Server(self.answer, body_bytes_max=BODY_BYTES_MAX, too_long=Reply(413, b"too long"))
        self.seen: list[Request] = []
        self.go, self.asked = asyncio.Event(), asyncio.Event()
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def answer(self, request: Request) -> Reply:
        self.seen.append(request)
        if request.target == b"/wait":
            self.asked.set()
            await self.go.wait()
        if request.target == b"/fault":
            raise ZeroDivisionError
        return Reply(200, request.target + b":" + request.content)

    async def read(self) -> tuple[int, bytes]:
        """Status and content."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r")[0])
        return int(head.split()[1]), await self.reader.readexactly(length)


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    made, listening = Peer(), bind()
    made.server.start(listening)
    async with asyncio.timeout(TIMEOUT_S):
        made.reader, made.writer = await asyncio.open_connection(*listening.getsockname())
        try:
            yield made
        finally:
            made.go.set()
            await made.server.close()
            made.writer.close()


def request(target: str, content: bytes = b"", *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "host: a", f"content-length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


async def test_requests_that_were_sent_together_are_answered_in_order() -> None:
    async with peer() as made:
        made.writer.write(request("/wait") + b"".join(request(f"/{number}", b"x") for number in range(100)))
        await made.asked.wait()
        made.go.set()
        assert await made.read() == (200, b"/wait:")
        assert [await made.read() for _ in range(100)] == [(200, b"/%d:x" % number) for number in range(100)]


async def test_a_request_may_come_in_pieces_and_in_chunks() -> None:
    async with peer() as made:
        sent = b"POST /a%20b?c=d HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n2\r\nyz\r\n0\r\n\r\n"
        for at in range(len(sent)):
            made.writer.write(sent[at : at + 1])
            await made.writer.drain()
        assert await made.read() == (200, b"/a%20b:xyz")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("/b", b"x" * (BODY_BYTES_MAX + 1)), 413),
        (b"POST /b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + b"1F4\r\n%b\r\n" % (b"x" * 500) * 3, 413),
    ],
    ids=["body", "chunked body"],
)
async def test_a_body_that_is_too_long_is_refused_and_asks_nobody(sent: bytes, status: int) -> None:
    async with peer() as made:
        made.writer.write(request("/a") + sent)
        assert await made.read() == (200, b"/a:")
        assert await made.read() == (status, b"too long")
        assert [each.target for each in made.seen] == [b"/a"]


@pytest.mark.parametrize(
    "head",
    [b"GET /" + b"b" * HEAD_BYTES_MAX * 16, b"GET /b HTTP/1.1\r\n" + b"a: b\r\n" * HEAD_BYTES_MAX, b"nonsense\r\n\r\n"],
    ids=["target", "headers", "no HTTP"],
)
async def test_a_head_without_an_end_is_refused_and_ends_the_connection(head: bytes) -> None:
    async with peer() as made:
        made.writer.write(request("/a", b"x" * BODY_BYTES_MAX) + request("/a", b"x" * BODY_BYTES_MAX))
        assert [(await made.read())[0] for _ in range(2)] == [200, 200]
        made.writer.write(head)
        assert (await made.read())[0] == 400
        assert len(made.seen) == 2


async def test_a_fault_of_the_server_is_its_own_and_others_are_answered() -> None:
    async with peer() as made:
        made.writer.write(request("/fault"))
        assert (await made.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
    async with peer() as made:
        made.writer.write(request("/a"))
        assert await made.read() == (200, b"/a:")


async def test_what_was_asked_is_answered_before_the_server_ends() -> None:
    async with peer() as made:
        made.writer.write(request("/wait"))
        await made.asked.wait()
        ending = asyncio.create_task(made.server.close())
        await asyncio.sleep(0)
        assert not ending.done()
        made.go.set()
        assert await made.read() == (200, b"/wait:")
        await ending
