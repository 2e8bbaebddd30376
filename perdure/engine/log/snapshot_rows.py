"""The registry of snapshots: what a store of the log keeps of them, and what it promises.

- **A row is the commit point.** It is written after the snapshot's manifest and chunks were read back; what has no row does not exist.
- **Only forward.** Under a lock of the agent, a row is refused while a good one of its version or of a newer one stands; a checkpoint, which
  names an earlier version on purpose, only while one of the same version stands.
- **Damage stays.** A row that was found damaged is never used again and never in the way; another of the same version may then be added.
- **The newest stay.** `delete_snapshots` never takes one of the newest good rows that it is told to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol
from uuid import UUID

import msgspec

from perdure.engine.log.records import AgentRecord

__all__ = ["CHECKPOINT", "COLUMNS", "FULL", "INCREMENTAL", "SnapshotMark", "SnapshotRow", "SnapshotRows", "promised_as"]

FULL: Final = "full"
INCREMENTAL: Final = "incremental"
CHECKPOINT: Final = "checkpoint"


class SnapshotRow(msgspec.Struct, frozen=True):
    """A registered snapshot. Times are unix microseconds; bytes are of the state's chunks.

    id: UUIDv7. kind: full, incremental, checkpoint. manifest: name of its object in the store; manifest_digest: SHA-256 of those bytes.
    chain: of the event `version`. stored_bytes: of the manifest and all chunks; written_bytes: of what this snapshot added.
    expires_us: 0 for never. permanent, critical: see retention. damage: '' or what was found. verified_us: when it was last read as a whole.
    replaces: the damaged snapshot that this one was made for.
    """

    id: UUID
    tenant: str
    agent: str
    tenant_key: int
    agent_key: int
    version: int
    epoch: int
    generation: int
    time_us: int
    created_us: int
    kind: str
    trigger: str
    creator: str
    codec: str
    manifest: str
    manifest_digest: bytes
    chain: bytes
    state_digest: bytes
    plain_bytes: int
    stored_bytes: int
    written_bytes: int
    chunks: int
    expires_us: int = 0
    permanent: bool = False
    critical: bool = False
    damage: str = ""
    verified_us: int = 0
    replaces: UUID | None = None


COLUMNS: Final = tuple(field for field in SnapshotRow.__struct_fields__ if field not in ("tenant", "agent"))
"""The table's columns, in the order of the fields."""


def promised_as(row: SnapshotRow, standing: SnapshotRow) -> SnapshotRow:
    """The row, with the promises of the one that stands, which may have been made since it was read."""
    return msgspec.structs.replace(row, expires_us=standing.expires_us, permanent=standing.permanent, critical=standing.critical)


class SnapshotMark(NamedTuple):
    """What may change of a row; None stays as it is. damage is only ever set: a damaged row never becomes good again."""

    damage: str | None = None
    verified_us: int | None = None
    expires_us: int | None = None
    permanent: bool | None = None
    critical: bool | None = None


class SnapshotRows(Protocol):
    """The registry part of `LogStore`. All methods may raise `Unavailable`."""

    async def add_snapshot(self, row: SnapshotRow) -> SnapshotRow | None:
        """Add a row; None when it is in, else the good row that stands in its way (see the module's promises)."""
        ...

    async def snapshots(
        self, agent: AgentRecord, *, to_version: int | None = None, limit: int = 100, good: bool = False
    ) -> list[SnapshotRow]:
        """At most `limit` rows of the agent, newest version first, at or before a version. good: only those without damage."""
        ...

    async def newest_snapshots(self, agents: Sequence[AgentRecord]) -> list[SnapshotRow | None]:
        """The newest good row of each agent, in order; None where there is none."""
        ...

    async def get_snapshot(self, tenant: str, id: UUID) -> SnapshotRow | None:
        """The tenant's row with this id."""
        ...

    async def list_snapshots(self, tenant: str, *, after: UUID | None = None, limit: int = 100) -> list[SnapshotRow]:
        """A page of all of the tenant's rows in order of their ids, which is about the order in which they were made, after the id `after`."""
        ...

    async def mark_snapshot(self, row: SnapshotRow, mark: SnapshotMark) -> SnapshotRow | None:
        """Change what the mark names; the row that then stands, None when it is gone."""
        ...

    async def replace_snapshot(self, old: SnapshotRow, new: SnapshotRow) -> bool:
        """Put a row of the same version in the place of a good one, in one step, with the promises that it then has; False, and nothing is
        done, when the old one is gone or was found damaged."""
        ...

    async def delete_snapshots(
        self, agent: AgentRecord, ids: Sequence[UUID], *, keep_newest: int, even_permanent: bool = False
    ) -> list[UUID]:
        """Delete rows of one agent, in one step; the ids that are gone. Permanent ones stay unless told, and so do those among the agent's
        `keep_newest` newest good rows and the one that the agent's kept events follow (`FloorRows`)."""
        ...
