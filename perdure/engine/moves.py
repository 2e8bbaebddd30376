"""Which agents of a log are moving to another engine, or have: what every process knows of it, and how soon.

Invariant: **no process serves a strong read of an agent here after it has been committed elsewhere**, although reads cost nothing more. A
process looks at the notices at most `limits.MOVES_FRESH_S` before it serves a strong read, which is two small reads a second, however many
callers come at once: those who come while somebody looks wait for what is found. An agent that
is in them is looked up anew for each read. Whoever moves agents writes the notice first and waits for twice that time before it fences.
Writes need none of it: the log itself refuses them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

import msgspec

from perdure.engine.log.arrival_rows import ARRIVALS
from perdure.engine.log.records import AgentName
from perdure.limits import MOVES_FRESH_S

if TYPE_CHECKING:
    from perdure.engine.log.contract import LogStore

__all__ = ["NOTICES", "OUT", "Moves", "Notice", "arrived", "document_name"]

OUT: Final = "transfers/out"
"""Scope of the forwarding records: a document an agent that is leaving or has left."""
NOTICES: Final = ("transfers", "notices")
"""The document whose revision grows when a forwarding record is made or taken back."""


class Notice(msgspec.Struct, frozen=True):
    """What a forwarding record tells everybody; the rest of it is for who moves agents. open: it still holds."""

    address: str
    open: bool = True


_decode = msgspec.msgpack.Decoder(Notice).decode


def document_name(name: AgentName) -> str:
    """The name of an agent's document."""
    return f"{quote(name.tenant, safe='')}/{quote(name.agent, safe='')}"


def _name_of(document: str) -> AgentName:
    tenant, _, agent = document.partition("/")
    return AgentName(unquote(tenant), unquote(agent))


async def arrived(store: LogStore) -> set[AgentName]:
    """Agents that came from other logs, with times of their own: among them, times go back within a partition."""
    return {_name_of(each.name) for each in await store.list_documents(ARRIVALS)}


class Moves:
    """The notices of one log, as far as this process knows them."""

    def __init__(self, store: LogStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._looked_s = -MOVES_FRESH_S
        self._revision = 0
        self._addresses: dict[AgentName, str] = {}
        self._looking: asyncio.Future[Exception | None] | None = None

    @property
    def fresh(self) -> bool:
        """Whether `refresh` would do nothing."""
        return self._clock() - self._looked_s < MOVES_FRESH_S

    def concern(self, name: AgentName) -> bool:
        """Whether the agent may be on its way, or gone."""
        return name in self._addresses

    def address(self, name: AgentName) -> str | None:
        """Where it goes, or went."""
        return self._addresses.get(name)

    async def refresh(self, *, now: bool = False) -> None:
        """Look, where the last look is too long ago. now: whenever it was. Raises Unavailable."""
        if now:
            await self._look()
            return
        came_s = self._clock()
        while came_s - self._looked_s >= MOVES_FRESH_S:
            if self._looking is None:
                await self._look_for_all()
                return
            # A look that began too long before we came is not enough, however late it ended; then it is our turn.
            problem = await asyncio.shield(self._looking)
            if problem is not None:
                raise problem

    async def _look_for_all(self) -> None:
        """Look, and tell those who came meanwhile: they share an error, and one of them looks where this caller is cancelled."""
        looking = self._looking = asyncio.get_running_loop().create_future()
        problem: Exception | None = None
        try:
            await self._look()
        except Exception as raised:
            problem = raised
            raise
        finally:
            self._looking = None
            looking.set_result(problem)

    async def _look(self) -> None:
        started_s = self._clock()
        document = await self._store.get_document(*NOTICES)
        revision = 0 if document is None else document.revision
        if revision != self._revision:
            found = [(_name_of(each.name), _decode(each.value)) for each in await self._store.list_documents(OUT)]
            if started_s < self._looked_s:
                return  # somebody has looked later, and been answered before
            self._addresses = {name: notice.address for name, notice in found if notice.open}
            self._revision = revision
        # What was read is not older than the moment before it was asked for.
        self._looked_s = max(started_s, self._looked_s)

    async def tell(self) -> None:
        """Let every process look again."""
        await self._store.put_document(*NOTICES, b"", expected=None)
