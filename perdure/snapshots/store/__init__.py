"""Where snapshots are kept: local files or an S3-compatible service, behind one small contract."""

from __future__ import annotations

from perdure.snapshots.store.contract import ObjectFacts, SnapshotStore
from perdure.snapshots.store.opening import check_create_only, open_store

__all__ = ["ObjectFacts", "SnapshotStore", "check_create_only", "open_store"]
