"""Sealed events as Kafka messages: CloudEvents 1.0 in binary mode (docs/format/messages.md).

Pure and fast: both directions stand in the way of every event. Writing trusts the log; reading trusts nobody: whatever is not exactly what
`to_message` writes comes back as a reason in words, so that one broken message never stops the ones after it.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, unquote
from uuid import UUID

import msgspec

from perdure.engine.log.records import SealedEvent, from_microseconds, to_microseconds
from perdure.errors import InvalidEvent

__all__ = ["CONTENT_TYPE", "Headers", "Message", "format_time", "from_message", "parse_time", "to_message"]

Headers = list[tuple[str, bytes]]

CONTENT_TYPE: Final = "application/vnd.perdure.sealed"
CHAIN_BYTES: Final = 32
INTEGER_MAX: Final = 2**63 - 1
INTEGER_DIGITS_MAX: Final = 19
TENANTS_REMEMBERED: Final = 4_096
SECONDS_REMEMBERED: Final = 1_024

_SPECVERSION = ("ce_specversion", b"1.0")
_CONTENT_TYPE = ("content-type", CONTENT_TYPE.encode())
_OPTIONAL = ("ce_perdurecorrelation", "ce_perdurecausation", "ce_perduretrace", "ce_perdureproject", "ce_perduremodule")
_UUID_LENGTH: Final = 36
# The C decoder: four times as fast as the constructor of UUID, and beside the opening of seals it is the dearest part of reading.
_decode_uuid = msgspec.json.Decoder(UUID).decode
_REQUIRED = frozenset(
    (
        "content-type",
        *(f"ce_{name}" for name in ("specversion", "id", "type", "source", "subject", "time")),
        *(f"ce_perdure{name}" for name in ("version", "epoch", "partition", "offset", "chain")),
    )
)
_KNOWN = _REQUIRED.union(_OPTIONAL)


class Message(NamedTuple):
    """What stands on a topic. timestamp_ms: unix milliseconds."""

    key: bytes
    value: bytes
    headers: Headers
    timestamp_ms: int


class _Rubbish(Exception):
    """A header is not what it should be; the text says which."""


def to_message(event: SealedEvent) -> Message:
    """The message of an event. InvalidEvent when it could not be read back (an empty payload, a NUL in the tenant)."""
    key, source = _tenant(event.tenant)
    if not event.payload:
        raise InvalidEvent("an event without a sealed payload cannot be published", tenant=event.tenant, agent=event.agent)
    agent = event.agent.encode()
    headers: Headers = [
        _SPECVERSION,
        _CONTENT_TYPE,
        ("ce_id", str(event.id).encode()),
        ("ce_type", event.type.encode()),
        ("ce_source", source),
        ("ce_subject", agent),
        ("ce_time", format_time(event.time_us).encode()),
        ("ce_perdureversion", b"%d" % event.version),
        ("ce_perdureepoch", b"%d" % event.epoch),
        ("ce_perdurepartition", b"%d" % event.partition),
        ("ce_perdureoffset", b"%d" % event.offset),
        ("ce_perdurechain", b2a_base64(event.chain, newline=False)),
    ]
    causation = None if event.causation_id is None else str(event.causation_id)
    values = (event.correlation_id, causation, event.trace_id, event.project, event.module)
    headers += [(name, value.encode()) for name, value in zip(_OPTIONAL, values, strict=True) if value is not None]
    return Message(key + agent, event.payload, headers, event.time_us // 1000)


def from_message(
    partition: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> tuple[SealedEvent | None, str]:
    """The event of a message and '', or None and the reason. Headers that are not CloudEvents' are left alone: brokers' tools add them."""
    try:
        return _parse(partition, key, value, _fields(headers)), ""
    except _Rubbish as problem:
        return None, str(problem)


def format_time(time_us: int) -> str:
    """Unix microseconds as RFC 3339 in UTC with six decimals."""
    second, microsecond = divmod(time_us, 1_000_000)
    return f"{_second(second)}.{microsecond:06d}Z"


def parse_time(text: str) -> int:
    """The reverse of `format_time`; ValueError for any other form."""
    if len(text) != 27 or text[19] != "." or text[26] != "Z" or not (text[20:26].isascii() and text[20:26].isdigit()):
        raise ValueError("not RFC 3339 in UTC with six decimals")
    return _second_of(text[:19]) + int(text[20:26])


@lru_cache(maxsize=TENANTS_REMEMBERED)
def _tenant(tenant: str) -> tuple[bytes, bytes]:
    """The tenant's part of the key, and the source header."""
    if "\0" in tenant or not tenant:
        raise InvalidEvent("a tenant's name is not empty and holds no NUL character", tenant=tenant)
    return tenant.encode() + b"\0", b"perdure/" + quote(tenant, safe="").encode()


@lru_cache(maxsize=SECONDS_REMEMBERED)
def _second(second: int) -> str:
    return from_microseconds(second * 1_000_000).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")


@lru_cache(maxsize=SECONDS_REMEMBERED)
def _second_of(text: str) -> int:
    time_us = to_microseconds(datetime.fromisoformat(text).replace(tzinfo=UTC))
    if _second(time_us // 1_000_000) != text:
        raise ValueError("not RFC 3339 in UTC with six decimals")
    return time_us


def _fields(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, bytes]:
    """The headers that are known, by name. Those of `to_message` are told by set comparisons alone; any others one by one."""
    found = dict(headers)
    if len(found) == len(headers) and found.keys() <= _KNOWN and found.keys() >= _REQUIRED and None not in found.values():
        return found  # type: ignore[return-value]  # no value is None
    return _fields_one_by_one(headers)


def _fields_one_by_one(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    for name, value in headers:
        if name not in _KNOWN:
            if name.startswith("ce_"):
                raise _Rubbish(f"unknown header {name!r}")
            continue
        if name in fields:
            raise _Rubbish(f"header {name!r} stands there twice")
        if value is None:
            raise _Rubbish(f"header {name!r} has no value")
        fields[name] = value
    if not fields.keys() >= _REQUIRED:
        raise _Rubbish(f"missing header {min(_REQUIRED - fields.keys())!r}")
    return fields


def _parse(partition: int, key: bytes | None, value: bytes | None, fields: dict[str, bytes]) -> SealedEvent:
    if fields["ce_specversion"] != b"1.0":
        raise _Rubbish("header 'ce_specversion' is not 1.0")
    if fields["content-type"] != _CONTENT_TYPE[1]:
        raise _Rubbish(f"header 'content-type' is not {CONTENT_TYPE}")
    if not value:
        raise _Rubbish("the message has no value")
    tenant, agent = _names(key, fields)
    causation = fields.get("ce_perdurecausation")
    event = SealedEvent(
        tenant=tenant,
        agent=agent,
        tenant_key=0,
        agent_key=0,
        partition=_integer(fields, "ce_perdurepartition", 0),
        offset=_integer(fields, "ce_perdureoffset", 1),
        version=_integer(fields, "ce_perdureversion", 1),
        epoch=_integer(fields, "ce_perdureepoch", 0),
        id=_uuid(fields["ce_id"], "ce_id"),
        type=_text(fields["ce_type"], "ce_type"),
        time_us=_time(fields["ce_time"]),
        causation_id=None if causation is None else _uuid(causation, "ce_perdurecausation"),
        correlation_id=_optional(fields, "ce_perdurecorrelation"),
        trace_id=_optional(fields, "ce_perduretrace"),
        project=_optional(fields, "ce_perdureproject"),
        module=_optional(fields, "ce_perduremodule"),
        chain=_chain(fields["ce_perdurechain"]),
        payload=bytes(value),
    )
    if event.partition != partition:
        raise _Rubbish(f"header 'ce_perdurepartition' says {event.partition}, but it came from partition {partition}")
    return event


def _names(key: bytes | None, fields: dict[str, bytes]) -> tuple[str, str]:
    """Tenant and agent, which key and headers must agree about."""
    tenant, prefix = _tenant_of(fields["ce_source"])
    agent = fields["ce_subject"]
    if key != prefix + agent:
        raise _Rubbish("the key is not the tenant and agent of the headers")
    return tenant, _text(agent, "ce_subject")


@lru_cache(maxsize=TENANTS_REMEMBERED)
def _tenant_of(source: bytes) -> tuple[str, bytes]:
    """The tenant of a source header, and its part of the key."""
    tenant = unquote(_text(source, "ce_source").removeprefix("perdure/"), errors="replace")
    try:
        prefix, expected = _tenant(tenant)
    except InvalidEvent as error:
        raise _Rubbish(f"header 'ce_source' names no tenant: {error.message}") from error
    if expected != source:
        raise _Rubbish("header 'ce_source' is not perdure/TENANT")
    return tenant, prefix


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _Rubbish(f"header {name!r} is not UTF-8") from None


def _optional(fields: dict[str, bytes], name: str) -> str | None:
    value = fields.get(name)
    return None if value is None else _text(value, name)


def _integer(fields: dict[str, bytes], name: str, least: int) -> int:
    value = fields[name]
    if not value.isdigit() or len(value) > INTEGER_DIGITS_MAX or (value[0] == 0x30 and len(value) > 1):
        raise _Rubbish(f"header {name!r} is not a decimal integer")
    number = int(value)
    if not least <= number <= INTEGER_MAX:
        raise _Rubbish(f"header {name!r} is out of range")
    return number


def _uuid(value: bytes, name: str) -> UUID:
    if len(value) != _UUID_LENGTH or value != value.lower():
        raise _Rubbish(f"header {name!r} is not a UUID in its canonical form")
    try:
        return _decode_uuid(b'"%b"' % value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _Rubbish(f"header {name!r} is not a UUID") from None


def _time(value: bytes) -> int:
    try:
        return parse_time(_text(value, "ce_time"))
    except ValueError as error:
        raise _Rubbish(f"header 'ce_time' is not a time: {error}") from None


def _chain(value: bytes) -> bytes:
    try:
        chain = a2b_base64(value, strict_mode=True)
    except Base64Error:
        raise _Rubbish("header 'ce_perdurechain' is not base64") from None
    if len(chain) != CHAIN_BYTES:
        raise _Rubbish(f"header 'ce_perdurechain' does not hold {CHAIN_BYTES} bytes")
    return chain
