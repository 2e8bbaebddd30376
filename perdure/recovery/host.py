"""The agent host: a process that owns agents by lease and epoch, and applies commands to them.

It is small on purpose: it decides nothing about agents' work. What it adds to an append is one owner at a time, one mailbox an agent, and the
readiness to lose an agent at any moment (to recovery, to a migration) without losing or doubling what was acknowledged.

Invariants:

1. The node acts only while its lease holds (its own clock, with a margin), and the log refuses what it sends later (epoch).
2. An agent is served under an epoch that this session of the node has taken; after a restart every agent is taken anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from importlib.metadata import version as version_of
from types import TracebackType
from typing import Final, Self

from perdure.engine import steps
from perdure.engine.log.log import EventLog
from perdure.engine.log.names import check_names
from perdure.engine.log.records import AgentName
from perdure.errors import AgentMoved, AlreadyExists, Fenced, LimitExceeded, NotServed, Overloaded, PerdureError, Unavailable
from perdure.limits import WHERE_AGENTS_MAX
from perdure.projections.reader import ReadState, StateReader
from perdure.recovery.commands import Command, CommandResult, Handler
from perdure.recovery.handing import HandsOver
from perdure.recovery.handover import Coming, Leaving
from perdure.recovery.leases import LEASE_S, KeptLease
from perdure.recovery.loading import StateLoader
from perdure.recovery.nodes import Node, announce, announce_end, check_node_name, node_lease
from perdure.recovery.serving import Loaded, ServedAgent
from perdure.recovery.taking import TakeOvers
from perdure.recovery.whereabouts import Whereabouts

__all__ = ["AGENTS_MAX_DEFAULT", "AgentHost", "Companion"]

AGENTS_MAX_DEFAULT: Final = 10_000
OPENINGS_MAX: Final = 32
"""Agents that are taken at once; more wait here, and not before the log, where they would hold up the lease's renewal."""


Companion = Callable[["AgentHost"], Awaitable[None]]
"""Work that goes on beside a node, from its start until it is cancelled at its stop; it must not end by itself."""


class AgentHost(HandsOver):
    """A node. `start` it (or `async with`), then `command`; `stop` gives its agents back.

    handler: see `Handler`. address: where others reach its commands. agents_max: above, new agents are refused with Overloaded.
    companions: see `Companion`.
    """

    def __init__(
        self,
        log: EventLog,
        reader: StateReader,
        name: str,
        handler: Handler,
        *,
        address: str = "",
        agents_max: int = AGENTS_MAX_DEFAULT,
        lease_s: float = LEASE_S,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.name = check_node_name(name)
        self.address = address
        self._log = log
        self._reader = reader
        self._handler = handler
        self._agents_max = agents_max
        self._lease_s = lease_s
        self._lease: KeptLease | None = None
        self._served: dict[AgentName, ServedAgent] = {}
        self._opening: dict[AgentName, asyncio.Task[ServedAgent]] = {}
        self._following: list[asyncio.Task[None]] = []
        self._companions = companions
        self._leaving = Leaving()
        self._coming = Coming()
        self.drained = False
        """Set: it takes no agent that nobody decided to give to it."""
        self._openings = asyncio.Semaphore(OPENINGS_MAX)
        self._whereabouts = Whereabouts(log.store, (name, address), self._served.__contains__, agents_max)
        self._take_overs = TakeOvers(log, name, self._take_over)
        self._loader = StateLoader(reader)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    # --- life ---
    async def start(self) -> None:
        """Take the node's lease and announce it. Waits for an earlier session's lease to run out; AlreadyExists when that one lives on."""
        deadline = time.monotonic() + 2 * self._lease_s
        lease = await node_lease(self._log.store, self.name, self._lease_s)
        while lease is None:
            if time.monotonic() > deadline:
                raise AlreadyExists(f"a node {self.name!r} is running", hint="give this one another --node name")
            await asyncio.sleep(self._lease_s / 10)
            lease = await node_lease(self._log.store, self.name, self._lease_s)
        self._lease = lease
        await self._announce()
        self._following = [asyncio.create_task(self._take_overs.follow(lease), name=f"perdure-assignments-{self.name}")]
        self._following += [
            asyncio.create_task(_run(companion, self), name=f"perdure-companion-{self.name}") for companion in self._companions
        ]

    async def stop(self) -> None:
        """Answer what is being appended, give every agent back, tell of the end, then give the lease back."""
        self.end_waits()
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        epochs = {name: served.epoch for name, served in self._served.items()}
        await asyncio.gather(*(self._close(name, NotServed(f"node {self.name!r} stops", hint="send the command again")) for name in epochs))
        await self._loader.close()
        await self._whereabouts.close()
        if self._lease is not None:
            if self._lease.holds():
                await asyncio.gather(*(self._give_back(name, epoch) for name, epoch in epochs.items()))
                with contextlib.suppress(Fenced, Unavailable):
                    await announce_end(self._log.store, self.name, self._lease.epoch)
            await self._lease.close()

    @property
    def serving(self) -> int:
        """How many agents it serves."""
        return len(self._served)

    def names(self) -> list[AgentName]:
        """Whom it serves."""
        return list(self._served)

    @property
    def session(self) -> int:
        """The epoch of its lease; 0 before the start."""
        return self._lease.epoch if self._lease is not None else 0

    def holds_lease(self) -> bool:
        """Whether it may act."""
        return self._lease is not None and self._lease.holds()

    async def wait_lost(self) -> None:
        """Return when the lease was lost for good; the process should end."""
        assert self._lease is not None
        await self._lease.lost.wait()

    # --- serving ---
    async def command(self, name: AgentName, command: Command) -> CommandResult:
        """Apply a command; durable when it returns.

        Raises what the handler raises as CommandFailed; NotServed with the owner's address where another node owns the agent; Overloaded;
        Unavailable and DeadlineExceeded: the outcome is unknown, the same command (by its id) is safe to send again.
        """
        served = self._served.get(name)
        if served is None:
            if self._coming.expects(name) and (done := await self._coming.park(name, command)) is not None:
                return done
            served = await self._open(name)
        if (elsewhere := self._leaving.held(name)) is None:
            served.go_on()  # a hold that nobody ended
        else:
            raise elsewhere
        # A caller that goes takes only its answer with it: of what is not decided yet nothing is done, what is, takes effect.
        return await served.submit(command)

    async def state(self, name: AgentName) -> ReadState:
        """The agent's state, strongly read."""
        return await self._reader.state(*name)

    async def find(self, names: Sequence[AgentName], silent: Collection[str] = (), wait_s: float = 0.0) -> list[str | None]:
        """Where these agents are; see `Whereabouts.find`. Raises NotServed without a lease, LimitExceeded, Overloaded."""
        if not self.holds_lease():
            raise NotServed(f"node {self.name!r} has no lease", hint="ask another node")
        if len(names) > WHERE_AGENTS_MAX:
            raise LimitExceeded(f"{len(names)} agents are looked for at once", hint=f"at most {WHERE_AGENTS_MAX}")
        return await self._whereabouts.find(names, silent, wait_s)

    def end_waits(self) -> None:
        """Let nobody wait here any more for agents that are elsewhere: it stops. Where its lease is lost, for no others either: the log refuses what
        this node still sends as soon as somebody else has them, and it may be long before it says so."""
        self._whereabouts.end_waits()
        if self._lease is not None and self._lease.lost.is_set():
            for served in list(self._served.values()):
                served.give_up(NotServed(f"node {self.name!r} has lost its lease", hint="ask again soon: another one takes the agent"))

    async def _open(self, name: AgentName) -> ServedAgent:
        """Serve an agent that is ours or nobody's. Many callers share one opening."""
        check_names(name)
        await self._coming.wait(name)
        served = self._served.get(name)
        if served is not None:
            return served
        if (went := self._leaving.held(name) or self._leaving.went(name)) is not None:
            raise went
        if self._openings.locked() and (elsewhere := self._whereabouts.told(name)) is not None:
            raise elsewhere
        return await asyncio.shield(self._opening.get(name) or self._begin(name, None))

    def _begin(self, name: AgentName, from_epoch: int | None) -> asyncio.Task[ServedAgent]:
        """Take it, one take-over of an agent at a time: two would fence each other."""
        opening = self._opening[name] = asyncio.create_task(self._take(name, from_epoch), name=f"perdure-open-{name.agent}")
        opening.add_done_callback(lambda _: self._opening.pop(name, None))
        return opening

    async def _take(self, name: AgentName, from_epoch: int | None) -> ServedAgent:
        """Take the agent under a new epoch; from_epoch: it is somebody else's, and was decided to be taken from them."""
        async with self._openings if from_epoch is None else contextlib.nullcontext():
            self.check_room(name)
            if name in self._served:
                return self._served[name]
            if from_epoch is None:
                self._log.vault.forget(name)  # the owner may have changed elsewhere
            record, _ = await self._log.vault.obtain_served(name)
            if self._coming.expects(name):
                # It comes by itself, under an epoch that a take-over would end.
                await self._coming.wait(name)
                if name in self._served:
                    return self._served[name]
            if from_epoch is None and record.owner not in ("", self.name):
                raise await self._whereabouts.tell(record)
            if self.drained and not record.owner:
                raise NotServed(f"node {self.name!r} is being drained", hint="ask another node", tenant=name.tenant, agent=name.agent)
            expected = record.epoch if from_epoch is None else from_epoch
            try:
                # A fenced agent is being handed over: only who decided to end that may take it.
                epoch = await self._log.take_ownership(name, self.name, expected_epoch=expected, over_fence=from_epoch is not None)
            except Fenced as problem:
                message = f"agent {name.agent!r} was taken by another node, or is being handed over"
                raise NotServed(message, hint="ask again soon", tenant=name.tenant, agent=name.agent) from problem
            steps.reach("host.taken")
            return self._serve(name, epoch)

    def _serve(self, name: AgentName, epoch: int) -> ServedAgent:
        assert name not in self._served, f"{name} is served already"
        self._leaving.back(name)
        served = self._served[name] = self._made(name, epoch)
        self._whereabouts.came()
        return served

    def _made(self, name: AgentName, epoch: int, state: Loaded | None = None, *, staged: bool = False) -> ServedAgent:
        served = ServedAgent(
            name,
            epoch,
            log=self._log,
            handler=self._handler,
            load=self._loader.load,
            may_act=self.holds_lease,
            moved=self._moved,
            state=state,
            staged=staged,
            gone=lambda gone: self._drop(gone, served),
        )
        return served

    def _drop(self, name: AgentName, served: ServedAgent) -> None:
        if self._served.get(name) is served:
            del self._served[name]
            self._log.vault.forget(name)

    async def _moved(self, name: AgentName, problem: Fenced) -> PerdureError:
        """What callers are told of an agent that the log says is not ours."""
        told = self._leaving.held(name)
        if told is not None:
            return told
        if isinstance(problem, AgentMoved):
            return problem
        self._log.vault.forget(name)
        record = await self._log.vault.record(*name)
        if record.owner in ("", self.name):
            return NotServed(f"agent {name.agent!r} is not served here any more: {problem}", tenant=name.tenant, agent=name.agent)
        return await self._whereabouts.tell(record)

    def check_room(self, name: AgentName) -> None:
        """Raises NotServed without a lease, Overloaded when the node is full."""
        if not self.holds_lease():
            raise NotServed(f"node {self.name!r} has no lease", hint="ask again soon", tenant=name.tenant, agent=name.agent)
        if len(self._served) + len(self._opening) > self._agents_max:
            raise Overloaded(f"node {self.name!r} serves {self._agents_max} agents already", tenant=name.tenant, agent=name.agent)

    async def _close(self, name: AgentName, why: PerdureError) -> None:
        served = self._served.get(name)
        if served is not None:
            await served.close(why)
            self._drop(name, served)

    async def _give_back(self, name: AgentName, epoch: int) -> None:
        """Nobody owns it any more: whoever is asked next takes it at once. Where that fails, recovery finds it."""
        with contextlib.suppress(Fenced, Unavailable):
            await self._log.take_ownership(name, "", expected_epoch=epoch)
        self._log.vault.forget(name)

    async def _announce(self) -> None:
        assert self._lease is not None
        node = Node(
            self.name, self.address, self._agents_max, self._lease.epoch, time.time_ns() // 1000, version_of("perdure"), os.getpid()
        )
        await announce(self._log.store, node)

    async def take_assigned(self) -> int:
        """Take over what was assigned to this node; how many agents."""
        return await self._take_overs.take_assigned()

    async def _take_over(self, name: AgentName, epoch: int) -> None:
        """Take an agent that was decided to be taken from somebody else under this epoch."""
        while (opening := self._opening.get(name)) is not None:
            # A caller's may be refused what this one may do; callers from here on share this one.
            await asyncio.wait([opening])
        if name not in self._served:
            await asyncio.shield(self._begin(name, epoch))


async def _run(companion: Companion, host: AgentHost) -> None:
    await companion(host)
