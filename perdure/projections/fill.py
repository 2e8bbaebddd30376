"""States from the log: what fills a gap, a miss, or a cache that went wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from perdure import limits
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentRecord
from perdure.engine.replay import Folded, fold_log
from perdure.engine.vault import Vault
from perdure.errors import Compacted
from perdure.projections.cells_codec import Layout, Opened, open_state
from perdure.projections.contract import CachedState, Token
from perdure.projections.hot import HotState

__all__ = ["Base", "fold_on", "fold_state", "fold_whole", "open_cached"]


Base = Callable[[AgentRecord, int | None], Awaitable[Folded | None]]
"""base(agent, to_version): a state to fold on from (of a snapshot), the newest at or before that version (None: the newest there is), or None
where there is none. Its document is given away."""


async def fold_on(
    store: LogStore,
    vault: Vault,
    record: AgentRecord,
    base: Base | None,
    *,
    start: Folded | None = None,
    to_version: int | None = None,
    page_events: int = limits.READ_PAGE_EVENTS,
    rests: bool = False,
) -> Folded:
    """The agent's state at a version (None: the newest), folded on from `start`, else from a snapshot, else from its first event.

    Where events that are wanted were removed, before or while they are read, the snapshot that stands for them is gone on from.
    Raises what `fold_log` raises; Compacted when the version itself was removed.
    """
    if start is None and base is not None:
        start = await base(record, to_version)
    try:
        return await fold_log(store, vault, record, start=start, to_version=to_version, page_events=page_events, rests=rests)
    except Compacted as removed:
        start = await base(record, to_version) if base is not None else None
        if start is None or start.version + 1 < removed.details["first_version"]:
            raise
    return await fold_log(store, vault, record, start=start, to_version=to_version, page_events=page_events, rests=rests)


async def fold_whole(store: LogStore, vault: Vault, record: AgentRecord, base: Base | None, *, to_version: int | None = None) -> Folded:
    """The agent's state from all of its events that the log has, for who wants to check them: from the first one, or from the snapshot that stands
    for those that were removed. Raises what `fold_log` raises; Compacted where there is no such snapshot, or the version itself was removed.
    """
    (floor,) = await store.floors([record])
    if floor.version == 1 or base is None or (to_version is not None and to_version < floor.version - 1):
        return await fold_log(store, vault, record, to_version=to_version)
    start = await base(record, floor.version - 1)
    return await fold_log(store, vault, record, start=start, to_version=to_version)


async def fold_state(store: LogStore, vault: Vault, record: AgentRecord, base: Base | None = None) -> HotState:
    """The agent's newest state, folded from the log. Raises what opening its events raises."""
    folded = await fold_on(store, vault, record, base)
    token = Token(store.generation, folded.epoch, folded.version)
    return HotState(folded.document, token, folded.time_us, folded.chain, Layout(), 0)


async def open_cached(vault: Vault, tenant: str, agent: str, cached: CachedState) -> Opened:
    """The cached state, opened; raises as `open_state`, after newer dictionaries and keys of the tenant were looked for."""
    cipher = await vault.cipher(tenant, agent)
    return await vault.opening(tenant, lambda: open_state(cipher, cached))
