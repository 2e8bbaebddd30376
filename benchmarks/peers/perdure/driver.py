"""perdure itself, as a user opens it: keys, encryption, compression, expected versions and the hash chain are on. Variants: postgres, sqlite."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any

import perdure
from benchmarks.peers.kit import Driver, Message, serve
from perdure import NO_STREAM, Event, append
from perdure.client.agent import Agent
from perdure.client.engine import Engine
from perdure.engine.replay import fold_log
from perdure.errors import InvalidInput
from perdure.projections.hot import HotStates
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader

BATCH = 100
TENANT = "benchmark"


class Perdure(Driver):
    """One engine; each stream is an agent whose state is its messages."""

    engine: Engine

    async def open(self) -> dict[str, Any]:
        """An engine on a log of its own."""
        url = self.url or f"sqlite:///{self.folder}/log"
        self.opened = perdure.open(url, bus="memory://", cache="memory://", keys=f"file://{self.folder}/root.key")
        self.engine = await self.opened.__aenter__()
        self.versions: dict[str, int] = {}
        self.agents: dict[str, Agent] = {}
        durable = "synchronous_commit of the server, as found" if self.url else "synchronous=FULL, WAL"
        settings = {"durability": durable, "encryption": "on", "compression": "on", "expected version": "on", "event ids": "unique"}
        return {"version": importlib.metadata.version("perdure"), "settings": settings}

    async def append(self, stream: str, message: Message) -> None:
        """At the version that the stream has."""
        event = Event("message_added", changes=(append("/messages", message),))
        # Kept, as a caller that goes on with a conversation has it, and as the other sides keep their sessions and aggregates.
        agent = self.agents.get(stream)
        if agent is None:
            agent = self.agents[stream] = self.engine.agent(stream, tenant=TENANT)
        done = await agent.append(event, expected=self.versions.get(stream, NO_STREAM))
        self.versions[stream] = done.version

    async def fill(self, stream: str, messages: list[Message]) -> None:
        """A hundred events an append."""
        agent = self.engine.agent(stream, tenant=TENANT)
        for first in range(0, len(messages), BATCH):
            some = messages[first : first + BATCH]
            done = await agent.append([Event("message_added", changes=(append("/messages", message),)) for message in some])
            self.versions[stream] = done.version

    async def load(self, stream: str) -> int:
        """Strongly consistent: the log is asked for its newest version each time. The messages are read-only, as `state()` gives them."""
        state = await self.engine.agent(stream, tenant=TENANT).state()
        return len(state.document["messages"])

    async def load_own(self, stream: str) -> int:
        """The same, and a plain copy of all of it."""
        state = await self.engine.agent(stream, tenant=TENANT).state()
        return len(state.copy()["messages"])

    async def load_cold(self, stream: str) -> int:
        """From the log alone, event by event: no state at hand, nothing in the cache, no snapshot."""
        log = self.engine.log
        reader = StateReader(log.store, MemoryCache(), log.vault, kept=HotStates(agents_max=0))
        return len((await reader.state(TENANT, stream)).document["messages"])

    async def replay(self) -> int:
        """Every agent from its first event, its hash chain checked."""
        log = self.engine.log
        records = [await log.vault.record(TENANT, stream) for stream in self.versions]
        return sum([(await fold_log(log.store, log.vault, record)).version for record in records])

    async def settle(self) -> None:
        """The tenant's dictionary, which is trained in the background otherwise; from few events none is made."""
        with contextlib.suppress(InvalidInput):
            await self.engine.train(TENANT)

    async def close(self) -> None:
        """Close the engine."""
        await self.opened.__aexit__(None, None, None)


if __name__ == "__main__":
    serve(Perdure)
