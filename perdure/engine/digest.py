"""Canonical bytes of a value, and the digest of a document.

Two documents have the same digest if and only if they are the same: 1, 1.0 and true differ, 0.0 and -0.0 differ, the order of a map's
members does not matter, a tuple is a list.

The digest is SHA-256 over `perdure-state-1`, then for every cell in the order of their names: the name's length (4 bytes, big endian), the
name, SHA-256 of the cell's canonical value. `IncrementalDigest` keeps the inner hashes, so that an event costs its own cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from perdure.engine.cells import split

__all__ = ["FollowingDigest", "IncrementalDigest", "canonical", "digest", "same"]

_DOMAIN: Final = b"perdure-state-1"
_encoder = msgspec.msgpack.Encoder(order="deterministic")


def canonical(value: Any) -> bytes:
    """The one msgpack encoding of a value: map members sorted by their keys' UTF-8 bytes, integers as short as they can be."""
    return _encoder.encode(value)


def digest(document: Mapping[str, Any]) -> bytes:
    """The SHA-256 digest of a document, 32 bytes."""
    return IncrementalDigest(split(document)).digest()


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same to the last bit: 1, 1.0 and True are not."""
    return one is other or (bool(one == other) and _encoder.encode(one) == _encoder.encode(other))


class IncrementalDigest:
    """The digest of a document that changes cell by cell."""

    def __init__(self, cells: Mapping[bytes, Any]) -> None:
        self._hashes: dict[bytes, bytes] = {}
        self.update(cells, ())

    def update(self, put: Mapping[bytes, Any], remove: Iterable[bytes]) -> None:
        """Take over what `cells.touched` returns."""
        for name in remove:
            self._hashes.pop(name, None)
        for name, value in put.items():
            self._hashes[name] = sha256(_encoder.encode(value)).digest()

    def put(self, name: bytes, encoded: bytes) -> None:
        """Take over a cell by its canonical encoding."""
        self._hashes[name] = sha256(encoded).digest()

    def remove(self, name: bytes) -> None:
        """A cell that is not there any more."""
        self._hashes.pop(name, None)

    def digest(self) -> bytes:
        """The digest as of now, 32 bytes; the same as `digest(document)`."""
        parts = [_DOMAIN]
        for name in sorted(self._hashes):
            parts += (len(name).to_bytes(4, "big"), name, self._hashes[name])
        return sha256(b"".join(parts)).digest()


class FollowingDigest:
    """The digest of a document that is folded on: what was touched since the digest was asked for last is hashed anew, and nothing else."""

    def __init__(self) -> None:
        self._digest: IncrementalDigest | None = None
        self._touched: set[bytes] = set()

    @property
    def touched(self) -> set[bytes] | None:
        """Where the fold notes the cells that it puts or removes; None as long as all of them are still to be hashed."""
        return None if self._digest is None else self._touched

    def of(self, document: Mapping[str, Any]) -> bytes:
        """The digest of the document as it is now, 32 bytes."""
        cells = split(document)
        if self._digest is None:
            self._digest = IncrementalDigest(cells)
        else:
            put = {name: cells[name] for name in self._touched if name in cells}
            self._digest.update(put, [name for name in self._touched if name not in cells])
        self._touched.clear()
        return self._digest.digest()

    def forget(self) -> None:
        """The next document is another one."""
        self._digest = None
        self._touched.clear()
