"""States by their agents' names: now, at a version, at a moment."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from perdure.client.state import State
from perdure.engine.log.contract import AgentName
from perdure.projections.reader import ReadState, StateReader

__all__ = ["States"]


class States:
    """The reads of states, under the names that the requirements give them."""

    def __init__(self, reader: StateReader) -> None:
        self._reader = reader

    async def get_current_state(
        self, name: AgentName, *, consistency: Literal["strong", "eventual"] = "strong", at_least: int | None = None
    ) -> State:
        """The state now; see `Agent.state`."""
        return _state(name, await self._reader.state(*name, consistency=consistency, at_least=at_least))

    async def project_state(self, name: AgentName, version: int) -> State:
        """The state at a version, 0 being the empty one. Raises VersionNotFound, AgentNotFound."""
        return _state(name, await self._reader.state_at_version(*name, version))

    async def project_state_at_time(self, name: AgentName, time: datetime) -> State:
        """The state at a moment: of the newest version at or before it; version 0 before the first event."""
        return _state(name, await self._reader.state_at_time(*name, time))


def _state(name: AgentName, read: ReadState) -> State:
    return State(name.tenant, name.agent, read.version, read.epoch, read.time, read.document)
