"""Taking agents in from another engine, in SQLite. The functions block; they run in one transaction, which is the log's one lock."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from perdure.engine.log import sqlite_append
from perdure.engine.log.arrival_rows import Room, Settling, Swap, check_runs, other_owner, placed
from perdure.engine.log.records import AgentRecord, SealedEvent
from perdure.engine.log.signal import SignalHub
from perdure.engine.log.sqlite_events import position

__all__ = ["SqliteArrivals"]

_NEWEST = """SELECT max(coalesce((SELECT max(version) FROM events WHERE agent_key = ?1), 0),
                       coalesce((SELECT version - 1 FROM floors WHERE agent_key = ?1), 0),
                       coalesce((SELECT parent_version FROM agents WHERE agent_key = ?1), 0))"""


class SqliteArrivals:
    """The part of `LogStore` that is `ArrivalRows`."""

    _file: Path
    _read: Callable[..., Awaitable[Any]]
    _commit: Callable[..., Awaitable[Any]]
    _hub: SignalHub

    async def clock_us(self) -> int:
        """See `ArrivalRows.clock_us`: this machine's."""
        return time.time_ns() // 1000

    async def room(self) -> Room:
        """See `ArrivalRows.room`: of the file system that the folder is on, with what it keeps for its administrator left out."""
        used: int = await self._read(_used)
        return Room(used, shutil.disk_usage(self._file.parent).free)

    async def receive_events(
        self, agents: Sequence[AgentRecord], events: Sequence[SealedEvent], *, owner: str, settle: Settling | None = None
    ) -> None:
        """See `ArrivalRows.receive_events`."""
        if events:
            await self._commit(_receive, agents, events, owner, settle)
            self._hub.notify()

    async def swap_owners(self, swaps: Sequence[Swap]) -> list[bool]:
        """See `ArrivalRows.swap_owners`."""
        swapped: list[bool] = await self._commit(_swap_owners, swaps)
        return swapped

    async def swap_owner(self, agent: AgentRecord, before: str, owner: str) -> bool:
        """See `ArrivalRows.swap_owner`."""
        return (await self.swap_owners([Swap(agent, before, owner)]))[0]


def _used(connection: sqlite3.Connection) -> int:
    ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
    ((page_bytes,),) = connection.execute("PRAGMA page_size").fetchall()
    return int(pages) * int(page_bytes)


def _receive(
    connection: sqlite3.Connection, agents: Sequence[AgentRecord], events: Sequence[SealedEvent], owner: str, settle: Settling | None
) -> None:
    newest = {}
    for agent in agents:
        marked = connection.execute("SELECT 1 FROM agents WHERE agent_key = ? AND owner = ?", (agent.agent_key, owner)).fetchall()
        if not marked:
            raise other_owner(owner)
        ((newest[agent.agent_key],),) = connection.execute(_NEWEST, (agent.agent_key,)).fetchall()
    rows = placed(agents, events, position(connection, agents[0].partition).offset)
    check_runs(rows, newest)
    sqlite_append.insert(connection, rows)
    epochs = {event.agent_key: event.epoch for event in rows}
    changes = [
        (settle.owner if settle else owner, settle.epoch if settle else epochs.get(agent.agent_key, agent.epoch), agent.agent_key)
        for agent in agents
    ]
    connection.executemany("UPDATE agents SET owner = ?, epoch = ? WHERE agent_key = ?", changes)


def _swap_owners(connection: sqlite3.Connection, swaps: Sequence[Swap]) -> list[bool]:
    sql = "UPDATE agents SET owner = ? WHERE agent_key = ? AND tenant_key = ? AND owner = ?"
    rows = [(swap.owner, swap.agent.agent_key, swap.agent.tenant_key, swap.before) for swap in swaps]
    return [connection.execute(sql, row).rowcount == 1 for row in rows]
