"""Agents that are appended to, at versions that are checked: the load that all benchmarks share."""

from __future__ import annotations

import asyncio
import os
import uuid
from itertools import cycle
from typing import Any

from perdure import NO_STREAM, Event, append
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.engine.vault import Vault
from perdure.security.cipher import Cipher

__all__ = ["EVENT_BYTES", "Agents", "UnsealedVault", "contents"]

EVENT_BYTES = 1024
TENANT = "benchmark"


def contents(count: int = 256) -> list[bytes]:
    """Bytes of 1 KB, half of them random and half compressible, each another."""
    compressible = b'{"a":1}' * (EVENT_BYTES // 14)
    return [os.urandom(EVENT_BYTES - len(compressible)) + compressible for _ in range(count)]


class Agents:
    """Agents of one tenant, and at which version each stands."""

    def __init__(self, engine: Engine, prefix: str = "agent", tenant: str = TENANT) -> None:
        self._engine = engine
        self._prefix = prefix
        self._tenant = tenant
        self._contents = cycle(contents())
        self.versions: dict[AgentName, int] = {}
        self._free: asyncio.Queue[AgentName] = asyncio.Queue()

    def event(self) -> Event:
        """An event of 1 KB that changes its agent's state."""
        return Event("message_added", changes=(append("/messages", {"role": "user", "content": next(self._contents)}),))

    async def make(self, count: int) -> None:
        """Make agents, each with its first event."""
        first = len(self.versions)
        await asyncio.gather(*(self.create(number) for number in range(first, first + count)))

    async def create(self, number: int) -> None:
        """Make one agent."""
        name = AgentName(self._tenant, f"{self._prefix}-{number}")
        done = await self._engine.log.append_event(name, self.event(), expected=NO_STREAM)
        self.versions[name] = done.version
        self._free.put_nowait(name)

    async def next(self) -> tuple[AgentName, Event, int]:
        """Append to the agent that has waited longest, at its version; the agent, the event and the version it got."""
        # Where more is asked for than is done, it waits here, and the wait counts: every agent has one append on its way.
        name = await self._free.get()
        event = self.event()
        done = await self._engine.log.append_event(name, event, expected=self.versions[name])
        self.versions[name] = done.version
        self._free.put_nowait(name)
        return name, event, done.version

    async def step(self, _caller: int = 0) -> None:
        """As `next`, for a load that needs nothing back."""
        await self.next()


def unique(prefix: str) -> str:
    """A name that nobody has used."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


class PlainCipher(Cipher):
    """A stand-in that neither compresses nor encrypts: only benchmarks have it, to tell what sealing costs."""

    __slots__ = ()

    def __init__(self) -> None:
        """No key, no dictionary."""

    def seal(self, context: bytes, plaintext: bytes) -> bytes:  # noqa: ARG002 - the shape of a cipher
        """The plaintext."""
        return plaintext

    def open(self, context: bytes, sealed: bytes) -> bytes:  # noqa: ARG002
        """The plaintext."""
        return sealed


class UnsealedVault(Vault):
    """A vault whose ciphers are `PlainCipher`."""

    def __init__(self, sealed: Vault) -> None:
        super().__init__(sealed.store, sealed.ring, sealed.book)
        self._plain = PlainCipher()

    def _cipher_of(self, *_: Any) -> Cipher:
        return self._plain
