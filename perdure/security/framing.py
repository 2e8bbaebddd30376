"""Small encodings that the sealed formats share."""

from __future__ import annotations

__all__ = ["join_fields", "read_varint", "write_varint"]

_VARINT_BYTES_MAX = 3


def join_fields(*fields: bytes) -> bytes:
    """The fields, each after its length in 4 bytes, so that no two lists of fields run together."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def write_varint(number: int) -> bytes:
    """A number of at most 21 bits in one to three bytes, seven bits each, the lowest first (LEB128)."""
    if not 0 <= number < 1 << 7 * _VARINT_BYTES_MAX:
        raise ValueError(f"{number} does not fit into {_VARINT_BYTES_MAX} bytes of a varint")
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """The number at `start` and the index after it. Raises ValueError when it is cut off, too long or not the shortest form."""
    number = 0
    for index, byte in enumerate(data[start : start + _VARINT_BYTES_MAX]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                break
            return number, start + index + 1
    raise ValueError("not a varint")
