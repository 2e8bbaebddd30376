"""States of real conversations, and larger ones put together from them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from perdure.engine.digest import canonical
from perdure.engine.fold import apply
from perdure.engine.importing import BrokenRecord, read_conversations
from perdure.engine.replay import Folded
from perdure.security.cipher import Cipher
from perdure.security.dictionary_set import BUILTIN
from perdure.security.tenant_key import TenantKey
from perdure.snapshots.keys import SnapshotKeys

__all__ = ["conversations", "copied", "folded", "keys_of", "large_state"]

DATA_DEFAULT = Path(__file__).parent.parent.parent / "shared" / "data"
FILES = {
    "tau-bench": "tau-bench/gpt-4o-airline.json",
    "tau-bench few-shot": "tau-bench/*.jsonl",
    "swe-agent": "swe-agent/traj/*.traj",
    "who-and-when": "who-and-when/*/*.json",
}


def conversations(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The final states of all conversations by kind of agent, shuffled."""
    folder = Path(os.environ.get("PERDURE_TEST_DATA", DATA_DEFAULT)) / "trajectories"
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, pattern in FILES.items():
        states = [state for file in sorted(folder.glob(pattern)) for state in _states(file)]
        random.Random(seed).shuffle(states)
        found[kind] = states
    return found


def _states(file: Path) -> Iterator[dict[str, Any]]:
    for record in read_conversations(str(file)):
        if isinstance(record, BrokenRecord):
            raise record.as_error()
        document: dict[str, Any] = {}
        for event in record.events:
            document, _ = apply(document, event.changes)
        yield document


def copied(document: Any) -> Any:
    """The same value, nothing of which is shared with the original."""
    return msgspec.msgpack.decode(canonical(document))


def large_state(size_bytes: int, found: dict[str, list[dict[str, Any]]], seed: int = 0) -> dict[str, Any]:
    """A state with the messages of many conversations in one list, at least so many bytes; every message is an object of its own."""
    order = random.Random(seed)
    histories = [canonical(state["messages"]) for states in found.values() for state in states]
    messages: list[Any] = []
    gathered = 0
    while gathered < size_bytes:
        history = order.choice(histories)
        messages += msgspec.msgpack.decode(history)
        gathered += len(history)
    return {"messages": messages, "status": "working", "profile": {"name": "assembled", "steps": len(messages)}}


def folded(document: dict[str, Any], version: int = 1) -> Folded:
    """A document as if it had been folded."""
    return Folded(document, version, 0, 1, bytes(32), [])


def keys_of(agent: str = "benchmark", tenant: str = "acme") -> SnapshotKeys:
    """Keys of an agent, the same in every run."""
    return SnapshotKeys(TenantKey(tenant, {1: b"\1" * 32}), Cipher(tenant, agent, b"\2" * 32, BUILTIN))
