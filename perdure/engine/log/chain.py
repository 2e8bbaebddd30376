"""The hash chain of an agent: each event's hash covers its content, its place and the hash before it.

One altered, removed, swapped or inserted event breaks every hash after it. The chain covers the sealed payload, so it can be checked without
any key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import sha256

from perdure.engine.log.codec import Draft
from perdure.engine.log.records import SealedEvent
from perdure.errors import ChainBroken

__all__ = ["EMPTY_CHAIN", "chain_hash", "check_chain", "placed_hash"]

EMPTY_CHAIN = bytes(32)
_PLACED = struct.Struct(">32sQQq16s16s")
_NO_ID = bytes(16)


def chain_hash(before: bytes, tenant: str, agent: str, version: int, epoch: int, time_us: int, event: Draft | SealedEvent) -> bytes:
    """SHA-256 over: the hash before | version, epoch, time | id | causation | the names, separated by NUL (which no name may hold) | payload."""
    causation = event.causation_id.bytes if event.causation_id else _NO_ID
    names = _names(tenant, agent, event.type, event.correlation_id, event.trace_id, event.project, event.module)
    placed = _PLACED.pack(before, version, epoch, time_us, event.id.int.to_bytes(16, "big"), causation)
    return sha256(placed + names + event.payload).digest()


def placed_hash(before: bytes, event: SealedEvent) -> bytes:
    """What the chain hash of an event that stands somewhere has to be, after this hash."""
    return chain_hash(before, event.tenant, event.agent, event.version, event.epoch, event.time_us, event)


def check_chain(events: Iterable[SealedEvent], *, version: int = 0, chain: bytes = EMPTY_CHAIN) -> tuple[int, bytes]:
    """Walk one agent's events that follow (version, chain); the version and hash reached. Raises ChainBroken naming the first that fails."""
    # Every replay goes this way: `chain_hash` with its names joined once, and nothing called but what hashes.
    pack = _PLACED.pack
    known: dict[tuple[str, str, str, str | None, str | None, str | None, str | None], bytes] = {}
    for event in events:
        version += 1
        if event.version != version:
            raise _broken(event, f"version {event.version} follows version {version - 1}")
        said = (event.tenant, event.agent, event.type, event.correlation_id, event.trace_id, event.project, event.module)
        names = known.get(said)
        if names is None:
            names = known[said] = _names(*said)
        causation = _NO_ID if event.causation_id is None else event.causation_id.bytes
        placed = pack(chain, version, event.epoch, event.time_us, event.id.int.to_bytes(16, "big"), causation)
        chain = sha256(placed + names + event.payload).digest()
        if chain != event.chain:
            raise _broken(event, f"event {event.id} at version {version} is not the one that was written")
    return version, chain


def _names(
    tenant: str, agent: str, type: str, correlation: str | None, trace: str | None, project: str | None, module: str | None
) -> bytes:
    return f"{tenant}\0{agent}\0{type}\0{correlation or ''}\0{trace or ''}\0{project or ''}\0{module or ''}\0".encode()


def _broken(event: SealedEvent, message: str) -> ChainBroken:
    return ChainBroken(message, tenant=event.tenant, agent=event.agent, version=event.version)
