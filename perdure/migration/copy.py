"""The target's copy of an agent: loaded from a snapshot and the log's tail, followed until the flip, hidden from everybody.

Invariant: the document is the fold of the log up to `version`, whose hash is `chain`; where a fold breaks off, the copy is dropped as a whole.
"""

from __future__ import annotations

from typing import Any

from perdure.engine.cells import split
from perdure.engine.digest import IncrementalDigest
from perdure.engine.log.contract import AgentRecord
from perdure.engine.log.log import EventLog
from perdure.engine.replay import Folded, fold_log
from perdure.projections.fill import Base, fold_on

__all__ = ["Copy"]


class Copy:
    """base: gives snapshots to begin with."""

    def __init__(self, log: EventLog, record: AgentRecord, base: Base | None) -> None:
        self._store = log.store
        self._vault = log.vault
        self._record = record
        self._base = base
        self._folded: Folded | None = None
        self._digest: IncrementalDigest | None = None
        self._touched: set[bytes] = set()

    @property
    def version(self) -> int:
        """Where it stands; 0 before it is loaded."""
        return self._folded.version if self._folded is not None else 0

    @property
    def chain(self) -> bytes:
        """The log's hash at its version."""
        assert self._folded is not None
        return self._folded.chain

    @property
    def document(self) -> dict[str, Any]:
        """The state; not to be changed."""
        assert self._folded is not None
        return self._folded.document

    async def load(self, to_version: int | None = None) -> None:
        """From a snapshot and what follows it. Raises what stands against it."""
        self._drop()
        self._folded = await fold_on(self._store, self._vault, self._record, self._base, to_version=to_version)

    async def follow(self, to_version: int | None = None) -> int:
        """Fold what the log has more; how many events. Raises ChainBroken and what opening events raises; then it must be loaded anew."""
        before = self._folded
        assert before is not None, "a copy is loaded first"
        self._folded = None
        try:
            self._folded = await fold_log(self._store, self._vault, self._record, start=before, to_version=to_version, cells=self._touched)
        except BaseException:
            self._drop()
            raise
        return self._folded.version - before.version

    def digest(self) -> str:
        """The document's digest, hexadecimal; after the first time it costs only the cells that changed since."""
        cells = split(self.document)
        if self._digest is None:
            self._digest = IncrementalDigest(cells)
        else:
            put = {name: cells[name] for name in self._touched if name in cells}
            self._digest.update(put, [name for name in self._touched if name not in cells])
        self._touched.clear()
        return self._digest.digest().hex()

    def _drop(self) -> None:
        self._folded = self._digest = None
        self._touched.clear()
