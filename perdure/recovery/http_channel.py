"""The server's side of a channel: one WebSocket, whose messages are answered each by itself, in any order.

Invariants:

1. No more than `UNDER_WAY_MAX` messages of a channel are under way: further ones are not read, so its caller's own sending comes to rest.
2. When the server ends, a message that was read is answered first, or given up after as long as the server waits; none is read any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

__all__ = ["UNDER_WAY_MAX", "AnswerMessage", "Channel", "Message", "Receive", "Send"]

UNDER_WAY_MAX: Final = 4_096
"""As many as four agents' mailboxes hold."""
_NOT_UNDERSTOOD: Final = 1007
_FAULT: Final = 1011
_RESTART: Final = 1012
"""Codes with which a WebSocket is closed (RFC 6455)."""

Message = MutableMapping[str, Any]
AnswerMessage = Callable[[bytes], Awaitable[bytes | None]]
"""What a message comes to; None: it is not understood, and the channel ends. It raises nothing but what is a fault of its own."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Channel:
    """receive, send: as ASGI has them."""

    def __init__(self, answer: AnswerMessage, receive: Receive, send: Send) -> None:
        self._answer = answer
        self._receive = receive
        self._send = send
        self._room = asyncio.Semaphore(UNDER_WAY_MAX)
        self._under_way: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._code = 0  # why it is closed from this side; 0: it is not
        self._open = True

    async def run(self) -> None:
        """Until the caller goes, says what nobody understands, or `end`."""
        await self._send({"type": "websocket.accept"})
        self._reading = asyncio.create_task(self._read(), name="perdure-channel-read")
        try:
            await asyncio.wait([self._reading])
            if self._code == _RESTART and self._under_way:
                await asyncio.wait(self._under_way)
        finally:
            self._reading.cancel()
            self._open = False
        if self._code:
            with contextlib.suppress(OSError):
                await self._send({"type": "websocket.close", "code": self._code})

    def end(self, code: int = _RESTART) -> None:
        """Read no more, answer what was read, and close."""
        if self._reading is not None:
            self._code = self._code or code
            self._reading.cancel()

    async def _read(self) -> None:
        while (message := await self._receive())["type"] == "websocket.receive":
            await self._room.acquire()
            task = asyncio.create_task(self._one(message.get("bytes") or (message.get("text") or "").encode()))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._room.release()

    async def _one(self, content: bytes) -> None:
        try:
            answer = await self._answer(content)
        except Exception:
            self.end(_FAULT)  # who waits for this answer would wait for ever
            raise
        if answer is None:
            self.end(_NOT_UNDERSTOOD)
        elif self._open:
            with contextlib.suppress(OSError):  # who asked is gone
                await self._send({"type": "websocket.send", "bytes": answer})
