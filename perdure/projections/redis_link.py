"""Connections to one Redis: whole pipelines of packed commands out, their answers back in order.

The client library makes connections (addresses, TLS, passwords, protocol); between two calls they are kept here, and commands are packed by its
C library: its own pool and packing cost several times what a small command needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from perdure.errors import ConfigurationError, DeadlineExceeded, Unavailable

__all__ = ["CONNECTIONS_MAX", "RedisLink", "pack", "unavailable"]

CONNECTIONS_MAX: Final = 16
"""Connections of one link; more callers wait for one, within the timeout."""

pack: Callable[[tuple[Any, ...]], bytes] = pack_command
"""The bytes of a command, given its parts: text, bytes and integers."""


class RedisLink:
    """A link to the Redis of a URL. timeout_s: the longest a connection may take, or one answer to come."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(CONNECTIONS_MAX)
        self._idle: list[Any] = []
        try:
            self._pool: Any = ConnectionPool.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
            )
        except ValueError as problem:
            raise ConfigurationError(f"the Redis URL is not valid: {problem}", hint="redis://host:6379/0") from None

    async def call(self, commands: Sequence[bytes]) -> list[Any]:
        """One round trip. An error that Redis answers a command with is a value in its place. Raises Unavailable, DeadlineExceeded."""
        try:
            async with asyncio.timeout(2 * self._timeout_s), self._free:
                return await self._call(commands)
        except TimeoutError as problem:
            raise DeadlineExceeded(f"Redis did not answer within {2 * self._timeout_s:g} s") from problem
        except (exceptions.RedisError, OSError) as problem:
            raise unavailable(problem) from problem

    async def close(self) -> None:
        """Close every connection."""
        await self._drop_idle()
        await self._pool.aclose()

    async def _call(self, commands: Sequence[bytes]) -> list[Any]:
        if self._idle:
            try:
                return await self._exchange(self._idle.pop(), commands)
            except exceptions.ConnectionError:
                # The server closed it while it was idle, and so it did with the others. Whatever is sent here may run twice.
                await self._drop_idle()
        return await self._exchange(await self._pool.get_connection(), commands)

    async def _exchange(self, connection: Any, commands: Sequence[bytes]) -> list[Any]:
        answers: list[Any] = []
        try:
            await connection.send_packed_command(commands, check_health=False)
            for _ in commands:
                try:
                    answers.append(await connection.read_response(disable_decoding=True))
                except exceptions.ResponseError as refused:
                    answers.append(refused)
        except BaseException:
            # Answers that are still to come must not be taken for those of the next call.
            await self._give_back(connection)
            raise
        self._idle.append(connection)
        return answers

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await self._give_back(connection)

    async def _give_back(self, connection: Any) -> None:
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)


def unavailable(problem: Exception) -> Unavailable:
    """What a failure of Redis is to a caller."""
    if isinstance(problem, exceptions.OutOfMemoryError) or "OOM command not allowed" in str(problem):
        return Unavailable("Redis is out of memory", hint="raise maxmemory, or set maxmemory-policy to allkeys-lru", reason="out_of_memory")
    # A time-out while a connection is made comes wrapped.
    if isinstance(problem, exceptions.TimeoutError) or isinstance(problem.__cause__, exceptions.TimeoutError):
        return DeadlineExceeded(f"Redis did not answer in time: {problem}")
    hint = "is it up, and is the URL of the cache right? Reads go on from the log meanwhile"
    return Unavailable(f"Redis failed: {problem}", hint=hint, reason=type(problem).__name__)
