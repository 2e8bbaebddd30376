"""How a snapshot is wanted. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from perdure import limits
from perdure.engine.log.snapshot_rows import CHECKPOINT, FULL, INCREMENTAL, SnapshotMark, SnapshotRow
from perdure.errors import InvalidInput, LimitExceeded
from perdure.snapshots.codecs import codec_named

__all__ = ["SnapshotOrder", "check_order"]

_UNFIT: Final = re.compile("[\x00\ud800-\udfff]")


class SnapshotOrder(msgspec.Struct, frozen=True, kw_only=True):
    """How a snapshot is wanted. kind: full, incremental (full where there is none before it) or checkpoint. creator, reason: for people.

    expires_us: unix microseconds until which it is promised to stay, 0 for no promise. permanent, critical: it stays until it is deleted by name.
    """

    kind: str = INCREMENTAL
    trigger: str = "manual"
    creator: str = ""
    reason: str = ""
    codec: str = "zstd"
    expires_us: int = 0
    permanent: bool = False
    critical: bool = False

    def marks(self, row: SnapshotRow) -> SnapshotMark:
        """What the order promises beyond what holds for a snapshot that is there already; nothing is taken back."""
        stays = self.permanent or (self.kind == CHECKPOINT and row.kind != CHECKPOINT)
        return SnapshotMark(
            expires_us=self.expires_us if self.expires_us > row.expires_us else None,
            permanent=True if stays and not row.permanent else None,
            critical=True if self.critical and not row.critical else None,
        )


def check_order(order: SnapshotOrder, at_version: int | None) -> None:
    """Raises InvalidInput, LimitExceeded for what cannot be made."""
    if order.kind not in (FULL, INCREMENTAL, CHECKPOINT):
        raise InvalidInput(f"a snapshot of the kind {order.kind!r} is not known", hint="full, incremental or checkpoint")
    if at_version is not None and order.kind != CHECKPOINT:
        raise InvalidInput("a snapshot of a named version is a checkpoint", hint="kind checkpoint, or no version")
    codec_named(order.codec)
    texts = (("creator", order.creator, limits.LABEL_LENGTH_MAX), ("trigger", order.trigger, limits.TYPE_LENGTH_MAX))
    for what, text, length_max in (*texts, ("reason", order.reason, limits.SNAPSHOT_REASON_LENGTH_MAX)):
        if not isinstance(text, str) or _UNFIT.search(text):
            raise InvalidInput(f"the {what} of a snapshot is no text", hint="a string without zero characters and lone surrogates")
        if len(text) > length_max:
            raise LimitExceeded(f"the {what} of a snapshot has {len(text)} characters, the limit is {length_max}")
