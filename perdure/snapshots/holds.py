"""Who needs an agent's past: restores that run now, and agents that were made from another one's version.

Compaction and holders take turns as writers and the sweep do (`turns`): each takes its own lease first and looks for the other's second, so one
of them sees the other. A hold is a lease, and ends with the process that has it; what is kept for good is a document.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import uuid4

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentRecord
from perdure.errors import Conflict, Unavailable
from perdure.limits import SNAPSHOT_HOLDS_MAX, SNAPSHOT_TURN_WAIT_S
from perdure.snapshots.turns import LEASE_S, POLL_S, Turn

__all__ = ["compacting", "held_versions", "holding", "keep_version", "release_version"]

HOLDING: Final = "snapshots/holding/"
"""Holders have one of these, by number; the lease's holder says what is held: agent key, version and a token."""
COMPACTING: Final = "snapshots/compacting/"
COMPACTIONS_MAX: Final = 64
"""Agents share so many leases, so that the table of leases stays small."""
KEPT: Final = "snapshots/kept/"


@asynccontextmanager
async def holding(store: LogStore, agent: AgentRecord, version: int, *, wait_s: float = SNAPSHOT_TURN_WAIT_S) -> AsyncIterator[None]:
    """Within, nothing is removed that the agent's state at this version needs. Raises Unavailable when a compaction does not end in time."""
    deadline_s = time.monotonic() + wait_s
    turn = await _take_slot(store, f"{agent.agent_key}:{version}:{uuid4().hex}")
    keeping = asyncio.create_task(turn.keep(), name="perdure-snapshot-hold")
    try:
        while any(lease.name == _compacting(agent) for lease in await store.list_leases(COMPACTING)):
            if time.monotonic() >= deadline_s:
                raise Unavailable("the agent's log is being compacted", hint="try again later", tenant=agent.tenant, agent=agent.agent)
            await asyncio.sleep(POLL_S)
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await turn.give_back()


async def _take_slot(store: LogStore, holder: str) -> Turn:
    taken = {lease.name for lease in await store.list_leases(HOLDING)}
    for number in range(SNAPSHOT_HOLDS_MAX):
        name, asked_s = f"{HOLDING}{number}", time.monotonic()
        if name not in taken and (lease := await store.acquire_lease(name, holder, LEASE_S)) is not None:
            return Turn(store, lease, asked_s)
    raise Unavailable(f"{SNAPSHOT_HOLDS_MAX} states are being restored at once", hint="try again later")


@asynccontextmanager
async def compacting(store: LogStore, agent: AgentRecord, *, wait_s: float = SNAPSHOT_TURN_WAIT_S) -> AsyncIterator[Turn]:
    """Within, who wants to hold a version of the agent waits. Raises Conflict when others compact it, or agents that share its lease, for
    longer than `wait_s`."""
    deadline_s, holder = time.monotonic() + wait_s, uuid4().hex
    while True:
        asked_s = time.monotonic()
        lease = await store.acquire_lease(_compacting(agent), holder, LEASE_S)
        if lease is not None:
            break
        if asked_s >= deadline_s:
            message = f"agent {agent.agent!r} is being compacted already"
            raise Conflict(message, hint="try again later", tenant=agent.tenant, agent=agent.agent)
        await asyncio.sleep(POLL_S)
    turn = Turn(store, lease, asked_s)
    keeping = asyncio.create_task(turn.keep(), name="perdure-compaction")
    try:
        yield turn
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await turn.give_back()


async def held_versions(store: LogStore, agent: AgentRecord) -> set[int]:
    """The versions of the agent that somebody needs now."""
    held = {int(document.name) for document in await store.list_documents(_kept(agent))}
    for lease in await store.list_leases(HOLDING):
        agent_key, version, _ = lease.holder.split(":")
        if int(agent_key) == agent.agent_key:
            held.add(int(version))
    return held


async def keep_version(store: LogStore, agent: AgentRecord, version: int, who: str) -> None:
    """Let the state at this version stay within reach until `release_version`: a fork that points to it needs it."""
    async with holding(store, agent, version):
        await store.put_document(_kept(agent), str(version), who.encode(), expected=None)


async def release_version(store: LogStore, agent: AgentRecord, version: int) -> None:
    """Nobody needs it any more."""
    await store.delete_document(_kept(agent), str(version))


def _compacting(agent: AgentRecord) -> str:
    return f"{COMPACTING}{agent.agent_key % COMPACTIONS_MAX}"


def _kept(agent: AgentRecord) -> str:
    return f"{KEPT}{agent.agent_key}"
