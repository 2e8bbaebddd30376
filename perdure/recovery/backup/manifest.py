"""What a backup consists of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from perdure.engine.log.records import Position

__all__ = ["FORMAT", "BackupManifest", "Part", "Proof", "Segment", "manifest_object", "proof_object"]

FORMAT: Final = 1


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """Events of one partition, offsets first to last. time_us: of the last. name, digest (SHA-256), stored_bytes: of the object."""

    partition: int
    first: int
    last: int
    events: int
    time_us: int
    name: str
    digest: bytes
    stored_bytes: int


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Something else of the log. kind: agents, keys, documents, floors, snapshots, blobs."""

    kind: str
    name: str
    digest: bytes
    stored_bytes: int
    count: int


class BackupManifest(msgspec.Struct, frozen=True):
    """A backup. id: UUIDv7 in hexadecimal. positions: per partition (newest offset, its time in unix microseconds) when it was taken.

    log: id of the log, the same for all backups of it. created_us: when it began; nothing that was acknowledged before is missing.
    """

    format: int
    id: str
    log: str
    generation: int
    partitions: int
    created_us: int
    previous: str
    segments: list[Segment]
    parts: list[Part]
    positions: dict[int, tuple[int, int]]
    written_bytes: int

    @property
    def objects(self) -> list[Segment | Part]:
        """All its objects but itself and large values."""
        return [*self.segments, *self.parts]

    def lag_events(self, positions: Mapping[int, Position]) -> int:
        """How many events of a log that stands there it does not hold."""
        return sum(max(0, position.offset - self.positions.get(partition, (0, 0))[0]) for partition, position in positions.items())

    @property
    def events(self) -> int:
        """How many events it holds."""
        return sum(segment.events for segment in self.segments)

    @property
    def stored_bytes(self) -> int:
        """Of all its objects but large values, those shared with other backups too."""
        return sum(each.stored_bytes for each in self.objects)

    def of(self, kind: str) -> list[Part]:
        """Its parts of a kind."""
        return [part for part in self.parts if part.kind == kind]


class Proof(msgspec.Struct, frozen=True):
    """A restore that was done and compared. agents: how many digests were equal; took_s: of the restore."""

    backup: str
    proven_us: int
    agents: int
    events: int
    took_s: float


def manifest_object(id: str) -> str:
    """Where a manifest is kept."""
    return f"backups/manifests/{id}"


def proof_object(id: str) -> str:
    """Where a proof is kept."""
    return f"backups/proofs/{id}"
