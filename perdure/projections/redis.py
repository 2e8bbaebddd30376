"""The cache of current states in Redis: one hash per agent, written by one script call (docs/format/redis.md)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, Final, TypeVar
from urllib.parse import quote

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from perdure import limits
from perdure.errors import ConfigurationError, DeadlineExceeded, Unavailable
from perdure.projections.contract import CachedState, CellWrite, Token

__all__ = ["META", "PIPELINE_BYTES_MAX", "PIPELINE_WRITES_MAX", "RedisCache"]

Result = TypeVar("Result")

META: Final = b"m"
"""The field that holds `generation:epoch:version:count`. Cells' fields carry the prefix `c`, so none can be taken for it."""
CELL: Final = b"c"
PIPELINE_WRITES_MAX: Final = 500
"""Commands in one pipeline."""
PIPELINE_BYTES_MAX: Final = 16 * limits.MIB
"""Sealed bytes in one pipeline; a single larger state goes alone."""
TTL_S: Final = 7 * 24 * 3600.0
"""How long an agent that nobody writes to stays in Redis."""
TIMEOUT_S: Final = 5.0
"""How long one round trip may take before it counts as Unavailable."""
CONNECTIONS_MAX: Final = 16
_REMOVE_KEYS_MAX: Final = 1_000


class _Script:
    def __init__(self, name: str) -> None:
        self.source = files("perdure.projections").joinpath("lua", name).read_bytes()
        # Redis names scripts by SHA-1; nothing is authenticated by it.
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class RedisCache:
    """A `StateCache` in Redis 6 or newer. url: `redis://host:port/db`, `rediss://` or `unix://`.

    prefix: keeps deployments apart that share a server. ttl_s: how long an agent that nobody writes to stays (None: for ever).
    timeout_s: the longest one round trip may take. Every method may raise Unavailable, also when Redis is out of memory.
    """

    def __init__(self, url: str, *, prefix: str = "perdure", ttl_s: float | None = TTL_S, timeout_s: float = TIMEOUT_S) -> None:
        if any(character in prefix for character in "{}"):
            raise ConfigurationError(f"the prefix {prefix!r} holds a brace", hint="braces mark what Redis Cluster hashes")
        if ttl_s is not None and ttl_s <= 0:
            raise ConfigurationError(f"ttl_s is {ttl_s}", hint="seconds above 0, or None for ever")
        self._prefix = prefix
        self._ttl_ms = 0 if ttl_s is None else max(1, round(ttl_s * 1000))
        self._timeout_s = timeout_s
        self._apply_script = _Script("apply.lua")
        self._token_script = _Script("token.lua")
        try:
            # Blocking: more callers than connections wait, within the timeout, instead of failing.
            pool = BlockingConnectionPool.from_url(
                url,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                max_connections=CONNECTIONS_MAX,
                # One more try covers a connection that the server closed while it was idle; both scripts may run twice.
                retry=Retry(NoBackoff(), 1),
            )
            self._redis: Redis = Redis.from_pool(pool)
        except ValueError as problem:
            raise ConfigurationError(f"the Redis URL is not valid: {problem}", hint="redis://host:6379/0") from None

    def key(self, tenant: str, agent: str) -> str:
        """The key of an agent's hash; the part in braces decides its slot in a cluster."""
        return f"{self._prefix}:{{{quote(tenant, safe='')}/{quote(agent, safe='')}}}:state"

    async def tokens(self, agents: Sequence[tuple[str, str]]) -> list[Token | None]:
        """The tokens of (tenant, agent) pairs; None: not there, or not whole."""
        script = self._token_script
        answers = await self._evaluate(script, [("EVALSHA", script.sha, 1, self.key(*agent)) for agent in agents])
        return [_parse(answer) for answer in answers]

    async def get(self, agents: Sequence[tuple[str, str]]) -> list[CachedState | None]:
        """The whole states, or None. HGETALL is one command, so token and cells are of one moment."""
        keys = [self.key(*agent) for agent in agents]
        states: list[CachedState | None] = []
        for first in range(0, len(keys), PIPELINE_WRITES_MAX):
            commands = [("HGETALL", key) for key in keys[first : first + PIPELINE_WRITES_MAX]]
            states += [_whole(answer) for answer in await self._send(commands)]
        return states

    async def apply(self, writes: Sequence[CellWrite]) -> list[Token | None]:
        """Apply each write by itself, in order; the token that stands after each (see the contract)."""
        answers: list[Any] = []
        batch: list[tuple[Any, ...]] = []
        size_bytes = 0
        for write in writes:
            write_bytes = sum(map(len, write.put.values()))
            if batch and (len(batch) >= PIPELINE_WRITES_MAX or size_bytes + write_bytes > PIPELINE_BYTES_MAX):
                answers += await self._evaluate(self._apply_script, batch)
                batch, size_bytes = [], 0
            batch.append(self._command(write))
            size_bytes += write_bytes
        answers += await self._evaluate(self._apply_script, batch)
        return [_parse(answer) for answer in answers]

    async def remove(self, agents: Sequence[tuple[str, str]]) -> None:
        """Delete the agents' hashes."""
        for first in range(0, len(agents), _REMOVE_KEYS_MAX):
            # One key a command: in a cluster the keys lie in different slots.
            await self._send([("UNLINK", self.key(*agent)) for agent in agents[first : first + _REMOVE_KEYS_MAX]])

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _command(self, write: CellWrite) -> tuple[Any, ...]:
        expected = b"" if write.expected is None else write.expected
        command: list[Any] = ["EVALSHA", self._apply_script.sha, 1, self.key(write.tenant, write.agent), expected, *write.token]
        command += (write.count, self._ttl_ms, len(write.put))
        for name, value in write.put.items():
            command += (CELL + name, value)
        command += [CELL + name for name in write.remove]
        return tuple(command)

    async def _evaluate(self, script: _Script, commands: list[tuple[Any, ...]]) -> list[Any]:
        answers = await self._send(commands)
        # A script is forgotten by a restart or SCRIPT FLUSH. From there on every call failed, so repeating those keeps the order.
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, exceptions.NoScriptError)]
        if missing:
            repeated = await self._send([("SCRIPT", "LOAD", script.source), *(commands[index] for index in missing)])
            for index, answer in zip(missing, repeated[1:], strict=True):
                answers[index] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise _unavailable(answer)
        return answers

    async def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """One round trip. NOSCRIPT comes back as a value; every other error raises."""
        if not commands:
            return []
        if len(commands) == 1:
            answers = [await self._bounded(lambda: self._single(commands[0]))]
        else:
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers = await self._bounded(lambda: pipeline.execute(raise_on_error=False))
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, exceptions.NoScriptError):
                raise _unavailable(answer)
        return answers

    async def _single(self, command: tuple[Any, ...]) -> Any:
        try:
            return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except exceptions.NoScriptError as missing:
            return missing

    async def _bounded(self, call: Callable[[], Awaitable[Result]]) -> Result:
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                return await call()
        except TimeoutError as problem:
            raise DeadlineExceeded(f"Redis did not answer within {2 * self._timeout_s:g} s") from problem
        except (exceptions.RedisError, OSError) as problem:
            raise _unavailable(problem) from problem


def _unavailable(problem: Exception) -> Unavailable:
    if isinstance(problem, exceptions.OutOfMemoryError) or "OOM command not allowed" in str(problem):
        return Unavailable("Redis is out of memory", hint="raise maxmemory, or set maxmemory-policy to allkeys-lru", reason="out_of_memory")
    if isinstance(problem, exceptions.TimeoutError):
        return DeadlineExceeded(f"Redis did not answer in time: {problem}")
    return Unavailable(f"Redis failed: {problem}", reason=type(problem).__name__)


def _parse(meta: bytes | None) -> Token | None:
    if meta is None:
        return None
    generation, epoch, version, _ = meta.split(b":")
    return Token(int(generation), int(epoch), int(version))


def _whole(answer: dict[bytes, bytes]) -> CachedState | None:
    """The state in a hash, or None when it is not there, partial or damaged."""
    meta = answer.pop(META, None)
    if meta is None:
        return None
    parts = meta.split(b":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts) or int(parts[3]) != len(answer):
        return None
    return CachedState(Token(int(parts[0]), int(parts[1]), int(parts[2])), {field[1:]: value for field, value in answer.items()})
