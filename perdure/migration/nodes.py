"""What is said about nodes and agents that bears on where agents are put: nodes being drained, and agents pinned to where they are."""

from __future__ import annotations

from typing import Final

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName
from perdure.engine.moves import document_name

__all__ = ["Pin", "drained_nodes", "is_drained", "pins", "set_drained", "set_pin"]

DRAINED: Final = "drained-nodes"
PINS: Final = "pinned-agents"


class Pin(msgspec.Struct, frozen=True):
    """An agent that stays where it is. reason: for people."""

    tenant: str
    agent: str
    reason: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pin).decode


async def is_drained(store: LogStore, node: str) -> bool:
    """Whether the node shall get no more agents."""
    return await store.get_document(DRAINED, node) is not None


async def drained_nodes(store: LogStore) -> set[str]:
    """All of them."""
    return {document.name for document in await store.list_documents(DRAINED)}


async def set_drained(store: LogStore, node: str, drained: bool) -> None:
    """The node shall get no more agents, or again some."""
    if drained:
        await store.put_document(DRAINED, node, b"", expected=None)
    else:
        await store.delete_document(DRAINED, node)


async def pins(store: LogStore) -> dict[AgentName, Pin]:
    """Every pinned agent."""
    found = [_decode(document.value) for document in await store.list_documents(PINS)]
    return {AgentName(pin.tenant, pin.agent): pin for pin in found}


async def set_pin(store: LogStore, name: AgentName, reason: str | None) -> None:
    """Pin the agent to where it is; None: unpin it."""
    if reason is None:
        await store.delete_document(PINS, document_name(name))
    else:
        await store.put_document(PINS, document_name(name), _encode(Pin(*name, reason)), expected=None)
