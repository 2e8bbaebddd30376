"""The sessions of OpenAI's Agents SDK. Variants: postgres (SQLAlchemySession over asyncpg), sqlite (SQLiteSession)."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from agents import SQLiteSession
from agents.extensions.memory.sqlalchemy_session import SQLAlchemySession

from benchmarks.peers.kit import Driver, Message, serve

POOL = 32


class OpenAI(Driver):
    """A session per stream."""

    async def open(self) -> dict[str, Any]:
        """Tables are made by the SDK."""
        self.sessions: dict[str, Any] = {}
        self.database: Any = None
        settings: dict[str, Any] = {"expected version": "none", "encryption": "off"}
        if self.url:
            from sqlalchemy.ext.asyncio import create_async_engine

            url = self.url.replace("postgresql://", "postgresql+asyncpg://", 1)
            self.database = create_async_engine(url, pool_size=POOL, max_overflow=0, pool_timeout=60)
            await SQLAlchemySession("first", engine=self.database, create_tables=True).get_items()
            settings |= {"connections": POOL}
        else:
            settings |= {"durability": "journal_mode=WAL, synchronous as SQLite's default (FULL)"}
        return {"version": importlib.metadata.version("openai-agents"), "settings": settings}

    def _session(self, stream: str) -> Any:
        if stream not in self.sessions:
            file = self.folder / "sessions.db"
            self.sessions[stream] = SQLAlchemySession(stream, engine=self.database) if self.url else SQLiteSession(stream, file)
        return self.sessions[stream]

    async def append(self, stream: str, message: Message) -> None:
        """One item."""
        await self._session(stream).add_items([message])

    async def fill(self, stream: str, messages: list[Message]) -> None:
        """All items at once."""
        await self._session(stream).add_items(messages)

    async def load(self, stream: str) -> int:
        """All items of the session."""
        return len(await self._session(stream).get_items())

    async def close(self) -> None:
        """Close what is open."""
        if self.database is not None:
            await self.database.dispose()
            return
        for session in self.sessions.values():
            session.close()


if __name__ == "__main__":
    serve(OpenAI)
