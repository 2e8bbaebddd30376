"""A row a transaction in SQLite, with the settings of perdure's own log: as fast as an embedded store could be. No product."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from benchmarks.peers.kit import Message, SyncDriver, serve

_TABLE = "CREATE TABLE rows (id INTEGER PRIMARY KEY, stream TEXT NOT NULL, version INTEGER NOT NULL, payload BLOB NOT NULL, UNIQUE (stream, version))"


class RawSqlite(SyncDriver):
    """One connection."""

    async def open(self) -> dict[str, Any]:
        """A table of rows."""
        self.connection = sqlite3.connect(self.folder / "rows.db", isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(_TABLE)
        self.versions: dict[str, int] = {}
        return {"version": sqlite3.sqlite_version, "settings": {"durability": "synchronous=FULL, WAL"}}

    def append_now(self, stream: str, message: Message) -> None:
        """One row, one commit."""
        self.versions[stream] = self.versions.get(stream, 0) + 1
        row = (stream, self.versions[stream], json.dumps(message, separators=(",", ":")))
        self.connection.execute("INSERT INTO rows (stream, version, payload) VALUES (?, ?, ?)", row)

    async def fill(self, stream: str, messages: list[Message]) -> None:
        """All rows in one transaction."""
        self.connection.execute("BEGIN")
        for message in messages:
            self.append_now(stream, message)
        self.connection.execute("COMMIT")

    async def load(self, stream: str) -> int:
        """All rows, decoded."""
        rows = self.connection.execute("SELECT payload FROM rows WHERE stream = ? ORDER BY version", (stream,))
        return len([json.loads(payload) for (payload,) in rows])

    async def replay(self) -> int:
        """All rows, decoded."""
        return sum(1 for (payload,) in self.connection.execute("SELECT payload FROM rows ORDER BY id") if json.loads(payload) is not None)

    async def close(self) -> None:
        """Close the file."""
        self.connection.close()


if __name__ == "__main__":
    serve(RawSqlite)
