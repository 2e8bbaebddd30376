"""A state at hand: what a process keeps of a read for the next one."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, Self

import msgspec

from perdure.engine.log.contract import Head, from_microseconds
from perdure.engine.replay import Folded
from perdure.projections.contract import Token

__all__ = ["KeptState", "ReadState"]

_encode = msgspec.msgpack.Encoder().encode
_decode: Any = msgspec.msgpack.Decoder().decode


class ReadState(NamedTuple):
    """A state as it was read. The document is the caller's own. time: of its newest event (None before the first)."""

    document: dict[str, Any]
    version: int
    epoch: int
    time: datetime | None


class KeptState:
    """A state at hand, encoded: what is decoded anew for every caller cannot be changed by any. One that is read once, and kept by nobody, is
    never encoded."""

    __slots__ = ("_encoded", "_first", "chain", "time_us", "token")

    def __init__(self, document: dict[str, Any], token: Token, time_us: int, chain: bytes) -> None:
        self._first: dict[str, Any] | None = document
        self._encoded: bytes | None = None
        self.token = token
        self.time_us = time_us
        self.chain = chain

    @classmethod
    def of(cls, folded: Folded, generation: int) -> Self:
        """What was folded from a log of this generation."""
        return cls(folded.document, Token(generation, folded.epoch, folded.version), folded.time_us, folded.chain)

    def stands(self, head: Head, generation: int) -> bool:
        """Whether it is the newest state."""
        return self.token.generation == generation and self.token.version == head.version and self.chain == head.chain

    @property
    def size_bytes(self) -> int:
        """Of the encoded document; whoever keeps the state asks for it, before anybody has got the document."""
        if self._encoded is None:
            assert self._first is not None, "a state that is kept was given away before"
            self._encoded = _encode(self._first)
        return len(self._encoded)

    def document(self) -> dict[str, Any]:
        """A document that nobody else has: the first caller gets the one that was encoded."""
        document, self._first = self.shown(), None
        return document

    def shown(self) -> dict[str, Any]:
        """The document to look at: it is another's, too."""
        if self._first is not None:
            return self._first
        assert self._encoded is not None, "a state that nobody keeps is read once"
        document: dict[str, Any] = _decode(self._encoded)
        return document

    def folded(self) -> Folded:
        """The state to be folded on."""
        return Folded(self.document(), self.token.version, self.token.epoch, self.time_us, self.chain, [])

    def read(self) -> ReadState:
        """The state as a caller gets it."""
        return ReadState(self.document(), self.token.version, self.token.epoch, from_microseconds(self.time_us) if self.time_us else None)
