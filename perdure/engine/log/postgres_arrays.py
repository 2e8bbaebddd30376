"""Columns as Postgres arrays in binary form, packed at once.

The driver's own lists adapt element by element, which costs more than all the rest of an append; a column of one type is packed as a whole.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from uuid import UUID

from psycopg import adapt, postgres
from psycopg.abc import AdaptContext
from psycopg.pq import Format

__all__ = [
    "Packed",
    "bigint",
    "bigints",
    "bytea",
    "byteas",
    "integer",
    "integers",
    "register",
    "text",
    "texts",
    "unpacked",
    "unpacked_numbers",
    "uuids",
]

_HEADER = struct.Struct(">iiIii")
_LENGTH = struct.Struct(">i")
_BIGINT = struct.Struct(">q")
_NULL = _LENGTH.pack(-1)
_SIXTEEN = _LENGTH.pack(16)


class Packed:
    """A parameter that is in its binary form already."""

    __slots__ = ("data", "oid")

    def __init__(self, oid: int, data: bytes) -> None:
        self.oid = oid
        self.data = data


class _PackedDumper(adapt.Dumper):
    """Hands the bytes over; their type is told by the value."""

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


def integer(value: int) -> Packed:
    """int4"""
    return Packed(_INT4[0], _LENGTH.pack(value))


def bigint(value: int) -> Packed:
    """int8"""
    return Packed(_INT8[0], _BIGINT.pack(value))


def text(value: str) -> Packed:
    """text"""
    return Packed(_TEXT[0], value.encode())


def bytea(value: bytes) -> Packed:
    """bytea"""
    return Packed(_BYTEA[0], value)


def integers(values: Sequence[int]) -> Packed:
    """int4[]"""
    return Packed(_INT4[1], _head(len(values), _INT4[0]) + _numbers(array("i", values)))


def bigints(values: Sequence[int]) -> Packed:
    """int8[]"""
    return Packed(_INT8[1], _head(len(values), _INT8[0]) + _numbers(array("q", values)))


def uuids(values: Sequence[UUID | None]) -> Packed:
    """uuid[]"""
    if not any(values):
        return _nulls(_UUID, len(values))
    # Whether some are missing is not asked by `in`: that would call each identifier's comparison.
    nulls = not all(values)
    if not nulls:
        plain = _SIXTEEN.join([value.int.to_bytes(16, "big") for value in values])  # type: ignore[union-attr]
        return Packed(_UUID[1], _head(len(values), _UUID[0]) + _SIXTEEN + plain)
    parts = [_NULL if value is None else _SIXTEEN + value.int.to_bytes(16, "big") for value in values]
    return Packed(_UUID[1], _head(len(parts), _UUID[0], nulls=True) + b"".join(parts))


def texts(values: Sequence[str | None]) -> Packed:
    """text[]"""
    if not any(values) and "" not in values:
        return _nulls(_TEXT, len(values))
    return _variable(_TEXT, [None if value is None else value.encode() for value in values])


def byteas(values: Sequence[bytes]) -> Packed:
    """bytea[]"""
    return _variable(_BYTEA, values)


def unpacked_numbers(data: bytes | None) -> list[int]:
    """The numbers of an int4[] or int8[] in binary form; none of it, where it is NULL."""
    return [int.from_bytes(value, "big", signed=True) for value in unpacked(data)]


def unpacked(data: bytes | None) -> list[bytes]:
    """The elements of an array of one dimension in binary form, of which none is NULL."""
    if data is None or len(data) < _HEADER.size:
        return []
    found, at = [], _HEADER.size
    while at < len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        found.append(data[at : at + size])
        at += size
    return found


def _nulls(kind: tuple[int, int], count: int) -> Packed:
    return Packed(kind[1], _head(count, kind[0], nulls=True) + _NULL * count)


def _numbers(values: array[int]) -> bytes:
    """Each number after its length in four bytes: byte after byte of all numbers at once, which no loop over numbers comes near."""
    size = values.itemsize
    if sys.byteorder == "little":
        values.byteswap()
    plain = values.tobytes()
    packed = bytearray((4 + size) * len(values))
    packed[3 :: 4 + size] = bytes((size,)) * len(values)
    for number in range(size):
        packed[4 + number :: 4 + size] = plain[number::size]
    return bytes(packed)


def _variable(kind: tuple[int, int], values: Sequence[bytes | None]) -> Packed:
    pack = _LENGTH.pack
    nulls = None in values
    parts: list[bytes]
    if nulls:
        parts = [piece for value in values for piece in ((_NULL,) if value is None else (pack(len(value)), value))]
    else:
        parts = [b""] * (2 * len(values))
        parts[::2] = map(pack, map(len, values))  # type: ignore[arg-type]
        parts[1::2] = values  # type: ignore[assignment]
    return Packed(kind[1], _head(len(values), kind[0], nulls=nulls) + b"".join(parts))
