"""Talking to the node that an agent comes from, as far as it answers. It only ever saves time: what it says binds nobody, the log does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, Literal, TypeVar

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName
from perdure.errors import Unavailable
from perdure.recovery.connections import Connections
from perdure.recovery.handover import Handed, Left, Stand
from perdure.recovery.nodes import list_nodes
from perdure.recovery.wire import path_of

__all__ = ["Links", "SourceLink"]

STAND_TIMEOUT_S: Final = 5.0
"""For the digest of a large state."""
LEASE_LOOK_S: Final = 0.25
"""Pause between two looks at whether a source that does not answer still has its lease."""
HOLD_TIMEOUT_S: Final = 0.25
"""A source that has not stopped by then is fenced."""
LEFT_TIMEOUT_S: Final = 1.0

Answered = TypeVar("Answered")
Do = Literal["stand", "hold", "go_on", "left"]


class Links:
    """Kept connections to other nodes; `close` ends them."""

    def __init__(self, store: LogStore) -> None:
        self._connections = Connections(STAND_TIMEOUT_S)
        self._store = store

    def to(self, name: AgentName, address: str, own_node: str, own_address: str) -> SourceLink:
        """A link to the node that the agent comes from."""
        return SourceLink(self._connections, self._lives, name, address, own_node, own_address)

    async def _lives(self, address: str) -> bool:
        """Whether a node with this address holds its lease, as far as the log tells."""
        with contextlib.suppress(Unavailable):
            return any(state.alive and state.node.address == address for state in await list_nodes(self._store))
        return True

    async def close(self) -> None:
        """End all."""
        await self._connections.close()


class SourceLink:
    """One agent's source. Every method returns None where it does not answer, or has no address."""

    def __init__(
        self,
        connections: Connections,
        lives: Callable[[str], Awaitable[bool]],
        name: AgentName,
        address: str,
        own_node: str,
        own_address: str,
    ) -> None:
        self._connections = connections
        self._lives = lives
        self._address = address
        self._path = path_of(name, "hand-over")
        self._own = {"node": own_node, "address": own_address}

    async def stand(self) -> Stand | None:
        """Where the agent stands there. A node that has lost its lease is not waited for."""
        asking = asyncio.create_task(self._ask("stand", Stand, STAND_TIMEOUT_S), name="perdure-stand")
        try:
            while not (await asyncio.wait([asking], timeout=LEASE_LOOK_S))[0]:
                if not await self._lives(self._address):
                    return None
            return asking.result()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def hold(self, *, with_digest: bool, after: int) -> Handed | None:
        """Have it held; with_digest: and its digest told, for which everybody waits. after: the version that is known here."""
        return await self._ask("hold", Handed, HOLD_TIMEOUT_S, digest=with_digest, after=after)

    async def go_on(self) -> None:
        """It stays there after all."""
        await self._ask("go_on", None, LEFT_TIMEOUT_S)

    async def left(self, epoch: int) -> Left | None:
        """The log has given it to us; what it was there at last."""
        return await self._ask("left", Left, LEFT_TIMEOUT_S, epoch=epoch)

    async def _ask(self, do: Do, type: type[Answered] | None, timeout_s: float, **more: Any) -> Answered | None:
        if not self._address:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._connections.post(self._address, self._path, msgspec.json.encode({"do": do, **self._own, **more}))
        except (Unavailable, TimeoutError):
            return None
        if answer.status != HTTPStatus.OK or type is None:
            return None
        return msgspec.json.decode(answer.content, type=type)
