"""Channels to nodes: one WebSocket to each, on which the commands of many agents are under way at once and are answered in any order.

A request of HTTP for each command costs its caller twice as much processor time, and a connection for as long as the command takes.

Invariants:

1. A command that was sent is answered, or its caller is told that this is not known (Unavailable). It may be sent again: it is known by its id.
2. An agent that takes long delays no other one's answer, as long as fewer commands are under way than a node reads (`http_channel.UNDER_WAY_MAX`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from itertools import count
from typing import Final

import aiohttp
import msgspec

from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName
from perdure.errors import LimitExceeded, Unavailable
from perdure.recovery.commands import COMMAND_BYTES_MAX
from perdure.recovery.connections import ANSWER_BYTES_MAX, url_of
from perdure.recovery.wire import CHANNEL_ROUTE, Answered

__all__ = ["Channels"]

_SAID: Final = (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Answered).decode


class Channels:
    """`ask` any number of addresses (`http://host:port`, `https://…`); `close` ends all. timeout_s: of one command, connecting included."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._open: dict[str, _Channel] = {}
        self._opening: dict[str, asyncio.Task[_Channel]] = {}

    async def ask(self, address: str, name: AgentName, command: bytes) -> Answered:
        """Send a command (JSON) and wait for its answer. Raises InvalidInput, LimitExceeded; Unavailable: whether it arrived is not known."""
        check_names(name)  # a node ends the channel of who sends what is too long
        if len(command) > COMMAND_BYTES_MAX:
            raise LimitExceeded(f"a command has more than {COMMAND_BYTES_MAX} bytes", tenant=name.tenant, agent=name.agent)
        channel, heard = self._open.get(address), 0
        try:
            async with asyncio.timeout(self._timeout_s):
                if channel is None or channel.ended:
                    channel = await self._connected(address)
                heard = channel.heard
                return await channel.ask(name, command)
        except TimeoutError as problem:
            if channel is not None and channel.heard == heard:
                channel.end()  # nothing at all came meanwhile: another one may get through
            raise Unavailable(f"node {address} did not answer within {self._timeout_s:g} s") from problem
        except (aiohttp.ClientError, OSError) as problem:
            raise Unavailable(f"node {address} does not answer: {type(problem).__name__}") from problem

    async def _connected(self, address: str) -> _Channel:
        """Many callers share one attempt."""
        opening = self._opening.get(address)
        if opening is None:
            opening = self._opening[address] = asyncio.create_task(self._connect(address), name="perdure-channel-connect")
            opening.add_done_callback(lambda done: self._tried(address, done))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled():
                raise Unavailable("these channels are closed") from None
            raise

    def _tried(self, address: str, done: asyncio.Task[_Channel]) -> None:
        self._opening.pop(address, None)
        if not done.cancelled():
            done.exception()  # all who waited for it may have given up before it failed

    async def _connect(self, address: str) -> _Channel:
        if self._closed:
            raise Unavailable("these channels are closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        url = url_of(address, CHANNEL_ROUTE)
        async with asyncio.timeout(self._timeout_s):
            socket = await self._session.ws_connect(url, max_msg_size=ANSWER_BYTES_MAX, compress=0, autoping=True)
        channel = self._open[address] = _Channel(socket, lambda: self._ended(address, channel))
        return channel

    def _ended(self, address: str, channel: _Channel) -> None:
        if self._open.get(address) is channel:
            del self._open[address]

    async def close(self) -> None:
        """Close every channel; commands under way fail."""
        self._closed = True
        for opening in list(self._opening.values()):
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        for channel in list(self._open.values()):
            channel.end()
            await channel.wait_closed()
        if self._session is not None:
            await self._session.close()


class _Channel:
    """One WebSocket. heard: how many messages came. gone: is called when it has ended."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, gone: Callable[[], None]) -> None:
        self._socket = socket
        self._gone = gone
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self.heard = 0
        self._reader = asyncio.create_task(self._read(), name="perdure-channel")

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._reader.done() or self._socket.closed

    async def ask(self, name: AgentName, command: bytes) -> Answered:
        """Raises Unavailable when the channel ends before the answer has come."""
        number = next(self._numbers)
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._socket.send_bytes(_encode((number, name.tenant, name.agent, msgspec.Raw(command))))
            return await answer
        finally:
            del self._waiting[number]

    def end(self) -> None:
        """Let everybody who waits know that no answer comes."""
        self._reader.cancel()

    async def wait_closed(self) -> None:
        """Until it is closed on this side."""
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for message in self._socket:
                if message.type not in _SAID:
                    break  # of what cannot be read, or is too long
                self.heard += 1
                answered = _decode(message.data)
                waiting = self._waiting.get(answered.number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answered)
        except msgspec.MsgspecError:
            pass  # whatever answers there is no node
        finally:
            self._gone()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(Unavailable("the channel to the node has ended"))
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await self._socket.close()
