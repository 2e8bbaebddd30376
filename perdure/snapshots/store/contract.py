"""What a place for snapshots must do. Local files, S3 and whatever wraps them are `SnapshotStore`s; `perdure.testing.store_kit` attacks them.

What always holds:
- A name has one content for ever. `put` never replaces: of several that put the same name at once, one gets True, all others get False.
- What `put` has answered, with True or with False, is there after the power is cut.
- A name is shown by `get`, `facts` and `list` with its whole content or not at all.

Contents are sealed before they come here, and names are keyed hashes: a store learns sizes and times, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final, NamedTuple, Protocol

from perdure import limits
from perdure.errors import InvalidInput, LimitExceeded

__all__ = ["ObjectFacts", "SnapshotStore", "check_folder", "check_name", "check_size", "is_name"]

_NAME: Final = re.compile(r"(?!\.)[a-z0-9._-]+(?:/(?!\.)[a-z0-9._-]+)*")
_HINT: Final = "segments of a-z 0-9 . _ - that begin with no dot, joined by single slashes"


class ObjectFacts(NamedTuple):
    """What a store tells of an object. modified_us: unix microseconds on the store's clock, some stores know it by the second only."""

    name: str
    size_bytes: int
    modified_us: int


class SnapshotStore(Protocol):
    """A store of immutable objects. All methods may raise `Unavailable`, `Denied`, and `InvalidInput` for what is no name."""

    async def put(self, name: str, content: bytes) -> bool:
        """Keep the content under a new name; durable when this returns. False: the name was there already, and keeps what it had.

        An attempt whose answer was lost and that is made again may also be told False. Raises LimitExceeded above
        `limits.STORE_OBJECT_BYTES_MAX`."""
        ...

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        """The whole content. Raises ObjectNotFound; LimitExceeded, before it is read, when there are more than `bytes_max` bytes."""
        ...

    async def facts(self, name: str) -> ObjectFacts | None:
        """What is known of an object; None where there is none."""
        ...

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectFacts]:
        """The objects below a folder, in order of their names' bytes, page by page.

        prefix: '' for all, or a folder that ends in a slash. after: only names behind this one. Objects that are put or deleted while the
        list runs may be missing or shown; all others are shown once."""
        ...

    async def delete(self, name: str) -> None:
        """Remove an object; one that is absent is no error."""
        ...

    async def close(self) -> None:
        """Give back threads and connections; a second time is no error."""
        ...


def is_name(name: str) -> bool:
    """Whether perdure could have made this name."""
    return len(name) <= limits.STORE_NAME_LENGTH_MAX and _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """The name, when it is one that perdure makes. Raises InvalidInput: nothing path-like from outside ever reaches a store."""
    if not is_name(name):
        raise InvalidInput(f"{name[:100]!r} is no name of an object", hint=_HINT)
    return name


def check_folder(prefix: str) -> str:
    """The prefix of a list, when it is '' or a folder. Raises InvalidInput."""
    if prefix and not (prefix.endswith("/") and check_name(prefix[:-1])):
        raise InvalidInput(f"{prefix[:100]!r} is no folder of objects", hint="'' or a name that ends in a slash")
    return prefix


def check_size(name: str, size_bytes: int, bytes_max: int) -> None:
    """Raises LimitExceeded when an object has more bytes than are wanted."""
    if size_bytes > bytes_max:
        raise LimitExceeded(f"the object {name} has {size_bytes} bytes, the limit is {bytes_max}", object=name)
