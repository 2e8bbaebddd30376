"""Events to bytes and back: the part of an event that is sealed, as msgpack.

The indexed columns of the envelope (id, type, causation, correlation, trace, project, module) stand beside the payload in the log; everything
else is inside it: changes, data, metadata, source, actor, schema version, replayable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.changes import Change
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.contract import SealedEvent, from_microseconds
from perdure.errors import IntegrityError, InvalidEvent, LimitExceeded

__all__ = [
    "EVENT_CONTEXT",
    "Draft",
    "Effect",
    "Payload",
    "StoredPayload",
    "check_size",
    "decode_effects",
    "decode_payload",
    "encode_payload",
    "event_context",
    "recorded_event",
]


class Payload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The sealed part, as it is encoded: an array of seven, of eight where values stand outside. references: how many do."""

    changes: tuple[Change, ...]
    data: Any
    metadata: dict[str, Any]
    source: str
    actor: str
    schema_version: int
    replayable: bool


class StoredPayload(Payload, frozen=True, array_like=True, gc=False):
    """A payload that may refer to large values."""

    references: int = 0


class Effect(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A payload for who folds: of what the fold does not need only the bytes."""

    changes: tuple[Change, ...]
    data: msgspec.Raw
    metadata: msgspec.Raw
    source: msgspec.Raw
    actor: msgspec.Raw
    schema_version: msgspec.Raw
    replayable: bool
    references: int = 0


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event that is sealed and waits for its place in the log."""

    id: UUID
    type: str
    causation_id: UUID | None
    correlation_id: str | None
    trace_id: str | None
    project: str | None
    module: str | None
    payload: bytes


EVENT_CONTEXT: Final = b"event"
"""How the context of every event's seal begins."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoredPayload)
_effect_decoder = msgspec.msgpack.Decoder(Effect)


def encode_payload(event: Event, references: int = 0) -> bytes:
    """The sealed part of an event before it is sealed. references: values in it that stand outside. Raises InvalidEvent."""
    fields = (event.changes, event.data, event.metadata, event.source, event.actor, event.schema_version, event.replayable)
    payload = StoredPayload(*fields, references=references) if references else Payload(*fields)
    try:
        return _encoder.encode(payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as problem:
        raise InvalidEvent(f"event {event.type!r} cannot be encoded: {problem}") from problem


def check_size(event: Event, size_bytes: int) -> None:
    """Raise LimitExceeded for a payload that is too large although its large values stand outside."""
    if size_bytes > limits.EVENT_BYTES_MAX:
        raise LimitExceeded(
            f"event {event.type!r} has {size_bytes} bytes, the limit is {limits.EVENT_BYTES_MAX}", hint="split it into several events"
        )


def decode_payload(sealed: SealedEvent, plaintext: bytes) -> StoredPayload:
    """What was sealed. Raises IntegrityError."""
    try:
        return _decoder.decode(plaintext)
    except msgspec.MsgspecError as problem:
        message = f"the payload of event {sealed.id} is not an event: {problem}"
        raise IntegrityError(message, tenant=sealed.tenant, agent=sealed.agent, version=sealed.version) from problem


def decode_effects(plaintexts: Sequence[bytes]) -> list[Effect]:
    """What the events do to a state; where `references` is not 0, values of it stand outside. The rest of them is not decoded.

    Raises msgspec.MsgspecError when one of them is no payload; which one it is, `decode_payload` tells.
    """
    decode = _effect_decoder.decode
    return [decode(plaintext) for plaintext in plaintexts]


def recorded_event(sealed: SealedEvent, payload: Payload) -> RecordedEvent:
    """The whole event from its columns and its opened payload."""
    return RecordedEvent(
        type=sealed.type,
        changes=payload.changes,
        data=payload.data,
        metadata=payload.metadata,
        id=sealed.id,
        source=payload.source,
        actor=payload.actor,
        causation_id=sealed.causation_id,
        correlation_id=sealed.correlation_id,
        trace_id=sealed.trace_id,
        project=sealed.project,
        module=sealed.module,
        schema_version=payload.schema_version,
        replayable=payload.replayable,
        tenant=sealed.tenant,
        agent=sealed.agent,
        version=sealed.version,
        epoch=sealed.epoch,
        partition=sealed.partition,
        offset=sealed.offset,
        time=from_microseconds(sealed.time_us),
        chain=sealed.chain,
    )


def event_context(identifier: UUID) -> bytes:
    """What an event's seal is bound to besides tenant, agent and key: its id."""
    return EVENT_CONTEXT + identifier.bytes
