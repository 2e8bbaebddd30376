"""Moving agents to another engine, as the engine offers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

from perdure import limits
from perdure.client.filters import check_name
from perdure.client.parts import Parts
from perdure.config import sqlite_folder
from perdure.engine.log.records import AgentName
from perdure.errors import ConfigurationError, InvalidInput, NotFound
from perdure.migration.transfer.erasing import erase
from perdure.migration.transfer.records import TransferRecord, record_of, records
from perdure.migration.transfer.runs import Plan, Report, Run, names_of
from perdure.migration.transfer.sides import Side

__all__ = ["Transfers", "address_of"]

Agents = Sequence[AgentName] | None
Names = list[AgentName]
Records = list[TransferRecord]


class Transfers:
    """Moves of agents from this engine to others; `target` is always another open engine."""

    def __init__(self, engine: Parts) -> None:
        self._engine = engine

    async def plan(self, target: Parts, agents: Agents = None, *, tenant: str | None = None) -> Plan:
        """What `run` would move, and what stands in the way; nothing is changed."""
        run = self._run(target, "", limits.TRANSFER_AGENTS_AT_ONCE_DEFAULT, None)
        return await run.plan(await self._names(agents, tenant))

    async def run(
        self,
        target: Parts,
        agents: Agents = None,
        *,
        tenant: str | None = None,
        address: str = "",
        at_once: int = limits.TRANSFER_AGENTS_AT_ONCE_DEFAULT,
        progress: Callable[[Report], None] | None = None,
    ) -> Report:
        """Move agents with all of their history: those that are named, else all of a tenant, else all.

        address: that clients are sent to [default: the target's log, without a password]. at_once: agents side by side. Raises InvalidInput
        (with `problems`) before anything is begun, ConfigurationError, Unavailable; an agent that fails later is in the report, and stays here.
        """
        names = await self._names(agents, tenant)
        return await self._run(target, address, at_once, progress).move(names)

    async def resume(
        self,
        target: Parts,
        *,
        at_once: int = limits.TRANSFER_AGENTS_AT_ONCE_DEFAULT,
        progress: Callable[[Report], None] | None = None,
    ) -> Report:
        """Go on with every transfer to this target that was interrupted, from where it was."""
        run = self._run(target, "", at_once, progress)
        return await run.go_on(await run.pending())

    async def abort(self, target: Parts, agents: Agents = None, *, reason: str = "") -> Records:
        """Take back transfers to this target that are not committed, all or those of these agents; they are served here again.

        Raises Conflict where the target was faster, NotFound for an agent that is in no transfer, Unavailable."""
        run = self._run(target, "", limits.TRANSFER_AGENTS_AT_ONCE_DEFAULT, None)
        begun = await run.pending()
        if agents is not None:
            known = {record.name: record for record in begun}
            if unknown := [name for name in agents if name not in known]:
                raise NotFound(f"agent {unknown[0].agent!r} is in no transfer to there", tenant=unknown[0].tenant, agent=unknown[0].agent)
            begun = [known[name] for name in agents]
        return await run.abort(begun, reason or "taken back by request")

    async def list(self) -> Records:
        """The newest transfer of every agent that ever left."""
        return await records(self._engine.log.store)

    async def show(self, name: AgentName) -> TransferRecord:
        """The agent's newest transfer from here. Raises NotFound."""
        check_name(name)
        record = await record_of(self._engine.log.store, name)
        if record is None:
            raise NotFound(f"agent {name.agent!r} was never moved from here", tenant=name.tenant, agent=name.agent)
        return record

    async def forward(self, name: AgentName) -> str | None:
        """The address that the agent has moved to; None: it is here, or was never."""
        check_name(name)
        record = await record_of(self._engine.log.store, name)
        return record.address if record is not None and record.phase in ("moved", "erased") else None

    async def erase(self, agents: Iterable[AgentName]) -> Records:
        """Destroy this engine's keys of agents that have moved away: what it has of them can never be opened again.

        Raises NotFound, Conflict (it has not moved; forks need it)."""
        source = _side(self._engine)
        return [await erase(source, name) for name in agents]

    async def _names(self, agents: Agents, tenant: str | None) -> Names:
        if agents is not None:
            if tenant is not None:
                raise InvalidInput("agents and a tenant exclude each other")
            for name in agents:
                check_name(name)
            return list(agents)
        return [name async for name in names_of(_side(self._engine), tenant)]

    def _run(self, target: Parts, address: str, at_once: int, progress: Callable[[Report], None] | None) -> Run:

        if not isinstance(target, Parts):
            raise InvalidInput(
                f"the target is no engine but a {type(target).__name__}", hint="open it with perdure.open(), in the same event loop"
            )
        if target is self._engine or target.log.store is self._engine.log.store:
            raise ConfigurationError("source and target are the same engine", hint="name another engine to move to")
        return Run(_side(self._engine), _side(target, address), at_once=at_once, progress=progress)


def _side(engine: Parts, address: str = "") -> Side:
    shelf = engine.snapshots.shelf if engine.snapshots.base is not None else None
    return Side(
        engine.log, engine.states.reader, engine.cache, shelf, address or address_of(str(engine.settings.log.value)), engine.log.settle
    )


def address_of(url: str) -> str:
    """A log's URL as it may be told to others: without user, password and options, and the folder of an embedded log from the root, since whoever
    reads it works in another folder."""
    if url.startswith("sqlite:"):
        return f"sqlite:///{sqlite_folder(url).absolute()}"
    parts = urlsplit(url)
    # A server behind a Unix socket is named by the query alone.
    places = "&".join(pair for pair in parts.query.split("&") if pair.partition("=")[0] in ("host", "hostaddr", "port"))
    hosts = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{hosts}{parts.path}{f'?{places}' if places else ''}"
