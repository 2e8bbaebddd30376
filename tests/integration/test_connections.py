"""Kept connections to nodes: used again, sent again where the node had closed them, and never trusted beyond what arrived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from perdure.errors import InvalidInput, Unavailable
from perdure.recovery.connections import ANSWER_BYTES_MAX, Answer, Connections

TIMEOUT_S = 60.0
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Node:
    """A server that answers each request with the next of `answers`; None: it closes the connection instead."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = asyncio.Event()
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
                if self.answers and self.answers[0] == b"":
                    self.answers.pop(0)
                    return
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()
            self.closed.set()


@asynccontextmanager
async def node(*answers: bytes | None) -> AsyncIterator[tuple[Node, Callable[[], Awaitable[Answer]]]]:
    made = Node(*answers)
    connections = Connections(TIMEOUT_S)
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield made, lambda: connections.post(made.address, "/v1/a%20b", b'{"x":1}')
        finally:
            await connections.close()


async def test_a_connection_is_used_again() -> None:
    async with node(OK, OK, OK) as (made, post):
        answers = [await post() for _ in range(3)]
    assert answers == [Answer(200, "application/json", b"{}")] * 3
    assert made.connections == 1
    assert made.requests[0].startswith(b"POST /v1/a%20b HTTP/1.1\r\n")
    assert made.requests[0].endswith(b'\r\n\r\n{"x":1}')


async def test_an_answer_may_come_in_chunks_and_in_pieces() -> None:
    chunked = b"HTTP/1.1 421 Misdirected\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    async with node(chunked, OK) as (made, post):
        assert await post() == Answer(421, "", b"{}")
        assert (await post()).status == 200
    assert made.connections == 1


async def test_a_connection_that_the_node_closed_unused_costs_nothing() -> None:
    async with node(OK, b"", OK) as (made, post):
        await post()
        await made.closed.wait()
        assert (await post()).status == 200
    assert made.connections == 2


async def test_a_node_that_closes_instead_of_answering_is_asked_once_more() -> None:
    async with node(OK, None, OK) as (made, post):
        await post()
        assert (await post()).status == 200
    assert len(made.requests) == 3
    async with node(None, None, OK) as (made, post):
        with pytest.raises(Unavailable):
            await post()
    assert len(made.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (ANSWER_BYTES_MAX + 1) + b"x" * (ANSWER_BYTES_MAX + 1),
    ],
    ids=["no HTTP", "a head without an end", "too long"],
)
async def test_what_is_no_answer_is_refused_and_the_next_is_answered(answer: bytes) -> None:
    async with node(answer, OK) as (_, post):
        with pytest.raises(Unavailable):
            await post()
        assert (await post()).status == 200


async def test_an_answer_that_ends_early_is_unavailable() -> None:
    async with node(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", b"", OK) as (_, post):
        with pytest.raises(Unavailable):
            await post()


async def test_what_is_no_address_is_refused() -> None:
    connections = Connections(TIMEOUT_S)
    with pytest.raises(InvalidInput):
        await connections.post("127.0.0.1:80", "/", b"")
    with pytest.raises(Unavailable):
        await connections.post("http://127.0.0.1:1", "/", b"")
    await connections.close()


async def test_more_requests_than_connections_wait_their_turn() -> None:
    async with node(*[OK] * 400) as (made, post):
        answers = await asyncio.gather(*(post() for _ in range(300)))
    assert {answer.status for answer in answers} == {200}
    assert made.connections <= 128


async def test_an_answer_that_follows_another_unasked_is_nobodys() -> None:
    second = OK.replace(b"{}", b"[]")
    async with node(OK + second, OK) as (made, post):
        assert [(await post()).content for _ in range(2)] == [b"{}", b"{}"]
    assert made.connections == 2


async def test_an_answer_that_comes_when_its_caller_has_gone_is_nobodys() -> None:
    late = asyncio.Event()

    class Late(Node):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not self.connections:
                await late.wait()
            await super().serve(reader, writer)

    made, connections = Late(OK.replace(b"{}", b"[]"), OK), Connections(TIMEOUT_S)
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connections.post(address, "/", b"1")
        late.set()
        await made.closed.wait()
        answers = {(await connections.post(address, "/", b"2")).content for _ in range(len(made.answers))}
        assert answers == {b"{}"} or made.requests[0].endswith(b"2")
        await connections.close()


async def test_what_is_said_before_the_answer_is_passed_over() -> None:
    async with node(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK, OK) as (made, post):
        assert [await post() for _ in range(2)] == [Answer(200, "application/json", b"{}")] * 2
    assert made.connections == 1


async def test_requests_under_way_fail_when_the_connections_are_closed() -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    connections = Connections(TIMEOUT_S)
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        under_way = asyncio.create_task(connections.post(address, "/", b""))
        await asked.wait()
        await connections.close()
        with pytest.raises(Unavailable):
            await under_way
