"""Columns as Postgres arrays in binary form, packed at once.

The driver's own lists adapt element by element, which costs more than all the rest of an append; a column of one type is one `struct.pack`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from uuid import UUID

from psycopg import adapt, postgres
from psycopg.abc import AdaptContext
from psycopg.pq import Format

__all__ = ["Packed", "bigints", "byteas", "integers", "register", "texts", "uuids"]

_HEADER = struct.Struct(">iiIii")
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)
_SIXTEEN = _LENGTH.pack(16)


class Packed:
    """An array that is in its binary form already."""

    __slots__ = ("data", "oid")

    def __init__(self, oid: int, data: bytes) -> None:
        self.oid = oid
        self.data = data


class _PackedDumper(adapt.Dumper):
    """Hands the bytes over; the array's type is told by the value."""

    format = Format.BINARY

    def dump(self, obj: Packed) -> bytes:
        return obj.data

    def get_key(self, obj: Packed, format: adapt.PyFormat) -> tuple[type, int]:  # type: ignore[override]  # noqa: ARG002
        return (Packed, obj.oid)

    def upgrade(self, obj: Packed, format: adapt.PyFormat) -> _PackedDumper:  # noqa: ARG002
        dumper = _PackedDumper(Packed)
        dumper.oid = obj.oid
        return dumper


def register(context: AdaptContext) -> None:
    """Let a connection take `Packed` as a parameter."""
    context.adapters.register_dumper(Packed, _PackedDumper)


def _array_oid(name: str) -> tuple[int, int]:
    kind = postgres.types[name]
    return kind.oid, kind.array_oid


_INT4, _INT8, _UUID, _TEXT, _BYTEA = (_array_oid(name) for name in ("int4", "int8", "uuid", "text", "bytea"))


def _head(count: int, oid: int, *, nulls: bool = False) -> bytes:
    return _HEADER.pack(1 if count else 0, nulls, oid, count, 1) if count else struct.pack(">iiI", 0, 0, oid)


def integers(values: Sequence[int]) -> Packed:
    """int4[]"""
    pairs = [number for value in values for number in (4, value)]
    return Packed(_INT4[1], _head(len(values), _INT4[0]) + struct.pack(f">{len(pairs)}i", *pairs))


def bigints(values: Sequence[int]) -> Packed:
    """int8[]"""
    pairs = [number for value in values for number in (8, value)]
    return Packed(_INT8[1], _head(len(values), _INT8[0]) + struct.pack(">" + "iq" * len(values), *pairs))


def uuids(values: Sequence[UUID | None]) -> Packed:
    """uuid[]"""
    parts = [_SIXTEEN + value.bytes if value is not None else _NULL for value in values]
    return Packed(_UUID[1], _head(len(parts), _UUID[0], nulls=None in values) + b"".join(parts))


def texts(values: Sequence[str | None]) -> Packed:
    """text[]"""
    return _variable(_TEXT, [None if value is None else value.encode() for value in values])


def byteas(values: Sequence[bytes]) -> Packed:
    """bytea[]"""
    return _variable(_BYTEA, values)


def _variable(kind: tuple[int, int], values: Sequence[bytes | None]) -> Packed:
    def parts() -> Iterable[bytes]:
        for value in values:
            if value is None:
                yield _NULL
            else:
                yield _LENGTH.pack(len(value))
                yield value

    return Packed(kind[1], _head(len(values), kind[0], nulls=None in values) + b"".join(parts()))
