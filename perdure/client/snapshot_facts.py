"""What is told of snapshots, and of what was done with them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from perdure.client.state import State
from perdure.engine.log.records import from_microseconds
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.snapshots.restore import Into

__all__ = ["Made", "Restored", "Snapshot", "Verification", "moment", "snapshot_of"]


class Snapshot(msgspec.Struct, frozen=True):
    """A registered snapshot.

    time: of the newest event in it; created: when it was made, by whom (creator) and why (trigger). plain_bytes: its state; stored_bytes: all of
    its objects in the store, shared ones too; written_bytes: what it added. expires: until when it was promised to stay. damage: '' or what is
    wrong with it. verified: when it was last read as a whole. state_digest: equal for equal states, whatever codec they are stored with.
    """

    id: UUID
    tenant: str
    agent: str
    version: int
    epoch: int
    time: datetime
    created: datetime
    kind: str
    trigger: str
    creator: str
    codec: str
    plain_bytes: int
    stored_bytes: int
    written_bytes: int
    chunks: int
    state_digest: bytes
    expires: datetime | None
    permanent: bool
    critical: bool
    damage: str
    verified: datetime | None
    replaces: UUID | None

    @property
    def saved(self) -> float:
        """Which part of the state's bytes is saved in the store, 0 to 1 (below 0: it grew)."""
        return 1 - self.stored_bytes / self.plain_bytes if self.plain_bytes else 0.0


class Made(msgspec.Struct, frozen=True):
    """already: it was there, nothing was written. warnings: what surprised while folding, snapshots that could not be used."""

    snapshot: Snapshot
    already: bool
    warnings: tuple[str, ...]


class Verification(msgspec.Struct, frozen=True):
    """ok: the snapshot is whole. problem: what is wrong else. replayed: it was also compared with the state that the log alone gives."""

    snapshot: Snapshot
    ok: bool
    problem: str
    bytes_read: int
    replayed: bool


class Restored(msgspec.Struct, frozen=True):
    """version: that was restored. integrity_verified: its bytes, its digest and its place in the log's history hold. snapshot: that it comes
    from, None where the log alone gave it. agent, appended: where an event was appended, and its version."""

    into: Into
    version: int
    integrity_verified: bool
    snapshot: UUID | None
    warnings: tuple[str, ...]
    state: State
    agent: str
    appended: int | None


def moment(time_us: int) -> datetime | None:
    """Unix microseconds as a time, 0 for none."""
    return from_microseconds(time_us) if time_us else None


def snapshot_of(row: SnapshotRow) -> Snapshot:
    """A row of the registry as it is handed out."""
    fields = {name: getattr(row, name) for name in Snapshot.__struct_fields__ if hasattr(row, name)}
    fields |= {"time": from_microseconds(row.time_us), "created": from_microseconds(row.created_us)}
    return Snapshot(**fields, expires=moment(row.expires_us), verified=moment(row.verified_us))
