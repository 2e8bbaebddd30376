"""Agents that are obtained: looked up in the log, or made there, many at once.

Invariants: an agent is made once, whoever asks for it at the same time, here or in another process; nobody waits for another tenant's key; and what
fails for one agent is told to those who wait for that one.

Agents that are asked for come in runs: a service that begins asks for those that are there, one that takes in conversations for new ones. So where
most of the last were new, the next are made without a look before; the store leaves those alone that are there, and says so.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from perdure.engine.log.contract import LogStore
from perdure.engine.log.heads import KnownHeads
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.errors import PerdureError
from perdure.identifiers import partition_of
from perdure.security.cipher import Cipher
from perdure.security.dictionaries import DictionaryBook
from perdure.security.dictionary_set import DictionarySet
from perdure.security.ring import KeyRing, TenantKey

__all__ = ["CREATE_BATCH_MAX", "Births"]

CREATE_BATCH_MAX = 128
"""Agents made at once: of many callers, some append the first events of theirs while the agents of others are being made."""


class Births(ABC):
    """The part of `Vault` that obtains agents; one task of it works as long as somebody waits."""

    store: LogStore
    ring: KeyRing
    book: DictionaryBook
    heads: KnownHeads

    def __init__(self) -> None:
        self._wanted: dict[AgentName, list[asyncio.Future[tuple[AgentRecord, Cipher]]]] = {}
        self._creator: asyncio.Task[None] | None = None
        self._mostly_new = False

    @abstractmethod
    async def _renewed(self, name: AgentName) -> tuple[AgentRecord, Cipher] | None: ...

    @abstractmethod
    async def _remember(self, record: AgentRecord) -> tuple[AgentRecord, Cipher]: ...

    @abstractmethod
    def _keep(self, record: AgentRecord, cipher: Cipher) -> tuple[AgentRecord, Cipher]: ...

    @abstractmethod
    def _cipher_of(self, record: AgentRecord, material: bytes, dictionaries: DictionarySet, versions: TenantKey) -> Cipher: ...

    async def obtain(self, name: AgentName) -> tuple[AgentRecord, Cipher]:
        """The agent's row and cipher; the agent is made when it is not there. Many callers share one round trip."""
        return await self._renewed(name) or await self._want(name)

    async def obtain_all(self, names: Sequence[AgentName]) -> list[tuple[AgentRecord, Cipher]]:
        """As `obtain`, of many agents together; where some cannot be had, the first of them raises, after all others have been made."""
        found = [await self._renewed(name) for name in names]
        waiting = {number: self._want(names[number]) for number, known in enumerate(found) if known is None}
        try:
            if waiting:
                await asyncio.wait(waiting.values())
        finally:
            for done in waiting.values():
                if not done.cancel():  # whoever was cancelled waits no more
                    done.exception()  # looked at: what failed beside the first one is not reported as lost
        return [known or waiting[number].result() for number, known in enumerate(found)]

    def _want(self, name: AgentName) -> asyncio.Future[tuple[AgentRecord, Cipher]]:
        # A future for each caller: one that is cancelled takes nothing from the others.
        done: asyncio.Future[tuple[AgentRecord, Cipher]] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(name, []).append(done)
        if self._creator is None or self._creator.done():
            self._creator = asyncio.create_task(self._create(), name="perdure-agents")
        return done

    async def _create(self) -> None:
        while self._wanted:
            names = list(self._wanted)[:CREATE_BATCH_MAX]
            try:
                await self._create_batch(names)
            except Exception as problem:
                for name in names:
                    self._settle(name, problem)

    async def _create_batch(self, names: Sequence[AgentName]) -> None:
        """Obtain these agents: one round trip where all are there, or all are new and were expected to be; else two."""
        unknown = list(names) if self._mostly_new else await self._settle_known(names)
        tenants: dict[str, list[AgentName]] = {}
        for name in unknown:
            tenants.setdefault(name.tenant, []).append(name)
        keys: dict[bytes, bytes] = {}
        rows: list[AgentRecord] = []
        for tenant, wanted in tenants.items():
            try:
                key = await self.ring.tenant_key(tenant)
            except PerdureError as problem:
                for name in wanted:
                    self._settle(name, problem)
            else:
                rows += self._new_rows(wanted, key, keys)
        made = await self._make(rows, keys) if rows else 0
        self._mostly_new = 2 * made > len(names)

    async def _settle_known(self, names: Sequence[AgentName]) -> list[AgentName]:
        """Tell those who wait for agents that are there; the others."""
        unknown = []
        for name, record in zip(names, await self.store.agents(names), strict=True):
            if record is None:
                unknown.append(name)
            else:
                await self._settle_record(name, record)
        return unknown

    def _new_rows(self, names: Sequence[AgentName], key: TenantKey, keys: dict[bytes, bytes]) -> list[AgentRecord]:
        """Rows to be made, each with a new data key, which goes into `keys` by its wrapped form."""
        now_us = time.time_ns() // 1000
        rows = []
        for tenant, agent in names:
            wrapped, data_key = key.new_data_key(agent)
            keys[wrapped] = data_key
            rows.append(
                AgentRecord(tenant, agent, 0, 0, partition_of(tenant, agent, self.store.partitions), "", 0, "", {}, wrapped, now_us)
            )
        return rows

    async def _make(self, rows: list[AgentRecord], keys: Mapping[bytes, bytes]) -> int:
        """Make what is not there yet, and tell those who wait; how many were made."""
        before = self.heads.before_birth()
        made = await self.store.create_agents(rows)
        ours = [record for record in made if record.data_key in keys]
        self.heads.born(before, [(record.agent_key, record.partition) for record in ours])
        for record in made:
            name = AgentName(record.tenant, record.agent)
            data_key = keys.get(record.data_key)
            if data_key is None:
                await self._settle_record(name, record)  # it was there, or was made elsewhere at the same moment
                continue
            try:
                versions, dictionaries = await self.ring.tenant_key(record.tenant), await self.book.ensure(record.tenant)
            except Exception as problem:
                self._settle(name, problem)
            else:
                self._settle(name, self._keep(record, self._cipher_of(record, data_key, dictionaries, versions)))
        return len(ours)

    async def _settle_record(self, name: AgentName, record: AgentRecord) -> None:
        """Tell those who wait for an agent; what is wrong with its key, or its tenant's, is told to nobody else."""
        try:
            known = await self._remember(record)
        except Exception as problem:
            self._settle(name, problem)
        else:
            self._settle(name, known)

    def _settle(self, name: AgentName, result: tuple[AgentRecord, Cipher] | Exception) -> None:
        for done in self._wanted.pop(name, ()):
            if done.done():
                continue
            if isinstance(result, Exception):
                done.set_exception(result)
            else:
                done.set_result(result)
