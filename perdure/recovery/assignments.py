"""Assignments: which agents a node shall take over. Left in the log's database by whoever decides, picked up by the node.

One document a node, changed by compare-and-set. An assignment names the epoch that it was decided on: when the agent has moved on since, the
node's take-over is refused and the assignment is void, so that a late or repeated one does no harm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.errors import Unavailable
from perdure.limits import CONTROL_WRITE_ATTEMPTS_MAX

__all__ = ["Assignment", "assign", "assigned", "settle"]

SCOPE: Final = "assignments"


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    """One agent, and the epoch under which somebody else owned it when this was decided. recovery: id of what it is part of."""

    tenant: str
    agent: str
    epoch: int
    recovery: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Assignment]).decode


async def assigned(store: LogStore, node: str) -> list[Assignment]:
    """What the node shall take over."""
    document = await store.get_document(SCOPE, node)
    return _decode(document.value) if document else []


async def assign(store: LogStore, node: str, wanted: Sequence[Assignment]) -> None:
    """Add to what the node shall take over, in this order; what is there already is not added twice."""
    await _change(store, node, wanted, remove=False)


async def settle(store: LogStore, node: str, done: Collection[Assignment]) -> None:
    """Take away what the node took over, or what turned out void."""
    await _change(store, node, done, remove=True)


async def _change(store: LogStore, node: str, wanted: Collection[Assignment], *, remove: bool) -> None:
    these = set(wanted)
    for _ in range(CONTROL_WRITE_ATTEMPTS_MAX):
        document = await store.get_document(SCOPE, node)
        listed = _decode(document.value) if document else []
        standing = set(listed)
        changed = (
            [each for each in listed if each not in these] if remove else [*listed, *(each for each in wanted if each not in standing)]
        )
        if changed == listed:
            return
        if await store.put_document(SCOPE, node, _encode(changed), expected=document.revision if document else 0) is not None:
            return
    raise Unavailable(f"others change the assignments of node {node!r} all the time")
