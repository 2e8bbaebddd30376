"""Where an append expects its agent to stand."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["ANY", "NO_STREAM", "STREAM_EXISTS", "Expected", "ExpectedVersion", "holds"]


class Expected(Enum):
    """Expectations that are not an exact version."""

    ANY = "any"
    NO_STREAM = "no-stream"
    STREAM_EXISTS = "stream-exists"

    def __repr__(self) -> str:
        return self.name


ANY: Final = Expected.ANY
NO_STREAM: Final = Expected.NO_STREAM
STREAM_EXISTS: Final = Expected.STREAM_EXISTS

ExpectedVersion = int | Expected
"""An exact version (0 is an agent without events), or one of ANY, NO_STREAM, STREAM_EXISTS."""


def holds(expected: ExpectedVersion, version: int) -> bool:
    """Whether an agent at `version` meets the expectation."""
    if expected is Expected.ANY:
        return True
    if expected is Expected.NO_STREAM:
        return version == 0
    if expected is Expected.STREAM_EXISTS:
        return version > 0
    return expected == version
