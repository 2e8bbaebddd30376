"""LangGraph's savers, asked directly: one checkpoint a message, and no graph around it to pay for. Variants: postgres, sqlite."""

from __future__ import annotations

import importlib.metadata
from contextlib import AsyncExitStack
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint

from benchmarks.peers.kit import Driver, Message, serve

POOL = 32


class LangGraph(Driver):
    """A thread per stream, its messages in the one channel `messages`."""

    async def open(self) -> dict[str, Any]:
        """Tables are made by the saver."""
        self.stack = AsyncExitStack()
        self.saver: Any = await (self._postgres() if self.url else self._sqlite())
        await self.saver.setup()
        self.kept: dict[str, list[Message]] = {}
        self.newest: dict[str, Any] = {}
        settings: dict[str, Any] = {"expected version": "none", "encryption": "off", "checkpoint": "one a message, no pending writes"}
        if self.url:
            settings |= {"connections": POOL}
        else:
            settings |= {"durability": "journal_mode=WAL, synchronous as SQLite's default (FULL)"}
        package = "langgraph-checkpoint-" + ("postgres" if self.url else "sqlite")
        return {"version": importlib.metadata.version(package), "settings": settings}

    async def _postgres(self) -> Any:
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
        from psycopg.rows import dict_row
        from psycopg_pool import AsyncConnectionPool

        given = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        pool: Any = AsyncConnectionPool(self.url, min_size=POOL, max_size=POOL, kwargs=given, open=False, timeout=60)
        return AsyncPostgresSaver(await self.stack.enter_async_context(pool))

    async def _sqlite(self) -> Any:
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        return await self.stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(self.folder / "checkpoints.db")))

    async def append(self, stream: str, message: Message) -> None:
        """The list with the message at its end, as the next checkpoint."""
        await self._put(stream, [message])

    async def fill(self, stream: str, messages: list[Message]) -> None:
        """One checkpoint that holds them all: one a message would grow with the square of their number."""
        await self._put(stream, messages)

    async def _put(self, stream: str, more: list[Message]) -> None:
        held = self.kept.setdefault(stream, [])
        held += more
        version = f"{len(held):032}.0"
        checkpoint = empty_checkpoint() | {"channel_values": {"messages": list(held)}, "channel_versions": {"messages": version}}
        config = self.newest.get(stream, {"configurable": {"thread_id": stream, "checkpoint_ns": ""}})
        metadata = {"source": "loop", "step": len(held), "parents": {}}
        self.newest[stream] = await self.saver.aput(config, checkpoint, metadata, {"messages": version})

    async def load(self, stream: str) -> int:
        """The newest checkpoint of the thread."""
        found = await self.saver.aget_tuple({"configurable": {"thread_id": stream, "checkpoint_ns": ""}})
        return len(found.checkpoint["channel_values"]["messages"])

    async def close(self) -> None:
        """Close the pool."""
        await self.stack.aclose()


if __name__ == "__main__":
    serve(LangGraph)
