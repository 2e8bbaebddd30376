"""A backup as a place where copies of single events are found."""

from __future__ import annotations

from perdure.engine.log.records import AgentRecord, SealedEvent
from perdure.errors import IntegrityError
from perdure.recovery.backup.manifest import BackupManifest, Segment
from perdure.recovery.backup.objects import Vessel
from perdure.recovery.backup.records import StoredEvent

__all__ = ["BackupSource"]


class BackupSource:
    """Events of one backup. The segment read last is kept: damage comes in neighbourhoods."""

    def __init__(self, vessel: Vessel, manifest: BackupManifest) -> None:
        self.name = f"backup {manifest.id}"
        self._vessel = vessel
        self._manifest = manifest
        self._kept: tuple[str, list[StoredEvent]] = ("", [])

    async def find(self, agent: AgentRecord, version: int, offset: int | None) -> list[SealedEvent]:
        """See `EventSource.find`. A segment that is damaged itself has no copies."""
        found = []
        for segment in self._manifest.segments:
            if segment.partition != agent.partition or (offset is not None and not segment.first <= offset <= segment.last):
                continue
            for event in await self._events(segment):
                if (event.tenant, event.agent, event.version) == (agent.tenant, agent.agent, version):
                    found.append(event.sealed(agent))
        return found

    async def _events(self, segment: Segment) -> list[StoredEvent]:
        if self._kept[0] != segment.name:
            try:
                events = await self._vessel.get(segment.name, list[StoredEvent], segment.digest)
            except IntegrityError:
                events = []
            self._kept = (segment.name, events)
        return self._kept[1]
