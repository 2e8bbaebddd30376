"""Events as the binary form of COPY, which takes a server half the time of an INSERT of arrays."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from perdure.engine.log.records import SealedEvent

__all__ = ["COPY_EVENTS", "copy_data"]

COPY_EVENTS: Final = """COPY events (agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain,
  correlation, trace, project, module, payload) FROM STDIN (FORMAT binary)"""
"""Takes what `copy_data` gives."""
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_COLUMNS: Final = 16
# How many columns follow, and each of the first eight after its length.
_BEGINNING: Final = struct.Struct(">hiqiqiqiiiiiiiii16s")
_LENGTH: Final = struct.Struct(">i")
_NULL: Final = _LENGTH.pack(-1)
_SIXTEEN: Final = _LENGTH.pack(16)
_UNNAMED: Final = (None,) * 4
_NO_NAMES: Final = _NULL * 4


def copy_data(events: Iterable[SealedEvent]) -> bytes:
    """All rows at once."""
    parts = [_HEADER]
    pack, length = _BEGINNING.pack, _LENGTH.pack
    types: dict[str, bytes] = {}
    for event in events:
        keys = (
            8,
            event.agent_key,
            8,
            event.offset,
            8,
            event.time_us,
            4,
            event.version,
            4,
            event.epoch,
            4,
            event.tenant_key,
            4,
            event.partition,
        )
        names = (event.correlation_id, event.trace_id, event.project, event.module)
        parts += (
            pack(_COLUMNS, *keys, 16, event.id.int.to_bytes(16, "big")),
            _NULL if event.causation_id is None else _SIXTEEN + event.causation_id.bytes,
            types.get(event.type) or types.setdefault(event.type, _text(event.type)),
            length(len(event.chain)),
            event.chain,
            _NO_NAMES if names == _UNNAMED else b"".join(map(_text, names)),
            length(len(event.payload)),
            event.payload,
        )
    parts.append(_TRAILER)
    return b"".join(parts)


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded
