"""The cache of current states in Redis: one hash per agent, written by one script call (docs/format/redis.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final
from urllib.parse import quote

from redis import exceptions

from perdure import limits
from perdure.errors import ConfigurationError
from perdure.projections.contract import CachedState, CellWrite, CutOver, Outcome, Token
from perdure.projections.redis_link import RedisLink, pack, unavailable
from perdure.projections.statistics import CacheStatistics

__all__ = ["META", "PIPELINE_BYTES_MAX", "PIPELINE_WRITES_MAX", "RedisCache"]

META: Final = b"m"
"""The field that holds `generation:epoch:version:count:build:layout`. Cells' fields carry the prefix `c`, so none can be taken for it."""
CELL: Final = b"c"
PIPELINE_WRITES_MAX: Final = 500
"""Commands in one pipeline."""
PIPELINE_BYTES_MAX: Final = 16 * limits.MIB
"""Sealed bytes in one pipeline; a single larger state goes alone."""
TTL_S: Final = 7 * 24 * 3600.0
"""How long an agent that nobody writes to stays in Redis."""
BUILT_TTL_S: Final = 24 * 3600.0
"""How long what a rebuild made, and nobody cut over, stays in Redis."""
_BUILT_TTL_MS: Final = round(BUILT_TTL_S * 1000)
TIMEOUT_S: Final = 5.0
"""How long one round trip may take before it counts as Unavailable."""
KEYS_REMEMBERED: Final = 20_000
"""Agents whose keys, and packed look-ups of the token, are kept ready."""
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
        self._apply_script = _Script("apply.lua")
        self._token_script = _Script("token.lua")
        self._cut_over_script = _Script("cut_over.lua")
        self._link = RedisLink(url, timeout_s)
        self._key = lru_cache(KEYS_REMEMBERED)(self.key)
        self._look: Any = lru_cache(KEYS_REMEMBERED)(lambda tenant, agent: [pack(("HGET", self.key(tenant, agent), META))])

    def key(self, tenant: str, agent: str, build: int = 0) -> str:
        """The key of an agent's hash, or of the one that a build makes; the part in braces decides its slot in a cluster."""
        key = f"{self._prefix}:{{{quote(tenant, safe='')}/{quote(agent, safe='')}}}:state"
        return f"{key}:{build}" if build else key

    async def token(self, tenant: str, agent: str) -> Token | None:
        """The token that stands, whether or not every cell is still there: one HGET."""
        (meta,) = await self._send(self._look(tenant, agent))
        return None if meta is None or not _numbers(meta) else _parse(meta)

    async def tokens(self, agents: Sequence[tuple[str, str]]) -> list[Token | None]:
        """The tokens of (tenant, agent) pairs; None: not there, or not whole."""
        return await self._tokens([self._key(*agent) for agent in agents])

    async def get(self, agents: Sequence[tuple[str, str]]) -> list[CachedState | None]:
        """The whole states, or None. HGETALL is one command, so token and cells are of one moment."""
        keys = [self._key(*agent) for agent in agents]
        states: list[CachedState | None] = []
        for first in range(0, len(keys), PIPELINE_WRITES_MAX):
            commands = [pack(("HGETALL", key)) for key in keys[first : first + PIPELINE_WRITES_MAX]]
            states += [_whole(answer) for answer in await self._send(commands)]
        return states

    async def apply(self, writes: Sequence[CellWrite]) -> list[Token | None]:
        """Apply each write by itself, in order; the token that stands after each (see the contract)."""
        return await self._apply(writes, 0)

    async def statistics(self) -> CacheStatistics:
        """What the server says of itself: all of its keys, whoever they belong to."""
        info, keys = await self._send([pack(("INFO",)), pack(("DBSIZE",))])
        text = info if isinstance(info, bytes) else b""
        facts = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
        number = {name: int(facts.get(name, b"0")) for name in (b"used_memory", b"maxmemory", b"evicted_keys", b"expired_keys")}
        bound = number[b"maxmemory"] or None
        return CacheStatistics(keys, number[b"used_memory"], bound, number[b"evicted_keys"], number[b"expired_keys"])

    async def build(self, number: int, writes: Sequence[CellWrite]) -> list[Token | None]:
        """As `apply`, into a build (see the contract). What is built and never cut over goes by itself after `BUILT_TTL_S`."""
        return await self._apply(writes, number)

    async def built(self, number: int, agents: Sequence[tuple[str, str]]) -> list[Token | None]:
        """The tokens of what was built."""
        return await self._tokens([self.key(*agent, number) for agent in agents])

    async def cut_over(self, number: int, agents: Sequence[tuple[str, str]]) -> list[CutOver]:
        """Let built states be those that are read, each in one script call."""
        script = self._cut_over_script
        found: list[CutOver] = []
        for first in range(0, len(agents), PIPELINE_WRITES_MAX):
            pairs = [(self.key(*agent), self.key(*agent, number)) for agent in agents[first : first + PIPELINE_WRITES_MAX]]
            commands = [pack(("EVALSHA", script.sha, 2, *keys, number, self._ttl_ms)) for keys in pairs]
            found += [CutOver(Outcome(how.decode()), _parse(meta)) for how, meta in await self._evaluate(script, commands)]
        return found

    async def discard(self, number: int, agents: Sequence[tuple[str, str]]) -> None:
        """Delete what was built."""
        await self._unlink([self.key(*agent, number) for agent in agents])

    async def _tokens(self, keys: Sequence[str]) -> list[Token | None]:
        script = self._token_script
        answers = await self._evaluate(script, [pack(("EVALSHA", script.sha, 1, key)) for key in keys])
        return [_parse(answer) for answer in answers]

    async def _apply(self, writes: Sequence[CellWrite], build: int) -> list[Token | None]:
        answers: list[Any] = []
        batch: list[bytes] = []
        size_bytes = 0
        for write in writes:
            write_bytes = sum(map(len, write.put.values()))
            if batch and (len(batch) >= PIPELINE_WRITES_MAX or size_bytes + write_bytes > PIPELINE_BYTES_MAX):
                answers += await self._evaluate(self._apply_script, batch)
                batch, size_bytes = [], 0
            batch.append(self._command(write, build))
            size_bytes += write_bytes
        answers += await self._evaluate(self._apply_script, batch)
        return [_parse(answer) for answer in answers]

    async def remove(self, agents: Sequence[tuple[str, str]]) -> None:
        """Delete the agents' hashes."""
        await self._unlink([self.key(*agent) for agent in agents])

    async def _unlink(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _REMOVE_KEYS_MAX):
            # One key a command: in a cluster the keys lie in different slots.
            await self._send([pack(("UNLINK", key)) for key in keys[first : first + _REMOVE_KEYS_MAX]])

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()

    def _command(self, write: CellWrite, build: int) -> bytes:
        expected = b"" if write.expected is None else write.expected
        key = self.key(write.tenant, write.agent, build) if build else self._key(write.tenant, write.agent)
        command: list[Any] = ["EVALSHA", self._apply_script.sha, 1, key, expected, *write.token]
        command += (write.count, _BUILT_TTL_MS if build else self._ttl_ms, write.layout, build, len(write.put))
        for name, value in write.put.items():
            command += (CELL + name, value)
        command += [CELL + name for name in write.remove]
        return pack(tuple(command))

    async def _evaluate(self, script: _Script, commands: list[bytes]) -> list[Any]:
        answers = await self._send(commands)
        # A script is forgotten by a restart or SCRIPT FLUSH. From there on every call failed, so repeating those keeps the order.
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, exceptions.NoScriptError)]
        if missing:
            repeated = await self._send([pack(("SCRIPT", "LOAD", script.source)), *(commands[index] for index in missing)])
            for index, answer in zip(missing, repeated[1:], strict=True):
                answers[index] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise unavailable(answer)
        return answers

    async def _send(self, commands: Sequence[bytes]) -> list[Any]:
        """One round trip. NOSCRIPT comes back as a value; every other error raises."""
        answers = await self._link.call(commands) if commands else []
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, exceptions.NoScriptError):
                raise unavailable(answer)
        return answers


def _parse(meta: bytes | None) -> Token | None:
    if meta is None:
        return None
    generation, epoch, version, _ = meta.split(b":", 3)
    return Token(int(generation), int(epoch), int(version))


def _numbers(meta: bytes) -> list[bytes] | None:
    """The six parts of a meta field, or None when it is damaged. Without a build and a layout it has four."""
    parts = meta.split(b":")
    if len(parts) == 4:
        parts += (b"0", b"")
    return parts if len(parts) == 6 and all(part.isdigit() for part in parts[:5]) else None


def _whole(answer: Any) -> CachedState | None:
    """The state in a hash, or None when it is not there, partial or damaged. A hash comes as a map, or (RESP2) as a flat list."""
    fields: dict[bytes, bytes] = answer if type(answer) is dict else dict(zip(answer[::2], answer[1::2], strict=True))
    meta = fields.pop(META, None)
    parts = None if meta is None else _numbers(meta)
    if parts is None or int(parts[3]) != len(fields):
        return None
    token = Token(int(parts[0]), int(parts[1]), int(parts[2]))
    return CachedState(token, {field[1:]: value for field, value in fields.items()}, parts[5].decode("ascii", "replace"), int(parts[4]))
