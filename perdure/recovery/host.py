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
from importlib.metadata import version as version_of
from types import TracebackType
from typing import Final, Self

from perdure.engine import steps
from perdure.engine.log.contract import AgentName, AgentRecord
from perdure.engine.log.log import EventLog
from perdure.engine.log.names import check_names
from perdure.errors import AlreadyExists, Fenced, NotServed, Overloaded, PerdureError, Unavailable
from perdure.projections.reader import ReadState, StateReader
from perdure.recovery.assignments import Assignment, assigned, settle
from perdure.recovery.commands import Command, CommandResult, Handler
from perdure.recovery.leases import LEASE_S, KeptLease
from perdure.recovery.nodes import Node, NodeState, announce, check_node_name, list_nodes, node_lease
from perdure.recovery.serving import Loaded, ServedAgent

__all__ = ["AGENTS_MAX_DEFAULT", "AgentHost"]

AGENTS_MAX_DEFAULT: Final = 10_000
ASSIGNMENTS_POLL_S: Final = 0.1
TAKE_TOGETHER_MAX: Final = 256
"""Assigned agents that are taken over before it is told which."""
OPENINGS_MAX: Final = 32
"""Agents that are taken or loaded at once; more wait here, and not before the log, where they would hold up the lease's renewal."""
NODES_FRESH_S: Final = 0.2
"""How long it is believed, in a storm of commands for agents that are elsewhere, where they are: it then costs no more than a look."""


class AgentHost:
    """A node. `start` it (or `async with`), then `command`; `stop` gives its agents back.

    handler: see `Handler`. address: where others reach its commands. agents_max: above, new agents are refused with Overloaded.
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
        self._following: asyncio.Task[None] | None = None
        self._openings = asyncio.Semaphore(OPENINGS_MAX)
        self._nodes: tuple[float, list[NodeState]] = (0.0, [])
        self._elsewhere: dict[AgentName, tuple[float, NotServed]] = {}

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
        self._following = asyncio.create_task(self._follow_assignments(lease), name=f"perdure-assignments-{self.name}")

    async def stop(self) -> None:
        """Answer what is being appended, give every agent back, then the lease."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        epochs = {name: served.epoch for name, served in self._served.items()}
        await asyncio.gather(*(self._close(name, NotServed(f"node {self.name!r} stops", hint="send the command again")) for name in epochs))
        if self._lease is not None:
            if self._lease.holds():
                await asyncio.gather(*(self._give_back(name, epoch) for name, epoch in epochs.items()))
            await self._lease.close()

    @property
    def serving(self) -> int:
        """How many agents it serves."""
        return len(self._served)

    def names(self) -> list[AgentName]:
        """Whom it serves."""
        return list(self._served)

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
        served = self._served.get(name) or await self._open(name)
        return await asyncio.shield(served.submit(command))

    async def state(self, name: AgentName) -> ReadState:
        """The agent's state, strongly read."""
        return await self._reader.state(*name)

    async def _open(self, name: AgentName) -> ServedAgent:
        """Serve an agent that is ours or nobody's. Many callers share one opening."""
        check_names(name)
        served = self._served.get(name)
        if served is not None:
            return served
        if self._openings.locked() and (told := self._elsewhere.get(name)) is not None and time.monotonic() - told[0] < NODES_FRESH_S:
            raise NotServed(*told[1].args, hint=told[1].hint, tenant=name.tenant, agent=name.agent, **told[1].details)
        opening = self._opening.get(name)
        if opening is None:
            opening = self._opening[name] = asyncio.create_task(self._take(name, None), name=f"perdure-open-{name.agent}")
            opening.add_done_callback(lambda _: self._opening.pop(name, None))
        return await asyncio.shield(opening)

    async def _take(self, name: AgentName, from_epoch: int | None) -> ServedAgent:
        """Take the agent under a new epoch; from_epoch: it is somebody else's, and was decided to be taken from them."""
        async with self._openings:
            self._check_room(name)
            if name in self._served:
                return self._served[name]
            self._log.vault.forget(name)  # the owner may have changed elsewhere
            record, _ = await self._log.vault.obtain(name)
            if from_epoch is None and record.owner not in ("", self.name):
                raise await self._served_by(record)
            expected = record.epoch if from_epoch is None else from_epoch
            try:
                epoch = await self._log.take_ownership(name, self.name, expected_epoch=expected)
            except Fenced as problem:
                raise NotServed(f"agent {name.agent!r} was taken by another node", tenant=name.tenant, agent=name.agent) from problem
            steps.reach("host.taken")
            return self._serve(name, epoch)

    def _serve(self, name: AgentName, epoch: int) -> ServedAgent:
        assert name not in self._served, f"{name} is served already"
        served = ServedAgent(
            name,
            epoch,
            log=self._log,
            handler=self._handler,
            load=self._load,
            may_act=self.holds_lease,
            gone=lambda gone: self._drop(gone, served),
        )
        self._served[name] = served
        return served

    def _drop(self, name: AgentName, served: ServedAgent) -> None:
        if self._served.get(name) is served:
            del self._served[name]
            self._log.vault.forget(name)

    async def _load(self, name: AgentName) -> Loaded:
        async with self._openings:
            read = await self._reader.state(*name)
        return Loaded(read.document, read.version)

    def _check_room(self, name: AgentName) -> None:
        if not self.holds_lease():
            raise NotServed(f"node {self.name!r} has no lease", hint="ask again soon", tenant=name.tenant, agent=name.agent)
        if len(self._served) + len(self._opening) > self._agents_max:
            raise Overloaded(f"node {self.name!r} serves {self._agents_max} agents already", tenant=name.tenant, agent=name.agent)

    async def _served_by(self, record: AgentRecord) -> NotServed:
        """Where the agent is, remembered for a moment."""
        now = time.monotonic()
        if now - self._nodes[0] >= NODES_FRESH_S:
            self._nodes = (now, await list_nodes(self._log.store))
        for node, alive in self._nodes[1]:
            if node.name == record.owner and alive:
                message = f"agent {record.agent!r} is served by node {node.name!r}"
                hint = f"send the command to {node.address}"
                problem = NotServed(message, hint=hint, tenant=record.tenant, agent=record.agent, address=node.address)
                break
        else:
            message = f"agent {record.agent!r} belongs to node {record.owner!r}, which does not answer"
            hint = "recovery gives it to another node; ask again soon"
            problem = NotServed(message, hint=hint, tenant=record.tenant, agent=record.agent)
        if len(self._elsewhere) >= self._agents_max:
            self._elsewhere.clear()
        self._elsewhere[AgentName(record.tenant, record.agent)] = (now, problem)
        return problem

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

    # --- assignments ---
    async def _follow_assignments(self, lease: KeptLease) -> None:
        while not lease.lost.is_set():
            # With the log away nothing can be taken; the lease tells when to stop.
            with contextlib.suppress(Unavailable):
                await self.take_assigned()
            await asyncio.sleep(ASSIGNMENTS_POLL_S)

    async def take_assigned(self) -> int:
        """Take over what was assigned to this node; how many agents."""
        wanted = await assigned(self._log.store, self.name)
        for start in range(0, len(wanted), TAKE_TOGETHER_MAX):
            together = wanted[start : start + TAKE_TOGETHER_MAX]
            done = await asyncio.gather(*(self._take_over(each) for each in together), return_exceptions=True)
            settled = [each for each, problem in zip(together, done, strict=True) if problem is None or isinstance(problem, NotServed)]
            await settle(self._log.store, self.name, settled)
            for problem in done:
                if isinstance(problem, BaseException) and not isinstance(problem, NotServed | Unavailable):
                    raise problem
        return len(wanted)

    async def _take_over(self, wanted: Assignment) -> None:
        name = AgentName(wanted.tenant, wanted.agent)
        if name not in self._served:
            await self._take(name, wanted.epoch)
