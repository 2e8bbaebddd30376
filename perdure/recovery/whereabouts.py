"""Where agents are that this node does not serve, as it tells their callers.

Whoever lost the node of many agents asks once for all of them, and waits for the answer here: a thousand callers that try one node after the other
would keep busy the very nodes that take the agents over. However many wait, one look at a time goes to the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from perdure.engine.log.contract import LogStore
from perdure.engine.log.marks import RESERVED
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.stopping import rest
from perdure.errors import NotServed, Overloaded, Unavailable
from perdure.limits import PARKED_COMMANDS_MAX, WHERE_AGENTS_MAX
from perdure.recovery.handover import again
from perdure.recovery.nodes import NodeState, list_nodes

__all__ = ["NODES_FRESH_S", "WAIT_MAX_S", "Whereabouts"]

NODES_FRESH_S: Final = 0.2
"""How long it is believed, in a storm of commands for agents that are elsewhere, where they are: it then costs no more than a look."""
LOOK_S: Final = 0.2
"""Pause between two looks for agents that somebody waits for."""
GATHER_S: Final = 0.05
"""So long it is waited for more agents to come before those who wait are told of the first."""
WAIT_MAX_S: Final = 2.0
"""How long somebody may wait here for an answer."""


class Whereabouts:
    """serves: whether this node serves an agent now. here: its name and address. agents_max: how many agents are remembered for a moment."""

    def __init__(self, store: LogStore, here: tuple[str, str], serves: Callable[[AgentName], bool], agents_max: int) -> None:
        self._store = store
        self._name, self._address = here
        self._serves = serves
        self._agents_max = agents_max
        self._nodes: tuple[float, asyncio.Task[list[NodeState]] | None] = (0.0, None)
        self._told: dict[AgentName, tuple[float, NotServed]] = {}
        self._wanted: dict[AgentName, int] = {}
        self._found: dict[AgentName, str] = {}
        self._turned = asyncio.Event()
        self._ended = False
        self._hurry = asyncio.Event()
        self._gathering: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    def end_waits(self) -> None:
        """Answer who waits with what is known, and everybody who comes at once: this node stops."""
        self._ended = True
        self._turn()

    async def close(self) -> None:
        """Look no more."""
        self.end_waits()
        if self._gathering is not None:
            self._gathering.cancel()
        tasks = [task for task in (self._looking, self._nodes[1]) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one agent that somebody asked this node for ---
    def told(self, name: AgentName) -> NotServed | None:
        """What callers were told a moment ago; None when that may be old."""
        told = self._told.get(name)
        return again(told[1]) if told is not None and time.monotonic() - told[0] < NODES_FRESH_S else None

    async def tell(self, record: AgentRecord) -> NotServed:
        """What callers are told of an agent that belongs to another node."""
        address = await self._alive(record.owner)
        if address is not None:
            message = f"agent {record.agent!r} is served by node {record.owner!r}"
            hint = f"send the command to {address}"
            problem = NotServed(message, hint=hint, tenant=record.tenant, agent=record.agent, address=address)
        else:
            message = f"agent {record.agent!r} belongs to node {record.owner!r}, which does not answer"
            hint = "recovery gives it to another node; ask again soon"
            problem = NotServed(message, hint=hint, tenant=record.tenant, agent=record.agent)
        if len(self._told) >= self._agents_max:
            self._told.clear()
        self._told[AgentName(record.tenant, record.agent)] = (time.monotonic(), problem)
        return problem

    async def _alive(self, node: str) -> str | None:
        """The address of a node that holds its lease, as of a moment ago."""
        now = time.monotonic()
        began_at, looking = self._nodes
        if looking is None or now - began_at >= NODES_FRESH_S:
            looking = asyncio.create_task(list_nodes(self._store), name=f"perdure-nodes-{self._name}")
            self._nodes = (now, looking)
        nodes = await asyncio.shield(looking)  # whoever comes meanwhile shares it
        return next((each.node.address for each in nodes if each.node.name == node and each.alive), None)

    # --- many agents that somebody looks for ---
    async def find(self, names: Sequence[AgentName], silent: Collection[str], wait_s: float) -> list[str | None]:
        """Addresses of the nodes that these agents belong to ('': they are nobody's, any node will do; None: a node that is lost, or one of
        `silent`). As soon as one of them is known, or after `wait_s`. Raises Overloaded."""
        if len(self._wanted) + len(names) > PARKED_COMMANDS_MAX:
            raise Overloaded(f"{len(self._wanted)} agents are looked for", hint="ask again soon")
        for name in names:
            self._wanted[name] = self._wanted.get(name, 0) + 1
        try:
            if not self._ended and (self._looking is None or self._looking.done()):
                self._looking = asyncio.create_task(self._look(), name=f"perdure-whereabouts-{self._name}")
            self._hurry.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, WAIT_MAX_S)):
                    while not self._ended and not any(self._known(name, silent) is not None for name in names):
                        await self._turned.wait()
            return [self._known(name, silent) for name in names]
        finally:
            for name in names:
                self._let_go(name)

    def came(self) -> None:
        """This node serves more agents than before."""
        if self._wanted and self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._turn)

    def _known(self, name: AgentName, silent: Collection[str]) -> str | None:
        if self._serves(name):
            return self._address
        found = self._found.get(name)
        return None if found in silent else found

    def _let_go(self, name: AgentName) -> None:
        self._wanted[name] -= 1
        if not self._wanted[name]:
            del self._wanted[name]
            self._found.pop(name, None)

    def _turn(self) -> None:
        self._gathering = None
        self._turned.set()
        self._turned = asyncio.Event()

    async def _look(self) -> None:
        """Look for what is wanted until nothing is, a bounded number at a time."""
        while self._wanted:
            self._hurry.clear()
            # Whoever is looked for now comes last in the next round.
            for name in (names := list(self._wanted)[:WHERE_AGENTS_MAX]):
                self._wanted[name] = self._wanted.pop(name)
            with contextlib.suppress(Unavailable):
                for name, record in zip(names, await self._store.agents(names), strict=True):
                    await self._note(name, record)
            self._turn()
            await asyncio.sleep(GATHER_S)
            await rest(self._hurry, LOOK_S)

    async def _note(self, name: AgentName, record: AgentRecord | None) -> None:
        self._found.pop(name, None)
        if name not in self._wanted:
            return  # nobody waits for it any more
        if record is None or record.owner == "" or record.owner.startswith(RESERVED):
            self._found[name] = ""  # whichever node is asked takes it, makes it, or tells where it has moved to
        elif record.owner == self._name:
            self._found[name] = self._address
        elif address := await self._alive(record.owner):
            self._found[name] = address
