"""`eventsourcing`: aggregates kept in memory, saved through an application. Variants: postgres, functions (its database functions), sqlite."""

from __future__ import annotations

import importlib.metadata
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from benchmarks.peers.kit import Message, SyncDriver, serve

POOL = 32


class Conversation(Aggregate):
    """Messages in their order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: list[Message] = []

    @staticmethod
    def create_id(name: str) -> Any:
        """The same for the same name."""
        return uuid5(NAMESPACE_URL, name)

    @event("MessageAdded")
    def add(self, message: Message) -> None:
        """Add one message."""
        self.messages.append(message)


class Conversations(Application[Any]):
    """With the library's defaults: JSON, no compression, no cipher."""


class Eventsourcing(SyncDriver):
    """One application."""

    async def open(self) -> dict[str, Any]:
        """Tables are made by the library."""
        self.app = Conversations(self._environment())
        self.kept: dict[str, Conversation] = {}
        settings: dict[str, Any] = {"expected version": "on", "encryption": "off", "caller threads": "one per caller"}
        if self.url:
            settings |= {"connections": POOL, "database functions": "on" if self.variant == "functions" else "off (default)"}
        else:
            settings |= {"durability": "journal_mode=WAL, synchronous as SQLite's default (FULL)"}
        return {"version": importlib.metadata.version("eventsourcing"), "settings": settings}

    def _environment(self) -> dict[str, str]:
        if not self.url:
            return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(self.folder / "log.db"), "SQLITE_LOCK_TIMEOUT": "30"}
        parts = urlsplit(self.url)
        return {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": parts.path.removeprefix("/"),
            "POSTGRES_HOST": parts.hostname or "",
            "POSTGRES_PORT": str(parts.port or 5432),
            "POSTGRES_USER": parts.username or "",
            "POSTGRES_PASSWORD": parts.password or "",
            "POSTGRES_POOL_SIZE": str(POOL),
            "POSTGRES_MAX_OVERFLOW": "0",
            "POSTGRES_CONNECT_TIMEOUT": "60",
            "POSTGRES_ENABLE_DB_FUNCTIONS": "y" if self.variant == "functions" else "n",
        }

    def append_now(self, stream: str, message: Message) -> None:
        """The aggregate knows its version; saving checks it."""
        if stream not in self.kept:
            self.kept[stream] = Conversation(stream)
        self.kept[stream].add(message)
        self.app.save(self.kept[stream])

    async def fill(self, stream: str, messages: list[Message]) -> None:
        """All events in one save."""
        conversation = Conversation(stream)
        for message in messages:
            conversation.add(message)
        self.app.save(conversation)

    async def load(self, stream: str) -> int:
        """All its events, folded."""
        found: Conversation = self.app.repository.get(Conversation.create_id(stream))
        return len(found.messages)

    async def replay(self) -> int:
        """The notification log in pages, decoded, folded into aggregates."""
        aggregates: dict[Any, Any] = {}
        position, events = 0, 0
        while page := self.app.recorder.select_notifications(start=position + 1, limit=500):
            for notification in page:
                domain_event: Any = self.app.mapper.to_domain_event(notification)
                aggregates[domain_event.originator_id] = domain_event.mutate(aggregates.get(domain_event.originator_id))
            position, events = page[-1].id, events + len(page)
        return events

    async def close(self) -> None:
        """Close the pool."""
        self.app.close()


if __name__ == "__main__":
    serve(Eventsourcing)
