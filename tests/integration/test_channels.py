"""Channels: many commands under way on one connection, answered in any order, or known not to be; and nothing taken that is too much."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest

from perdure import limits
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput, LimitExceeded, Unavailable
from perdure.recovery import http_channel
from perdure.recovery.channels import Channels
from perdure.recovery.commands import COMMAND_BYTES_MAX
from perdure.recovery.connections import ANSWER_BYTES_MAX
from perdure.recovery.http_server import Reply, Request, Server, bind
from perdure.recovery.wire import CHANNEL_MESSAGE_MORE_BYTES, CHANNEL_ROUTE, Answered, Asked

TIMEOUT_S = 60.0
QUICK, SLOW = AgentName("acme", "quick"), AgentName("acme", "slow/ü")
RUBBISH, LONG, FAULT = AgentName("acme", "rubbish"), AgentName("acme", "long"), AgentName("acme", "fault")


class Node:
    """Answers each command with itself (a long one with its length); that of a slow agent when it may go on. asked: agents, as they were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()
        self.changed = asyncio.Event()
        self.channels = 0
        channel = (CHANNEL_ROUTE, self.answer)
        self.server = Server(self.nothing, body_bytes_max=COMMAND_BYTES_MAX, too_long=Reply(413, b""), channel=channel)
        self.listening = bind()
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    async def nothing(self, request: Request) -> Reply:
        return Reply(404, request.origin)

    async def answer(self, content: bytes) -> bytes | None:
        try:
            asked = msgspec.json.decode(content, type=Asked)
        except msgspec.MsgspecError:
            return None
        self.asked.append(asked.agent)
        self.changed.set()
        if asked.agent == SLOW.agent:
            await self.go.wait()
        if asked.agent == FAULT.agent:
            raise ZeroDivisionError
        if asked.agent == RUBBISH.agent:
            return b"rubbish"
        if asked.agent == LONG.agent:
            return msgspec.json.encode(Answered(asked.number, 200, msgspec.Raw(b'"%b"' % (b"x" * ANSWER_BYTES_MAX))))
        said = asked.command if len(asked.command) < 1_000 else msgspec.Raw(b"%d" % len(asked.command))
        return msgspec.json.encode(Answered(asked.number, 200, said))

    async def until_asked(self, times: int) -> None:
        while len(self.asked) < times:
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    made = Node()
    made.server.start(made.listening)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield made
    finally:
        made.go.set()
        await made.server.close()
        made.listening.close()


@asynccontextmanager
async def channels(timeout_s: float = TIMEOUT_S) -> AsyncIterator[Channels]:
    made = Channels(timeout_s)
    try:
        yield made
    finally:
        await made.close()


async def test_many_commands_share_a_channel_and_a_slow_agent_delays_nobody() -> None:
    async with node() as made, channels() as caller:
        slow = asyncio.create_task(caller.ask(made.address, SLOW, b'"slow"'))
        answers = await asyncio.gather(*(caller.ask(made.address, QUICK, b"%d" % number) for number in range(500)))
        assert [bytes(answer.content) for answer in answers] == [b"%d" % number for number in range(500)]
        assert not slow.done()
        assert len(made.server._channels) == 1
        made.go.set()
        assert bytes((await slow).content) == b'"slow"'


async def test_what_was_read_is_answered_before_the_server_ends_and_the_rest_is_known_to_be_unknown() -> None:
    async with node() as made, channels() as caller:
        slow = asyncio.create_task(caller.ask(made.address, SLOW, b"1"))
        await made.until_asked(1)
        ending = asyncio.create_task(made.server.close())
        while not made.server._ending:
            await asyncio.sleep(0)
        late = asyncio.create_task(caller.ask(made.address, QUICK, b"2"))
        made.go.set()
        assert (await slow).status == 200
        with pytest.raises(Unavailable):
            await late
        await ending
        assert made.asked == [SLOW.agent]
        with pytest.raises(Unavailable):
            await caller.ask(made.address, QUICK, b"3")


async def test_a_node_that_is_there_again_is_connected_to_anew() -> None:
    async with channels() as caller:
        async with node() as first:
            assert (await caller.ask(first.address, QUICK, b"1")).status == 200
            port = first.listening.getsockname()[1]
            waiting = asyncio.create_task(caller.ask(first.address, SLOW, b"1"))
            await first.until_asked(2)
            (channel,) = caller._open.values()
            assert channel._socket._response.connection is not None
            channel._socket._response.connection.transport.abort()  # type: ignore[union-attr]
            with pytest.raises(Unavailable):
                await waiting
            assert not caller._open
            assert (await caller.ask(first.address, QUICK, b"2")).status == 200
        with pytest.raises(Unavailable):
            await caller.ask(f"http://127.0.0.1:{port}", QUICK, b"3")
        assert not caller._open


async def test_one_that_is_not_answered_in_time_is_given_up_alone_and_silence_gives_up_the_channel() -> None:
    async with node() as made, channels(timeout_s=0.5) as caller:
        slow = asyncio.create_task(caller.ask(made.address, SLOW, b"1"))
        await made.until_asked(1)
        (channel,) = caller._open.values()
        while not slow.done():
            assert (await caller.ask(made.address, QUICK, b"2")).status == 200
        with pytest.raises(Unavailable, match="did not answer within"):
            await slow
        assert list(caller._open.values()) == [channel]
        assert not channel._waiting
        with pytest.raises(Unavailable):
            await caller.ask(made.address, SLOW, b"3")
        await channel.wait_closed()
        assert not caller._open


async def test_who_does_not_speak_is_given_up_and_many_callers_wait_for_one_attempt() -> None:
    connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()
        writer.close()

    async with asyncio.timeout(TIMEOUT_S), await asyncio.start_server(silent, "127.0.0.1", 0) as server, channels(timeout_s=0.5) as caller:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        results = await asyncio.gather(*(caller.ask(address, QUICK, b"1") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
        assert connections == 1


async def test_who_waits_for_a_channel_when_all_are_closed_is_told() -> None:
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with asyncio.timeout(TIMEOUT_S), await asyncio.start_server(silent, "127.0.0.1", 0) as server, channels() as caller:
        asking = asyncio.create_task(caller.ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", QUICK, b"1"))
        await connected.wait()
        await caller.close()
        with pytest.raises(Unavailable):
            await asking


async def test_what_nobody_understands_ends_the_channel_on_either_side() -> None:
    async with node() as made, channels() as caller:
        with pytest.raises(Unavailable):
            await caller.ask(made.address, RUBBISH, b"1")
        async with aiohttp.ClientSession() as session, session.ws_connect(made.address + CHANNEL_ROUTE) as socket:
            await socket.send_str('[1, "acme", "slow/ü", 1]')
            await made.until_asked(2)
            await socket.send_str('{"what": "is this?"}')
            message = await socket.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1007)
        made.go.set()  # and nobody hears of it
        assert (await caller.ask(made.address, QUICK, b"1")).status == 200


async def test_a_fault_of_the_node_is_told_at_once_and_ends_the_channel_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with node() as made, channels(timeout_s=10 * TIMEOUT_S) as caller:
        slow = asyncio.create_task(caller.ask(made.address, SLOW, b"1"))
        await made.until_asked(1)
        for asking in (caller.ask(made.address, FAULT, b"2"), slow):
            with pytest.raises(Unavailable):
                await asking
        assert (await caller.ask(made.address, QUICK, b"3")).status == 200
    gc.collect()
    assert "ZeroDivisionError" in caplog.text


async def test_what_is_too_long_is_refused_before_it_is_sent_and_ends_the_channel_of_who_sends_it() -> None:
    async with node() as made, channels() as caller:
        longest = msgspec.json.encode("x" * (COMMAND_BYTES_MAX - 2))
        answer = await caller.ask(made.address, AgentName("😀" * limits.TENANT_LENGTH_MAX, '"' * limits.AGENT_ID_LENGTH_MAX), longest)
        assert bytes(answer.content) == b"%d" % COMMAND_BYTES_MAX
        for name, command in ((QUICK, longest + b" "), (AgentName("t" * CHANNEL_MESSAGE_MORE_BYTES, "a"), longest)):
            with pytest.raises(LimitExceeded):
                await caller.ask(made.address, name, command)
        async with aiohttp.ClientSession() as session, session.ws_connect(made.address + CHANNEL_ROUTE) as socket:
            await socket.send_bytes(b" " * (COMMAND_BYTES_MAX + CHANNEL_MESSAGE_MORE_BYTES + 1))
            message = await socket.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1009)
        assert len(made.asked) == 1
        with pytest.raises(Unavailable):
            await caller.ask(made.address, LONG, b"1")


async def test_no_more_is_read_than_may_be_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_channel, "UNDER_WAY_MAX", 3)
    async with node() as made, channels() as caller:
        slow = [asyncio.create_task(caller.ask(made.address, SLOW, b"1")) for _ in range(10)]
        await made.until_asked(3)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert len(made.asked) == 3
        made.go.set()
        assert [answer.status for answer in await asyncio.gather(*slow)] == [200] * 10


async def test_a_caller_that_goes_leaves_nothing_behind() -> None:
    async with node() as made, channels() as caller:
        slow = asyncio.create_task(caller.ask(made.address, SLOW, b"1"))
        await made.until_asked(1)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        (channel,) = caller._open.values()
        assert not channel._waiting
        await caller.close()
        with pytest.raises(Unavailable):
            await caller.ask(made.address, QUICK, b"1")


async def test_no_page_in_a_browser_and_no_other_path_gets_a_channel() -> None:
    async with node() as made, aiohttp.ClientSession() as session:
        for path, headers in ((CHANNEL_ROUTE, {"origin": "http://evil.example"}), ("/v1/other", {}), ("/", {})):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(made.address + path, headers=headers)
            assert refused.value.status == 403
        async with session.post(made.address, headers={"origin": "http://evil.example"}) as answer:
            assert await answer.read() == b"http://evil.example"


async def test_what_is_no_address_is_said_so() -> None:
    async with channels() as caller:
        for address in ("nowhere", "ftp://127.0.0.1:1", "ws://127.0.0.1:1"):
            with pytest.raises(InvalidInput):
                await caller.ask(address, QUICK, b"1")
