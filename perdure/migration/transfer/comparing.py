"""Do both ends come to the same state?

The source's is the one that it serves, from its cache, a snapshot or the log. The target folds every event that was put in, with its own keys,
while more are put in. What is compared once is not folded again, so that the last look, while nobody serves the agent, costs its last events only.
"""

from __future__ import annotations

from perdure.engine.digest import digest
from perdure.engine.log.contract import AgentRecord, EventFilter, to_microseconds
from perdure.engine.replay import Folded, fold_log
from perdure.errors import IntegrityError
from perdure.migration.transfer.sides import Side
from perdure.projections.fill import fold_on, fold_whole

__all__ = ["Comparing"]


class Comparing:
    """The two states of one agent. digest: of the last that were the same."""

    def __init__(self, source: Side, target: Side, row: AgentRecord, heir: AgentRecord) -> None:
        self._source = source
        self._target = target
        self._row = row
        self._heir = heir
        self._here: Folded | None = None
        self._there: Folded | None = None
        self.digest = b""

    def anew(self) -> Comparing:
        """Itself, as if nothing had been compared."""
        self._here = self._there = None
        return self

    async def serve(self) -> int:
        """Take the state that the source serves now; its version, which is compared next."""
        read = await self._source.reader.state(self._row.tenant, self._row.agent)
        if read.version:
            (newest,) = await self._source.store.read_agent(self._row, EventFilter(from_version=read.version, to_version=read.version), 1)
            time_us = 0 if read.time is None else to_microseconds(read.time)
            self._here = Folded(read.document, read.version, read.epoch, time_us, newest.chain, [])
        return read.version

    async def follow(self, version: int) -> None:
        """Fold what the target has up to a version: from its first event, or from the snapshot that stands for those that are gone."""
        if self._there is None:
            self._there = await fold_whole(self._target.store, self._target.vault, self._heir, self._target.base, to_version=version)
        elif version > self._there.version:
            self._there = await fold_log(self._target.store, self._target.vault, self._heir, start=self._there, to_version=version)

    async def at(self, version: int) -> None:
        """Compare the states at a version, not before the last one. Raises IntegrityError."""
        store, vault = self._source.store, self._source.vault
        if self._here is None:
            self._here = await fold_on(store, vault, self._row, self._source.base, to_version=version)
        elif version > self._here.version:
            self._here = await fold_log(store, vault, self._row, start=self._here, to_version=version)
        await self.follow(version)
        here, there = self._here, self._there
        if there is None or (here.version, here.chain) != (there.version, there.chain) or here.version != version:
            raise self._other(f"the target has another history than the source's up to version {version}")
        self.digest = digest(here.document)
        if self.digest != digest(there.document):
            raise self._other(f"the target comes to another state at version {version}")

    def _other(self, message: str) -> IntegrityError:
        hint = "the source goes on as before; run `perdure verify` at both ends"
        return IntegrityError(message, hint=hint, tenant=self._row.tenant, agent=self._row.agent)
