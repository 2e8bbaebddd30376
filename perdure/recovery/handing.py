"""A node's agents that are handed over to another node, or come from one: what it does when whoever moves them says so.

Nothing here decides who owns an agent; see `perdure.recovery.handover`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from perdure.engine import steps
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentName
from perdure.errors import NotServed, PerdureError
from perdure.recovery.handover import Coming, Handed, Leaving, Left, Stand, again, moved_to
from perdure.recovery.serving import Loaded, ServedAgent
from perdure.recovery.whereabouts import Whereabouts

__all__ = ["HandsOver"]


class HandsOver(ABC):
    """The part of `AgentHost` that a migration talks to."""

    name: str
    _log: EventLog
    _served: dict[AgentName, ServedAgent]
    _leaving: Leaving
    _coming: Coming
    _whereabouts: Whereabouts

    @abstractmethod
    def holds_lease(self) -> bool: ...

    @abstractmethod
    def _made(self, name: AgentName, epoch: int, state: Loaded | None = None, *, staged: bool = False) -> ServedAgent: ...

    @abstractmethod
    async def _close(self, name: AgentName, why: PerdureError) -> None: ...

    async def stand(self, name: AgentName) -> Stand:
        """Where an agent of this node stands, for whoever has a copy to compare. Raises NotServed."""
        served = self._of(name)
        self._log.keep_trail(name)  # who compares is about to take the agent over
        steps.reach("host.standing")
        document, version = await served.standing()
        return Stand(version, served.epoch, (await asyncio.to_thread(digest, document)).hex())

    async def hold(self, name: AgentName, node: str, address: str, *, with_digest: bool = False, after: int = 0) -> Handed:
        """Send nothing of this agent to the log for a while, and its callers to the node that takes it over. after: the version that this node has a
        copy of."""
        served = self._served.get(name)
        why = moved_to(name, node, address)
        self._leaving.hold(name, why)
        steps.reach("host.holding")
        if served is None:
            return Handed(None, 0)  # it is not opened here meanwhile, either
        version = await served.hold(why)
        if version is None:
            return Handed(version, served.epoch)
        told, tail = "", tuple(self._log.trail(name, after))
        if with_digest:
            document, version = await served.standing()
            told = digest(document).hex()
        return Handed(version, served.epoch, told, tail, self._log.store.generation)

    def go_on(self, name: AgentName) -> None:
        """Serve an agent again that was held."""
        self._leaving.go_on(name)
        self._log.drop_trail(name)
        if (served := self._served.get(name)) is not None:
            served.go_on()

    async def leave(self, name: AgentName, node: str, address: str, epoch: int) -> Left:
        """The log has given the agent to another node under this epoch; what it was here at last."""
        served = self._served.get(name)
        steps.reach("host.leaving")
        if served is not None and served.epoch >= epoch:
            return Left()  # it is back already
        why = moved_to(name, node, address)
        self._log.drop_trail(name)
        held_s = self._leaving.gone(name, why)
        await self._close(name, why)
        state = served.in_memory if served is not None else None
        if state is None:
            return Left(held_s)
        return Left(held_s, state.version, (await asyncio.to_thread(digest, state.document)).hex())

    def expect(self, name: AgentName, node: str, address: str) -> None:
        """Callers of this agent wait until `adopt` or `expect_no_more`; otherwise they are told of the node that has it."""
        self._coming.expect(name, moved_to(name, node, address))

    def expect_no_more(self, name: AgentName) -> None:
        """It does not come, or it has come by another way: who waits is served, or told where it is."""
        settled = self._coming.settled(name)
        if settled is None:
            return
        waiting, otherwise = settled
        served = self._served.get(name)
        if served is not None:
            served.take_over(waiting)
            return
        for each in waiting:
            if not each.answer.done():
                each.answer.set_exception(again(otherwise))

    def stage(self, name: AgentName, epoch: int, state: Loaded) -> ServedAgent:
        """An agent that will be this node's under this epoch, and this state, if the log says so; see `decide_first`."""
        return self._made(name, epoch, state, staged=True)

    async def decide_first(self, staged: ServedAgent) -> list[Event]:
        """What commands that wait for a staged agent come to, for being written in the step that makes it this node's."""
        return await staged.decide_first(self._coming.waiting(staged.name))

    def adopt(self, staged: ServedAgent, *, wrote_first: bool, state_known: bool) -> None:
        """The log has given a staged agent to this node. state_known: at the version that it was staged for; else it is read."""
        name = staged.name
        if name not in self._served and self.holds_lease():
            self._leaving.back(name)
            self._served[name] = staged
            self._whereabouts.came()
            staged.begin(wrote_first=wrote_first, state_known=state_known)
        self.expect_no_more(name)

    def _of(self, name: AgentName) -> ServedAgent:
        served = self._served.get(name)
        if served is None:
            raise NotServed(f"node {self.name!r} does not serve agent {name.agent!r}", tenant=name.tenant, agent=name.agent)
        return served
