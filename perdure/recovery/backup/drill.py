"""The drill: a backup is restored into a scratch place, and what it holds is compared with the living log, agent by agent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import msgspec

from perdure.engine.digest import digest
from perdure.engine.log.contract import LogStore
from perdure.engine.log.paging import agent_pages
from perdure.engine.log.records import AgentName, AgentRecord, EventFilter
from perdure.engine.replay import fold_log
from perdure.engine.vault import Vault
from perdure.errors import Compacted, PerdureError
from perdure.recovery.backup.catalog import Catalog
from perdure.recovery.backup.manifest import BackupManifest, Proof
from perdure.recovery.backup.objects import Vessel
from perdure.recovery.backup.restore import Restorer

__all__ = ["Drilled", "drill"]

PROBLEMS_MAX = 100


class Drilled(msgspec.Struct, frozen=True):
    """ok: every compared agent is the same, in state and history. restore_s: how long the restore took; compare_s: the comparison."""

    backup: str
    ok: bool
    events: int
    agents: int
    compared: int
    restore_s: float
    compare_s: float
    problems: tuple[str, ...]


async def drill(
    vessel: Vessel,
    manifest: BackupManifest,
    living: Vault,
    scratch: Vault,
    *,
    fraction: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Drilled:
    """Restore into the empty log of `scratch` and compare with the log of `living`; proven is what passes. Raises what a restore raises.

    fraction: of the agents that are compared, chosen anew each time.
    """
    began_at = time.monotonic()
    restored = await Restorer(vessel, manifest, scratch.store).run()
    restore_s = time.monotonic() - began_at
    compared, problems = 0, list[str]()
    seen = 0
    async for page in agent_pages(scratch.store):
        for agent in page:
            seen += 1
            if random.random() < fraction:  # noqa: S311 - a sample
                problem = await _compare(living, scratch, agent)
                compared += 1
                if problem and len(problems) < PROBLEMS_MAX:
                    problems.append(f"{agent.tenant}/{agent.agent}: {problem}")
        if progress is not None:
            progress(seen, restored.agents)
    compare_s = time.monotonic() - began_at - restore_s
    done = Drilled(
        manifest.id, not problems, restored.events, restored.agents, compared, round(restore_s, 3), round(compare_s, 3), tuple(problems)
    )
    if done.ok:
        await Catalog(vessel).prove(Proof(manifest.id, time.time_ns() // 1000, compared, restored.events, restore_s))
    return done


async def _compare(living: Vault, scratch: Vault, agent: AgentRecord) -> str:
    """'' when the restored agent is what the living one was at that version."""
    name = AgentName(agent.tenant, agent.agent)
    try:
        original = await living.record(*name)
        (head,) = await scratch.store.heads([agent])
        (there,) = await living.store.heads([original])
        if there.version < head.version:
            return f"the backup has version {head.version}, the log only {there.version}"
        if (await living.store.floors([original]))[0].version > 1:
            return await _compare_chain(living.store, original, head.version, head.chain)
        ours = await fold_log(living.store, living, original, to_version=head.version)
        theirs = await fold_log(scratch.store, scratch, agent)
    except PerdureError as problem:
        return f"{type(problem).__name__}: {problem}"
    if ours.chain != theirs.chain:
        return "another history"
    return "" if digest(ours.document) == digest(theirs.document) else "another state"


async def _compare_chain(store: LogStore, agent: AgentRecord, version: int, chain: bytes) -> str:
    """Of an agent whose first events were removed: the chain hash stands for the whole history."""
    try:
        events = await store.read_agent(agent, EventFilter(from_version=version, to_version=version), 1)
    except Compacted:
        return ""
    return "" if not events or events[0].chain == chain else "another history"
