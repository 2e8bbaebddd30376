"""Is a snapshot what it claims to be? Everything is read, authenticated, digested, and compared with the log."""

from __future__ import annotations

import time
from typing import NamedTuple

from perdure.engine.digest import digest
from perdure.engine.log.floor_rows import NO_FLOOR
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentRecord
from perdure.engine.log.snapshot_rows import SnapshotMark, SnapshotRow
from perdure.engine.replay import fold_log
from perdure.errors import IntegrityError, PerdureError
from perdure.snapshots.contents import Contents
from perdure.snapshots.loader import DAMAGE, SnapshotLoader

__all__ = ["SnapshotVerifier", "Verified"]


class Verified(NamedTuple):
    """ok: it is whole. problem: what is wrong else. replayed: its state was also compared with the one that the log alone gives."""

    row: SnapshotRow
    ok: bool
    problem: str
    bytes_read: int
    replayed: bool


class SnapshotVerifier:
    """Verifies snapshots, and writes into the registry what it finds."""

    def __init__(self, log: EventLog, contents: Contents, loader: SnapshotLoader) -> None:
        self._log = log
        self._contents = contents
        self._loader = loader

    async def verify(self, row: SnapshotRow, *, replay: bool = False) -> Verified:
        """Read a snapshot as a whole. replay: besides, fold the log up to its version and compare the states; not where events were removed.

        What is damaged is a result, not an error; it is marked in the registry. Raises Unavailable, KeyUnavailable, DictionaryNotFound,
        AgentNotFound, and with replay what a broken log raises: nothing is known of the snapshot then.
        """
        agent = await self._log.vault.record(row.tenant, row.agent)
        try:
            await self._loader.check_log(agent, row)
            opened = await self._contents.read(row)
        except DAMAGE as problem:
            return await self._damaged(row, problem)
        replayed = replay and await self._has_all(agent)
        if replayed:
            folded = await fold_log(self._log.store, self._log.vault, agent, to_version=row.version)
            if digest(folded.document) != digest(opened.folded.document):
                return await self._damaged(row, IntegrityError("its state is not the one that the log gives"))
        standing = await self._log.store.mark_snapshot(row, SnapshotMark(verified_us=time.time_ns() // 1000))
        return Verified(standing or row, True, "", opened.manifest.stored_bytes, replayed)

    async def _damaged(self, row: SnapshotRow, problem: PerdureError) -> Verified:
        await self._loader.report(row, problem)
        return Verified(await self._log.store.get_snapshot(row.tenant, row.id) or row, False, problem.message, 0, False)

    async def _has_all(self, agent: AgentRecord) -> bool:
        """Whether the log still has all of the agent's events."""
        (floor,) = await self._log.store.floors([agent])
        return floor == NO_FLOOR
