"""Which peers there are, what is measured of each, and what it does not give."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["OURS", "SIDES", "SideFacts", "embedded", "on_postgres"]


class SideFacts(NamedTuple):
    """One way of using one product. peer: the folder under benchmarks/peers with its driver. lacks: what it gives less than perdure does."""

    name: str
    peer: str
    variant: str
    title: str
    lacks: tuple[str, ...] = ()
    limit: bool = False

    @property
    def embedded(self) -> bool:
        """Whether it writes into a folder instead of Postgres."""
        return self.variant == "sqlite"


_PLAIN = ("encryption", "compression", "a hash chain")
_NO_IDS = ("idempotent retries", *_PLAIN)

OURS = {
    "postgres": SideFacts("perdure", "perdure", "postgres", "perdure"),
    "sqlite": SideFacts("perdure_embedded", "perdure", "sqlite", "perdure, embedded"),
}
SIDES: dict[str, SideFacts] = {
    each.name: each
    for each in (
        SideFacts("eventsourcing", "eventsourcing", "postgres", "eventsourcing", _NO_IDS),
        SideFacts(
            *("eventsourcing_functions", "eventsourcing", "functions", "eventsourcing, database functions"),
            ("readers that miss no event", *_NO_IDS),
        ),
        SideFacts("langgraph", "langgraph", "postgres", "LangGraph's AsyncPostgresSaver", ("expected versions", *_PLAIN)),
        SideFacts("emmett", "emmett", "postgres", "emmett-postgresql", _NO_IDS),
        SideFacts("message_db", "message_db", "postgres", "message-db", _NO_IDS),
        SideFacts(
            "openai", "openai_agents", "postgres", "OpenAI Agents' SQLAlchemySession", ("expected versions", "ordered events", *_NO_IDS)
        ),
        SideFacts("eventsourcing_sqlite", "eventsourcing", "sqlite", "eventsourcing on SQLite", _NO_IDS),
        SideFacts("langgraph_sqlite", "langgraph", "sqlite", "LangGraph's AsyncSqliteSaver", ("expected versions", *_PLAIN)),
        SideFacts("openai_sqlite", "openai_agents", "sqlite", "OpenAI Agents' SQLiteSession", ("expected versions", *_NO_IDS)),
        SideFacts("raw_sqlite", "raw_sqlite", "sqlite", "a bare row in SQLite", ("everything but the row",), limit=True),
    )
}


def on_postgres() -> list[SideFacts]:
    """The peers that run on Postgres."""
    return [each for each in SIDES.values() if not each.embedded]


def embedded() -> list[SideFacts]:
    """The peers that write into a file of their own process, and SQLite itself."""
    return [each for each in SIDES.values() if each.embedded]
