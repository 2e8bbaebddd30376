"""The hash chain of an agent: each event's hash covers its content, its place and the hash before it.

One altered, removed, swapped or inserted event breaks every hash after it. The chain covers the sealed payload, so it can be checked without
any key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import sha256

from perdure.engine.log.codec import Draft
from perdure.engine.log.contract import SealedEvent
from perdure.errors import ChainBroken

__all__ = ["EMPTY_CHAIN", "chain_hash", "check_chain"]

EMPTY_CHAIN = bytes(32)
_PLACE = struct.Struct(">QQq16s16s")
_NO_ID = bytes(16)


def chain_hash(before: bytes, tenant: str, agent: str, version: int, epoch: int, time_us: int, event: Draft | SealedEvent) -> bytes:
    """SHA-256 over: the hash before | version, epoch, time | id | causation | the names, separated by NUL (which no name may hold) | payload."""
    causation = event.causation_id.bytes if event.causation_id else _NO_ID
    names = f"{tenant}\0{agent}\0{event.type}\0{event.correlation_id or ''}\0{event.trace_id or ''}\0{event.project or ''}\0{event.module or ''}\0"
    return sha256(before + _PLACE.pack(version, epoch, time_us, event.id.bytes, causation) + names.encode() + event.payload).digest()


def check_chain(events: Iterable[SealedEvent], *, version: int = 0, chain: bytes = EMPTY_CHAIN) -> tuple[int, bytes]:
    """Walk one agent's events that follow (version, chain); the version and hash reached. Raises ChainBroken naming the first that fails."""
    for event in events:
        if event.version != version + 1:
            raise _broken(event, f"version {event.version} follows version {version}")
        chain = chain_hash(chain, event.tenant, event.agent, event.version, event.epoch, event.time_us, event)
        if chain != event.chain:
            raise _broken(event, f"event {event.id} at version {event.version} is not the one that was written")
        version = event.version
    return version, chain


def _broken(event: SealedEvent, message: str) -> ChainBroken:
    return ChainBroken(message, tenant=event.tenant, agent=event.agent, version=event.version)
