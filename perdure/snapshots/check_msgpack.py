"""A msgpack reader of its own for the checker: it accepts nothing but the canonical form.

Shares no code with what writes snapshots, on purpose.
"""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["NotCanonical", "Reader", "read_all"]

DEPTH_MAX = 256


class NotCanonical(Exception):
    """The bytes are not the one encoding of a value. place: the byte at which that shows."""

    def __init__(self, reason: str, place: int) -> None:
        super().__init__(f"{reason} (byte {place})")
        self.place = place


class Reader:
    """Reads values one after the other. strict: map members must be sorted, as they are in cells (in a manifest there are none)."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def value(self, depth: int = 0) -> Any:
        """The next value. Raises NotCanonical."""
        if depth > DEPTH_MAX:
            raise NotCanonical("nested too deep", self.at)
        start = self.at
        code = self.take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code == 0xCB:
            return struct.unpack(">d", self.take(8))[0]
        if 0xCC <= code <= 0xCF:
            return self.unsigned(1 << code - 0xCC, (0x7F, 0xFF, 0xFFFF, 0xFFFFFFFF)[code - 0xCC], start)
        if 0xD0 <= code <= 0xD3:
            return self.negative(1 << code - 0xD0, (-0x20, -0x80, -0x8000, -0x80000000)[code - 0xD0], start)
        return self.sized(code, start, depth)

    def unsigned(self, width: int, above: int, start: int) -> int:
        """A number that must not fit the next shorter form."""
        number = int.from_bytes(self.take(width), "big")
        if number <= above:
            raise NotCanonical("a number is longer than it must be", start)
        return number

    def negative(self, width: int, below: int, start: int) -> int:
        """A negative number that must not fit the next shorter form."""
        number = int.from_bytes(self.take(width), "big", signed=True)
        if number >= below:
            raise NotCanonical("a number is longer than it must be", start)
        return number

    def sized(self, code: int, start: int, depth: int) -> Any:
        """Text, bytes, arrays and maps."""
        if 0xA0 <= code <= 0xBF:
            return self.text(code & 0x1F)
        if 0x90 <= code <= 0x9F:
            return [self.value(depth + 1) for _ in range(code & 0x0F)]
        if 0x80 <= code <= 0x8F:
            return self.map(code & 0x0F, depth)
        kinds = {0xC4: 0, 0xC5: 0, 0xC6: 0, 0xD9: 1, 0xDA: 1, 0xDB: 1, 0xDC: 2, 0xDD: 2, 0xDE: 3, 0xDF: 3}
        if code not in kinds:
            raise NotCanonical(f"type {code:#04x} is not one of those that a state may hold", start)
        width = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}[code]
        above = {0xC4: -1, 0xC5: 0xFF, 0xC6: 0xFFFF, 0xD9: 0x1F, 0xDA: 0xFF, 0xDB: 0xFFFF}.get(code, 0x0F if width == 2 else 0xFFFF)
        size = int.from_bytes(self.take(width), "big")
        if size <= above:
            raise NotCanonical("a length is longer than it must be", start)
        if kinds[code] == 0:
            return self.take(size)
        if kinds[code] == 1:
            return self.text(size)
        if size > len(self.data):
            raise NotCanonical("a container says that it holds more than there is", start)
        return [self.value(depth + 1) for _ in range(size)] if kinds[code] == 2 else self.map(size, depth)

    def text(self, size: int) -> str:
        """Text of so many bytes."""
        start = self.at
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise NotCanonical("text is not UTF-8", start) from error

    def map(self, size: int, depth: int) -> dict[str, Any]:
        """A map whose keys are text and ascend."""
        found: dict[str, Any] = {}
        before = None
        for _ in range(size):
            start = self.at
            key = self.value(depth + 1)
            if type(key) is not str or (before is not None and key.encode() <= before):
                raise NotCanonical("a map's keys are not text, or not in order", start)
            before = key.encode()
            found[key] = self.value(depth + 1)
        return found

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if self.at + size > len(self.data):
            raise NotCanonical("it ends too early", len(self.data))
        taken = self.data[self.at : self.at + size]
        self.at += size
        return taken


def read_all(data: bytes) -> Any:
    """The only value in the bytes. Raises NotCanonical."""
    reader = Reader(data)
    value = reader.value()
    if reader.at != len(data):
        raise NotCanonical("something follows", reader.at)
    return value
