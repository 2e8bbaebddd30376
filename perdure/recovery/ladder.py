"""The ladder: an agent's newest state from the nearest copy that is right, every step down reported.

Cache, when it stands exactly where the log does; newest sound snapshot and the log's tail; older snapshots; the whole log. A copy is never
believed for itself: version and chain hash of the log decide.
"""

from __future__ import annotations

import time
from typing import Any, Literal, NamedTuple

import msgspec

from perdure.engine.digest import digest
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName, AgentRecord, Head
from perdure.engine.replay import Folded, fold_log
from perdure.engine.vault import Vault
from perdure.errors import ChainBroken, Compacted, IntegrityError, PerdureError, Unavailable
from perdure.projections.contract import StateCache
from perdure.projections.fill import fold_whole, open_cached
from perdure.snapshots.loader import SnapshotLoader

__all__ = ["Ladder", "RecoveredState", "Source", "StepDown", "Validation"]

Source = Literal["cache", "snapshot", "log"]


class StepDown(NamedTuple):
    """A copy that was not used, and why."""

    source: str
    reason: str


class RecoveredState(msgspec.Struct, frozen=True):
    """A state and where it came from. events_replayed: folded on top of the copy. digest: of the document, hexadecimal."""

    tenant: str
    agent: str
    document: dict[str, Any]
    version: int
    epoch: int
    digest: str
    source: Source
    events_replayed: int
    steps_down: tuple[StepDown, ...]
    duration_s: float


class Validation(msgspec.Struct, frozen=True):
    """Whether a recovered state is what the whole log folds to; problems says what is not."""

    ok: bool
    version: int
    problems: tuple[str, ...]


class Ladder:
    """loader: of snapshots, None where there is no store."""

    def __init__(self, store: LogStore, vault: Vault, cache: StateCache, loader: SnapshotLoader | None) -> None:
        self._store = store
        self._vault = vault
        self._cache = cache
        self._loader = loader

    async def recover(self, name: AgentName) -> RecoveredState:
        """The agent's newest state. Raises AgentNotFound, KeyUnavailable, and IntegrityError when not even the log has it whole."""
        began_at = time.monotonic()
        record = await self._vault.record(*name)
        (head,) = await self._store.heads([record])
        steps: list[StepDown] = []
        found = await self._from_cache(record, head, steps)
        source: Source = "cache"
        if found is None:
            found = await self._from_snapshot(record, steps)
            source = "snapshot"
        if found is None:
            found = (await fold_log(self._store, self._vault, record), 0)
            source = "log"
        folded, since = found
        (now,) = await self._store.heads([record])
        if folded.version == now.version and folded.chain != now.chain:
            raise ChainBroken("the state's chain hash is not the log's", tenant=name.tenant, agent=name.agent, version=folded.version)
        return RecoveredState(
            name.tenant,
            name.agent,
            folded.document,
            folded.version,
            folded.epoch,
            digest(folded.document).hex(),
            source,
            folded.version - since,
            tuple(steps),
            time.monotonic() - began_at,
        )

    async def validate(self, state: RecoveredState) -> Validation:
        """Compare with the fold of the whole log up to the same version."""
        record = await self._vault.record(state.tenant, state.agent)
        try:
            base = self._loader.base if self._loader is not None else None
            folded = await fold_whole(self._store, self._vault, record, base, to_version=state.version)
        except (IntegrityError, Compacted) as problem:
            return Validation(False, state.version, (f"the log: {problem}",))
        problems = []
        if folded.version != state.version:
            problems.append(f"the log ends at version {folded.version}")
        if digest(folded.document).hex() != state.digest or digest(state.document).hex() != state.digest:
            problems.append("the state is not what the log folds to")
        return Validation(not problems, state.version, tuple(problems))

    async def _from_cache(self, record: AgentRecord, head: Head, steps: list[StepDown]) -> tuple[Folded, int] | None:
        try:
            (cached,) = await self._cache.get([(record.tenant, record.agent)])
            if cached is None:
                raise Unavailable("the cache does not have it")
            opened = await open_cached(self._vault, record.tenant, record.agent, cached)
        except PerdureError as problem:
            steps.append(StepDown("cache", problem.message))
            return None
        token = cached.token
        if token.generation != self._store.generation:
            steps.append(StepDown("cache", f"it is of generation {token.generation}, the log of {self._store.generation}"))
        elif token.version != head.version:
            steps.append(StepDown("cache", f"it is at version {token.version}, the log at {head.version}"))
        elif opened.chain != head.chain:
            steps.append(StepDown("cache", "its chain hash is not the log's"))
        else:
            return Folded(opened.document, token.version, token.epoch, opened.time_us, opened.chain, []), token.version
        return None

    async def _from_snapshot(self, record: AgentRecord, steps: list[StepDown]) -> tuple[Folded, int] | None:
        if self._loader is None:
            steps.append(StepDown("snapshot", "no store of snapshots is configured"))
            return None
        skipped: list[str] = []
        loaded = await self._loader.load(record, skipped=skipped)
        steps.extend(StepDown("snapshot", reason) for reason in skipped)
        if loaded is None:
            steps.append(StepDown("snapshot", "none is usable"))
            return None
        since = loaded.folded.version
        try:
            return await fold_log(self._store, self._vault, record, start=loaded.folded), since
        except ChainBroken as problem:
            steps.append(StepDown("snapshot", f"the log does not go on from it: {problem}"))
            return None
