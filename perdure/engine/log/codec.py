"""Events to bytes and back: the part of an event that is sealed, as msgpack.

The indexed columns of the envelope (id, type, causation, correlation, trace, project, module) stand beside the payload in the log; everything
else is inside it: changes, data, metadata, source, actor, schema version, replayable.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, ClassVar, Final
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.changes import Change
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.records import SealedEvent, from_microseconds
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
    """The payload of an ordinary event, for who folds: what the fold does not need is stepped over."""

    changes: tuple[Change, ...]
    replayable: ClassVar[bool] = True


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
# A `Payload` begins as an array of so many, and ends with whether it is replayable; one with values outside is an array of one more.
_PLAIN: Final = 0x90 | len(Payload.__struct_fields__)
_TRUE: Final = 0xC3
_FIRST_BYTE: Final = itemgetter(0)
_LAST_BYTE: Final = itemgetter(-1)


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


def decode_effects(plaintexts: Sequence[bytes]) -> tuple[list[Effect], list[int]]:
    """What the events do to a state, and which of them are not ordinary: values stand outside, or they are not replayable. Those have to be
    decoded whole; of the others nothing else is looked at.

    Raises msgspec.MsgspecError when one of them is no payload; which one it is, `decode_payload` tells.
    """
    effects = list(map(_effect_decoder.decode, plaintexts))
    if set(map(_FIRST_BYTE, plaintexts)) <= {_PLAIN} and set(map(_LAST_BYTE, plaintexts)) <= {_TRUE}:
        return effects, []
    return effects, [at for at, plaintext in enumerate(plaintexts) if plaintext[0] != _PLAIN or plaintext[-1] != _TRUE]


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
    return EVENT_CONTEXT + identifier.int.to_bytes(16, "big")
