"""Names that come from content and place: agents, runs, event ids. The same file gives the same names, on every machine."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from perdure import limits
from perdure.engine.digest import canonical

__all__ = ["agent_id", "event_id", "run_id", "short_hash", "shortened"]

PART_LENGTH_MAX: Final = 120
"""One part of an agent's name, in characters; longer ones end in a hash of the whole part."""
_HASH_LENGTH: Final = 8
_DOMAIN: Final = b"perdure-import-1"
_VERSION_8: Final = 0x8 << 76
_VARIANT: Final = 0b10 << 62
_FREE_BITS: Final = ~((0xF << 76) | (0b11 << 62))


def event_id(kind: str, agent: str, index: int, content: Any) -> UUID:
    """The UUID (RFC 9562, version 8) of the event at an index of an agent: 122 bits of BLAKE2b over all four, length-prefixed.

    The content must have passed the checks of an event's values: only then it has canonical bytes.
    """
    digest = blake2b(digest_size=16, person=_DOMAIN)
    for part in (kind.encode(), agent.encode(), index.to_bytes(8, "big"), canonical(content)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return UUID(int=int.from_bytes(digest.digest(), "big") & _FREE_BITS | _VERSION_8 | _VARIANT)


def agent_id(*parts: str) -> str:
    """The name of an agent of several parts, e.g. `gpt-4o-airline/task-12/trial-0`, within the limit on its length."""
    name = "/".join(shortened(part, PART_LENGTH_MAX) for part in parts if part)
    return shortened(name, limits.AGENT_ID_LENGTH_MAX)


def run_id(agent: str) -> str:
    """A short correlation id for the run of an agent whose own ids are long or missing."""
    return "run-" + short_hash(agent.encode())


def shortened(text: str, length_max: int) -> str:
    """The text in printable characters; if it is too long, its end and a hash of it all: names of runs tend to differ at their ends."""
    printable = "".join(character if character.isprintable() else "_" for character in text.strip())
    if len(printable) <= length_max:
        return printable if printable == text.strip() else f"{printable[: length_max - _HASH_LENGTH - 1]}~{short_hash(_bytes(text))}"
    return f"{printable[-(length_max - _HASH_LENGTH - 1) :].lstrip('-_. ')}~{short_hash(_bytes(text))}"


def short_hash(content: bytes) -> str:
    """Eight hexadecimal digits of BLAKE2b."""
    return blake2b(content, digest_size=_HASH_LENGTH // 2, person=_DOMAIN).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
