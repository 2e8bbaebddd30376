"""Do both ends come to the same state? Both fold their own events with their own keys, and go on from there: what is compared once is not folded
again, so that the last look, while nobody serves the agent, costs its last events only."""

from __future__ import annotations

from perdure.engine.digest import digest
from perdure.engine.log.contract import AgentRecord
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

    async def at(self, version: int) -> None:
        """Compare the states at a version, not before the last one. Raises IntegrityError."""
        if self._here is None:
            self._here = await fold_on(self._source.store, self._source.vault, self._row, self._source.base, to_version=version)
        else:
            self._here = await fold_log(self._source.store, self._source.vault, self._row, start=self._here, to_version=version)
        if self._there is None:
            # From its first event, or from the snapshot that stands for those that are gone: every byte that was put in is opened once.
            self._there = await fold_whole(self._target.store, self._target.vault, self._heir, self._target.base, to_version=version)
        else:
            self._there = await fold_log(self._target.store, self._target.vault, self._heir, start=self._there, to_version=version)
        here, there = self._here, self._there
        if (here.version, here.chain) != (there.version, there.chain) or here.version != version:
            raise self._other(f"the target stands at version {there.version} with another history than the source's {here.version}")
        self.digest = digest(here.document)
        if self.digest != digest(there.document):
            raise self._other(f"the target comes to another state at version {version}")

    def _other(self, message: str) -> IntegrityError:
        hint = "the source goes on as before; run `perdure verify` at both ends"
        return IntegrityError(message, hint=hint, tenant=self._row.tenant, agent=self._row.agent)
