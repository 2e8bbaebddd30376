"""The lease keeper, as recovery uses it."""

from __future__ import annotations

from perdure.engine.leases import LEASE_S, KeptLease

__all__ = ["LEASE_S", "KeptLease"]
