"""Identifiers: UUIDv7 for events, and the partition of an agent."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from uuid import UUID, SafeUUID

__all__ = ["partition_of", "uuid7", "uuid7_time"]

_lock = threading.Lock()
_last = 0  # the 74 bits "unix milliseconds + counter" of the newest id of this process

_COUNTER_BITS = 26
_VERSION = 0x7 << 76
_VARIANT = 0b10 << 62
_new = UUID.__new__
_set_number, _set_safety = (vars(UUID)[name].__set__ for name in ("int", "is_safe"))
_UNKNOWN = SafeUUID.unknown


def uuid7() -> UUID:
    """A new UUIDv7 (RFC 9562, method 1): milliseconds, a counter of 26 bits that only grows within one process, 48 random bits."""
    global _last
    # Asked of the kernel for each: of bits that were drawn ahead a machine's snapshot, started twice, would make the same ids twice.
    random = int.from_bytes(os.urandom(9), "big")
    with _lock:
        # A random start of 24 bits leaves three quarters of the counter to one millisecond before it runs into the clock's bits.
        tick = (time.time_ns() // 1_000_000 << _COUNTER_BITS) | (random >> 48)
        _last = tick if tick >> _COUNTER_BITS > _last >> _COUNTER_BITS else _last + 1
        tick = _last
    identifier = _new(UUID)
    # What `UUID(int=…)` does, without looking for what else may have been given: every event has an id.
    high, low = tick >> _COUNTER_BITS << 16 | tick >> 14 & 0xFFF, tick & 0x3FFF
    _set_number(identifier, high << 64 | low << 48 | random & 0xFFFFFFFFFFFF | _VERSION | _VARIANT)
    _set_safety(identifier, _UNKNOWN)
    return identifier


def uuid7_time(identifier: UUID) -> float | None:
    """The time inside a UUIDv7 as unix seconds, or None for any other kind of id."""
    return (identifier.int >> 80) / 1000 if identifier.int >> 76 & 0xF == 7 else None


def partition_of(tenant: str, agent: str, partitions: int) -> int:
    """The partition, 0 … partitions-1, that an agent lives in for ever.

    BLAKE2b over the length-prefixed names, so that no two pairs of names run together.
    """
    name = tenant.encode()
    digest = hashlib.blake2b(len(name).to_bytes(4, "big") + name + agent.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % partitions
