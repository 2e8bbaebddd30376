"""Nodes: processes that own agents. Each holds a lease, and tells in the log's database where it can be reached."""

from __future__ import annotations

import time
from typing import Final, Literal, NamedTuple

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.errors import InvalidInput
from perdure.identifiers import uuid7
from perdure.limits import AGENT_ID_LENGTH_MAX
from perdure.recovery.leases import LEASE_S, KeptLease

__all__ = ["LEASE_PREFIX", "Node", "NodeState", "announce", "announce_end", "check_node_name", "list_nodes", "node_lease"]

SCOPE: Final = "nodes"
LEASE_PREFIX: Final = "node/"

_encode = msgspec.msgpack.Encoder().encode


class Node(msgspec.Struct, frozen=True):
    """What a node tells of itself. address: URL of its commands ('' where it serves none). agents_max: how many agents it takes.

    session: the epoch of its lease; a node that was started again has a newer one. started_us, ended_us: unix microseconds; ended_us is 0 for one
    that has not told of its end: it lives, or was lost.
    """

    name: str
    address: str
    agents_max: int
    session: int
    started_us: int
    version: str
    pid: int = 0
    ended_us: int = 0


class NodeState(NamedTuple):
    """A node as others see it. alive: its lease holds, and it is the session that announced itself."""

    node: Node
    alive: bool

    @property
    def word(self) -> Literal["alive", "ended", "lost"]:
        """In one word. ended: it stopped in order, so nobody has to find out what became of it; lost: it did not."""
        return "alive" if self.alive else "ended" if self.node.ended_us else "lost"


_decode = msgspec.msgpack.Decoder(Node).decode


def check_node_name(name: str) -> str:
    """The name, when it can be one. Raises InvalidInput."""
    if not 0 < len(name) <= AGENT_ID_LENGTH_MAX or not name.isprintable() or "/" in name:
        raise InvalidInput(f"{name!r} cannot name a node", hint=f"1 to {AGENT_ID_LENGTH_MAX} printable characters, without /")
    return name


async def node_lease(store: LogStore, name: str, duration_s: float = LEASE_S) -> KeptLease | None:
    """The lease of a node for a new session of it; None while an older session's lease has not run out."""
    return await KeptLease.acquire(store, LEASE_PREFIX + check_node_name(name), uuid7().hex, duration_s)


async def announce(store: LogStore, node: Node) -> None:
    """Tell, or tell anew."""
    await store.put_document(SCOPE, node.name, _encode(node), expected=None)


async def announce_end(store: LogStore, name: str, session: int) -> None:
    """Tell that this session of the node ends in order; nothing where a newer one has announced itself since."""
    document = await store.get_document(SCOPE, name)
    if document is None or (node := _decode(document.value)).session != session:
        return
    ended = msgspec.structs.replace(node, ended_us=time.time_ns() // 1000)
    await store.put_document(SCOPE, name, _encode(ended), expected=document.revision)


async def list_nodes(store: LogStore) -> list[NodeState]:
    """Every node that has announced itself, sorted by name."""
    sessions = {lease.name.removeprefix(LEASE_PREFIX): lease.epoch for lease in await store.list_leases(LEASE_PREFIX)}
    nodes = [_decode(document.value) for document in await store.list_documents(SCOPE)]
    return [NodeState(node, sessions.get(node.name) == node.session) for node in sorted(nodes, key=lambda node: node.name)]
