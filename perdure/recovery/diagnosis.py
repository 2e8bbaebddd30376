"""Looking at one agent from all sides: who owns it, whether its key opens, and whether its copies are what they should be."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName, AgentRecord
from perdure.engine.vault import Vault
from perdure.errors import Compacted, IntegrityError, KeyUnavailable, PerdureError, Unavailable
from perdure.projections.contract import StateCache
from perdure.projections.fill import Base, fold_whole, open_cached
from perdure.projections.quarantine import Quarantine
from perdure.recovery.nodes import Node, list_nodes
from perdure.recovery.strategy import Failure, FailureReport

__all__ = ["Diagnosis"]

HUNG_AFTER_S: Final = 2.0
"""A node whose lease holds, but which does not answer within this time, hangs."""


class Diagnosis:
    """Only looks; changes nothing."""

    def __init__(self, store: LogStore, vault: Vault, cache: StateCache, base: Base | None = None) -> None:
        self._store = store
        self._base = base
        self._vault = vault
        self._cache = cache
        self._quarantine = Quarantine(store)

    async def detect(self, name: AgentName) -> Failure | None:
        """A quick look: is it served, does its key open, does it stand still? Raises AgentNotFound."""
        self._vault.forget(name)
        try:
            record = await self._vault.record(*name)
        except KeyUnavailable as problem:
            return Failure("key_missing", problem.message)
        return await self._ownership(record) or await self._standstill(name)

    async def analyze(self, name: AgentName) -> FailureReport:
        """Everything that is wrong, with evidence; reads the agent's whole log. Raises AgentNotFound."""
        self._vault.forget(name)
        try:
            record = await self._vault.record(*name)
        except KeyUnavailable as problem:
            return FailureReport(name.tenant, name.agent, "", 0, (Failure("key_missing", problem.message),))
        (head,) = await self._store.heads([record])
        looks = [
            await self._log(record),
            await self._ownership(record),
            await self._standstill(name),
            await self._cached(record),
            await self._snapshots(record),
        ]
        others = [node.name for node, alive in await list_nodes(self._store) if alive and node.name != record.owner]
        failures = tuple(failure for failure in looks if failure is not None)
        return FailureReport(name.tenant, name.agent, record.owner, head.version, failures, tuple(others))

    async def _ownership(self, record: AgentRecord) -> Failure | None:
        if not record.owner:
            return None
        for node, alive in await list_nodes(self._store):
            if node.name == record.owner:
                return await self._answers(node) if alive else Failure("node_lost", f"the lease of node {node.name!r} has run out")
        return Failure("node_lost", f"there is no node {record.owner!r}")

    async def _answers(self, node: Node) -> Failure | None:
        if not node.address:
            return None
        place = urlsplit(node.address)
        try:
            async with asyncio.timeout(HUNG_AFTER_S):
                reader, writer = await asyncio.open_connection(place.hostname, place.port)
                try:
                    writer.write(f"GET /v1/node HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n\r\n".encode())
                    # Any answer shows that it lives; whether it is a good one is not the question here.
                    answered = await reader.read(1)
                finally:
                    writer.close()
        except (OSError, TimeoutError) as problem:
            return Failure("hung", f"node {node.name!r} holds its lease and does not answer: {type(problem).__name__}")
        return None if answered else Failure("hung", f"node {node.name!r} holds its lease and hangs up")

    async def _standstill(self, name: AgentName) -> Failure | None:
        entry = await self._quarantine.get(*name)
        return Failure("poisoned", f"after version {entry.version}: {entry.reason}") if entry else None

    async def _log(self, record: AgentRecord) -> Failure | None:
        try:
            await fold_whole(self._store, self._vault, record, self._base)
        except KeyUnavailable as problem:
            return Failure("key_missing", problem.message)
        except IntegrityError as problem:
            return Failure("log_damaged", problem.message)
        except Compacted as problem:
            return Failure("log_damaged", f"no snapshot stands for the events that were removed: {problem.message}")
        return None

    async def _cached(self, record: AgentRecord) -> Failure | None:
        """A cache that is behind, away or empty is no failure; one that cannot be right is."""
        try:
            (cached,) = await self._cache.get([(record.tenant, record.agent)])
        except Unavailable:
            return None
        if cached is None or cached.token.generation != self._store.generation:
            return None
        try:
            opened = await open_cached(self._vault, record.tenant, record.agent, cached)
        except PerdureError as problem:
            return Failure("cache_damaged", problem.message)
        try:
            folded = await fold_whole(self._store, self._vault, record, self._base, to_version=cached.token.version)
        except (IntegrityError, Compacted):
            return None  # the log's own damage is told apart, and a state that is older than the log cannot be compared
        if folded.version == cached.token.version and (opened.chain, opened.document) == (folded.chain, folded.document):
            return None
        return Failure("cache_damaged", f"at version {cached.token.version} it is not what the log folds to")

    async def _snapshots(self, record: AgentRecord) -> Failure | None:
        rows = await self._store.snapshots(record, limit=1)
        if rows and rows[0].damage:
            return Failure("snapshot_damaged", f"the newest, at version {rows[0].version}: {rows[0].damage}")
        return None
