"""A world of nodes in which agents migrate while they are talked to, and the oracle that judges it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import msgspec

import perdure
from perdure import config
from perdure.client.engine import Engine
from perdure.engine.log.records import AgentName
from perdure.errors import Unavailable
from perdure.migration.journal import JOURNAL
from perdure.migration.ledger import Ledger
from perdure.migration.records import Migration, Strategy
from perdure.recovery.caller import Caller
from perdure.recovery.commands import Command, CommandResult
from perdure.recovery.nodes import LEASE_PREFIX, list_nodes
from perdure.recovery.wire import path_of
from perdure.testing.ownership_history import OwnershipReport, check_ownership
from perdure.testing.prober import COUNT, Prober
from tests.faults.migration_process import Forked, fork
from tests.faults.separation import Separable

LEASE_S = 60.0
"""No lease runs out because the machine is busy; where one shall run out, `lease_runs_out` says so."""
TIMEOUT_S = 90.0
RATE = 25.0
"""Commands a second to each agent: few enough for a busy machine, on which some are under way at every step."""
IN_FLIGHT_MAX = 4
"""Commands of an agent under way at once: a machine that is too busy to answer is not asked more and more."""
TENANT = "t"
ENDS = ("migration_committed", "migration_aborted")


class Node(NamedTuple):
    """A node that serves."""

    name: str
    process: Forked
    address: str


class World:
    """One log, its nodes' processes, agents that are probed, and somebody who migrates them."""

    def __init__(self, engine: Engine, flags: dict[str, str], folder: Path) -> None:
        self.engine = engine
        self.flags = flags
        self.nodes: dict[str, Node] = {}
        self._folder = folder
        self._processes: list[Forked] = []
        self._numbers = itertools.count()
        self._prober: Prober | None = None

    # --- processes ---
    async def start(self, *words: str, log: str = "", **more: str) -> Forked:
        """A command in a process of its own. log: where it finds the log, when not where others do. more: see `fork`."""
        flags = {**self.flags, "log": log or self.flags["log"]}
        options = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        hits = self._folder / f"hits-{next(self._numbers)}"
        process = await fork([*words, "--json", *options], hits, **more)
        self._processes.append(process)
        return process

    async def node(self, name: str, *, agents_max: int = 100, address: str = "127.0.0.1", **more: str) -> Node:
        """A node that serves agents which count."""
        words = (
            "host",
            "--address",
            address,
            "--node",
            name,
            "--handler",
            COUNT,
            "--lease-s",
            str(LEASE_S),
            "--agents-max",
            str(agents_max),
        )
        process = await self.start(*words, **more)
        async with asyncio.timeout(TIMEOUT_S):
            line = await process.said.readline()
        assert line, f"node {name} ended with {await process.ended()}"
        node = self.nodes[name] = Node(name, process, msgspec.json.decode(line)["address"])
        return node

    async def node_behind(self, way: Separable, name: str, *, stop_point: str = "") -> Node:
        """A node whose way to the log can be cut."""
        namespace = way.prefix[way.prefix.index("--target") + 1] if way.prefix else ""
        return await self.node(name, address=way.address, log=way.url, namespace=namespace, stop_point=stop_point)

    async def lease_runs_out(self, node: str) -> None:
        """What time does to the lease of a node that is dead or cut off, now."""
        store = self.engine.log.store
        for lease in await store.list_leases(LEASE_PREFIX):
            if lease.name == LEASE_PREFIX + node:
                await store.release_lease(lease)

    # --- agents ---
    async def place(self, agents: Iterable[str], node: str) -> list[AgentName]:
        """New agents that the node owns."""
        names = [AgentName(TENANT, agent) for agent in agents]
        async with Caller([self.nodes[node].address], timeout_s=TIMEOUT_S) as caller:
            await asyncio.gather(*(caller.command(name, None) for name in names))
        return names

    @asynccontextmanager
    async def probed(self, names: Iterable[AgentName], rate: float = RATE, nodes: Iterable[str] | None = None) -> AsyncIterator[Prober]:
        """Probe them within the block, from when each has answered; afterwards every command is answered or given up."""
        addresses = [self.nodes[name].address for name in nodes or self.nodes]
        async with Caller(addresses, timeout_s=TIMEOUT_S) as caller:

            async def send(name: AgentName, command: Command) -> CommandResult:
                return await caller.command(name, None, command)

            async with Prober(send, dict.fromkeys(names, rate), in_flight_max=IN_FLIGHT_MAX) as prober:
                self._prober = prober
                await self.all_answer()
                yield prober

    async def all_answer(self, names: Iterable[AgentName] | None = None, commands: int = 2) -> None:
        """Wait until each agent has accepted some more commands."""
        assert self._prober is not None
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(self._prober.accepted(name, commands) for name in names or self._prober.records))

    async def move(self, name: AgentName, target: str, strategy: Strategy = "live") -> Migration:
        """Plan and execute a migration, to its end."""
        plan = await self.engine.migrations.plan_migration(name, target, strategy=strategy)
        async with asyncio.timeout(TIMEOUT_S):
            return await self.engine.migrations.execute_migration(plan)

    async def all_closed(self, names: Iterable[AgentName]) -> list[Migration]:
        """Wait until each agent's newest migration has ended; the migrations."""
        ledger, wanted = Ledger(self.engine.log.store), list(names)
        found: list[Migration] = []

        async def closed() -> bool:
            nonlocal found
            found = [kept.migration for kept in [await ledger.get(name) for name in wanted] if kept is not None]
            return len(found) == len(wanted) and not any(migration.open for migration in found)

        await self.until(closed)
        return found

    async def owner(self, name: AgentName) -> str:
        """Who owns the agent, as the log says."""
        (record,) = await self.engine.log.store.agents([name])
        assert record is not None
        return record.owner

    async def until(self, holds: Callable[[], Awaitable[Any]]) -> None:
        """Wait until it holds; the log may be away meanwhile."""

        async def seen() -> Any:
            with contextlib.suppress(Unavailable):
                return await holds()
            return False

        async with asyncio.timeout(TIMEOUT_S):
            while not await seen():
                await self.engine.log.store.signal().wait(0.05)

    # --- judging ---
    async def check(self) -> OwnershipReport:
        """The oracle: what was accepted stands once, epochs never go back, one living node owns each agent, its state is the log's fold."""
        report = await self.judge()
        assert report.holds, report.problems
        assert report.acknowledged > 0
        assert (report.lost, report.doubled) == (0, 0)
        await self._check_migrations()
        return report

    async def judge(self) -> OwnershipReport:
        """What the oracle finds."""
        assert self._prober is not None
        records = list(self._prober.records.values())
        alive = [state.node.name for state in await list_nodes(self.engine.log.store) if state.alive]
        served = {each.name: await self._served(each.name) for each in records}
        return await check_ownership(self.engine.log, records, nodes=alive, served=served)

    async def _check_migrations(self) -> None:
        """Each migration that was begun has ended, once, and the journal tells of it once."""
        (journal,) = await self.engine.log.store.agents([JOURNAL])
        if journal is None:
            return
        ends: dict[str, list[str]] = {}
        async for entry in self.engine.log.stream_events(JOURNAL):
            assert entry.correlation_id is not None
            ends.setdefault(entry.correlation_id, []).extend([entry.type] if entry.type in ENDS else [])
        assert {id: len(told) for id, told in ends.items()} == dict.fromkeys(ends, 1), ends
        assert self._prober is not None
        for kept in [await Ledger(self.engine.log.store).get(name) for name in self._prober.records]:
            assert kept is None or ends[kept.migration.id] == [f"migration_{kept.migration.phase}"]

    async def _served(self, name: AgentName) -> dict[str, Any]:
        """The state as its owner shows it."""
        owner = await self.owner(name)
        url = f"{self.nodes[owner].address}{path_of(name, 'state')}"

        def read() -> bytes:
            with urlopen(url, timeout=TIMEOUT_S) as answer:
                return bytes(answer.read())

        found: dict[str, Any] = msgspec.json.decode(await asyncio.to_thread(read)).get("document", {})
        return found

    async def end(self) -> None:
        """End every process."""
        await asyncio.gather(*(process.end() for process in self._processes))


@asynccontextmanager
async def world_on(database: str, folder: Path, **flags: str) -> AsyncIterator[World]:
    """A world on a Postgres database."""
    kept = {"log": database, "keys": f"file://{folder}/root.key", "bus": "memory://", "cache": "memory://"}
    kept |= {"store": f"file://{folder}/snapshots", **flags}
    async with perdure.open(settings=config.load(kept), partitions=4) as engine:
        world = World(engine, kept, folder)
        try:
            yield world
        finally:
            await world.end()
