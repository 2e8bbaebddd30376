"""What migrations are planned and checked with, looked up for many at once: of many that begin at the same time each would ask for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version as version_of
from typing import Final, NamedTuple, TypeVar

import msgspec

from perdure.client.parts import Parts
from perdure.engine.digest import digest
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.log.together import Together
from perdure.errors import KeyUnavailable, PerdureError
from perdure.migration.ledger import Ledger
from perdure.migration.planning import Facts
from perdure.migration.rates import Rates, read_rates
from perdure.recovery.nodes import list_nodes

__all__ = ["MigrationLooks", "Standing"]

AT_ONCE: Final = 64

T = TypeVar("T")


class Standing(NamedTuple):
    """Where an agent stands. size: bytes of its state. events: since its newest snapshot. rates: what migrations took so far."""

    record: AgentRecord
    version: int
    size: int
    digest: str
    events: int
    rates: Rates


class MigrationLooks:
    """Looks of one engine; each is newer than the question."""

    def __init__(self, engine: Parts, ledger: Ledger) -> None:
        self._engine = engine
        self._store = engine.log.store
        self._vault = engine.log.vault
        self._ledger = ledger
        self._standing: Together[AgentName, Standing | PerdureError] = Together(self._stand, AT_ONCE)
        self._around: Together[tuple[AgentName, str], Facts | PerdureError] = Together(self._look, AT_ONCE)

    async def standing(self, name: AgentName) -> Standing:
        """Where the agent stands. Raises AgentNotFound, KeyUnavailable."""
        await self._engine.log.settle(name)
        return _known(await self._standing.get(name))

    async def around(self, name: AgentName, target: str, owner: str, epoch: int) -> Facts:
        """What is known of the agent and of the nodes. owner, epoch: as planned, for an agent whose row cannot be read here."""
        facts = _known(await self._around.get((name, target)))
        return facts if facts.readable is None else facts._replace(owner=owner, epoch=epoch)

    async def _stand(self, names: Sequence[AgentName]) -> list[Standing | PerdureError]:
        rates, records, reads = await asyncio.gather(
            read_rates(self._store), self._records(names), self._engine.states.reader.states(names)
        )
        there = [record for record in records if isinstance(record, AgentRecord)]
        snapshots = dict(zip((record.agent_key for record in there), await self._store.newest_snapshots(there), strict=True))
        found: list[Standing | PerdureError] = []
        for record, read in zip(records, reads, strict=True):
            if isinstance(record, PerdureError) or isinstance(read, PerdureError):
                found.append(record if isinstance(record, PerdureError) else read)
                continue
            snapshot = snapshots[record.agent_key]
            size = len(msgspec.msgpack.encode(read.document))
            events = read.version - (snapshot.version if snapshot is not None else 0)
            found.append(Standing(record, read.version, size, digest(read.document).hex(), events, rates))
        return found

    async def _look(self, asked: Sequence[tuple[AgentName, str]]) -> list[Facts | PerdureError]:
        targets = sorted({target for _, target in asked})
        nodes, records = await asyncio.gather(list_nodes(self._store), self._records([name for name, _ in asked]))
        counts = dict(zip(targets, await asyncio.gather(*map(self._store.count_owned, targets)), strict=True))
        kept = await asyncio.gather(*(self._ledger.get(name) for name, _ in asked))
        found: list[Facts | PerdureError] = []
        for (name, target), record, newest in zip(asked, records, kept, strict=True):
            if isinstance(record, PerdureError) and not isinstance(record, KeyUnavailable):
                found.append(record)
                continue
            owner, epoch, readable = ("", 0, record) if isinstance(record, PerdureError) else (record.owner, record.epoch, None)
            newest_migration = newest.migration if newest is not None else None
            found.append(Facts(name, owner, epoch, nodes, counts[target], _version(), newest_migration, readable))
        return found

    async def _records(self, names: Sequence[AgentName]) -> list[AgentRecord | PerdureError]:
        """The agents' rows as they are now, and what is wrong with those that cannot be read."""
        for name in names:
            self._vault.forget(name)
        await self._vault.look_up(names)

        async def record(name: AgentName) -> AgentRecord | PerdureError:
            try:
                return await self._vault.record(*name)
            except PerdureError as problem:
                return problem

        return await asyncio.gather(*map(record, names))


def _known(found: T | PerdureError) -> T:
    if isinstance(found, PerdureError):
        raise found
    return found


@cache
def _version() -> str:
    return version_of("perdure")
