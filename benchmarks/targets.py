"""What the benchmarks are held against, and why a target is missed where it is: a page without the second would be an advertisement."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["REASONS", "TARGETS", "Target"]


class Target(NamedTuple):
    """A key of a benchmark and its bound."""

    benchmark: str
    key: str
    bound: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        """Whether a value keeps to it."""
        return value >= self.bound if self.at_least else value <= self.bound


TARGETS = (
    Target("append", "ratios.eventsourcing", 25),
    Target("append", "ratios.langgraph", 25),
    Target("append", "ratios.emmett", 10),
    Target("append", "ratios.eventsourcing_alone", 1.5),
    Target("append", "ratios.langgraph_alone", 1.5),
    Target("append", "ratios.emmett_alone", 1.5),
    Target("embedded", "ratios.openai_sqlite", 1),
    Target("embedded", "ratios.raw_sqlite", 0.5),
    Target("bytes", "ratios.raw", 0.9, at_least=False),
    Target("load", "ratios.growth", 3, at_least=False),
    *(Target("load", f"ratios.{name}", 1) for name in ("eventsourcing", "langgraph", "emmett", "message_db", "openai")),
    Target("growth", "ratios.append_at_end", 0.95),
    Target("replay", "figures.replay_per_s", 150_000),
    Target("replay", "ratios.replay_vs_copy", 0.3),
    Target("replay", "figures.pit_ms_p99", 50, at_least=False),
    Target("replay", "figures.fork_ms", 5, at_least=False),
    Target("recovery", "figures.takeover_p99_s", 5, at_least=False),
    Target("recovery", "figures.recovery_after_detection_s", 2, at_least=False),
    Target("backup", "ratios.backup_vs_pg_dump", 1),
    Target("backup", "ratios.restore_vs_pg_restore", 1),
    Target("backup", "figures.rpo_s", 60, at_least=False),
    Target("transfer", "figures.gb_per_min", 6),
    Target("migration", "figures.downtime_p50_ms", 4, at_least=False),
    Target("migration", "figures.downtime_p99_ms", 10, at_least=False),
    Target("migration", "figures.lost", 0, at_least=False),
    Target("migration", "figures.doubled", 0, at_least=False),
    Target("migration", "ratios.bystander_p99", 1.2, at_least=False),
)

_FULL = (
    "With 256 callers perdure's process is what is full, not Postgres: an event takes it about 27 µs (a quarter of them compression, encryption, "
    "hash chain and checks, which this peer does not do; most of the rest are coroutines, a few for each caller), and the server 12."
)
_ALONE = (
    "One round trip and one flush on both sides, so the flush and the waking of two processes decide. perdure's own part is about 300 µs of its "
    "process, and 175 of the server, 60 of them for the lock, the look for removed ids and the insert into three unique indexes."
)
_MESSAGE_DB_ALONE = (
    "One round trip, one flush and about 145 µs of the server on both sides; but one caller's append takes perdure's process 250 µs and node's 100. "
    "Of the difference checks, compression, encryption and the hash chain, which this peer does not do, are a tenth; the rest are the steps of a "
    "group commit for one event (a task that is woken, the lock on the writer, a watch over the server's silence), which 32 callers share."
)
_EMBEDDED_ALONE = (
    "One caller after the other, on a disk that flushes in 40 µs: nothing is shared. Of 160 µs the insert into four trees and its flush take 90, the "
    "way to the thread and back 15, checks, sealing and the chain 30 (docs/adr/0002-append.md). Callers at once share a flush: 32 of them are "
    "twice as fast as with this peer."
)
_REPLAY = (
    "One thread folds, and a COPY neither opens nor checks anything: of 3.8 µs an event more than half are spent in libraries (SHA-256 0.4, AES-GCM "
    "0.5, zstd 0.45, msgpack 0.4, libpq 0.3), the rest in the interpreter and in no one place (docs/adr/0017-replay.md)."
)
_MIGRATION = (
    "Two processors carry two nodes, Postgres, the coordinator and a thousand commands a second, and are silent for as long as `gap_without` says "
    "when nothing moves. A flip adds one question to the source and one commit; of the longest silences only two of five are one "
    "(docs/adr/0013-migration.md)."
)
_GROWTH = (
    "It is the agents at work, not the events: with a thousand agents an append takes perdure's process the same before and after ten million "
    "events (`append_at_end_to_few`), and with 100 000 in turns it takes a sixth more after 200 000 events already. What an append needs of its "
    "agent (name, row, key, newest version and hash: 1.4 KB in a dozen objects) is in the processor's second cache of 2 MB for a thousand agents, "
    "not for 100 000: some 45 fetches from memory, 5 µs. None of them is asked for again, and the server needs 13 µs instead of 11, which nobody "
    "waits for."
)
REASONS: dict[tuple[str, str], str] = {
    ("growth", "ratios.append_at_end"): _GROWTH,
    **{("append", f"ratios.{name}"): _FULL for name in ("eventsourcing", "langgraph", "emmett")},
    **{("append", f"ratios.{name}_alone"): _ALONE for name in ("eventsourcing", "langgraph", "emmett")},
    ("append", "ratios.message_db_alone"): _MESSAGE_DB_ALONE,
    ("embedded", "ratios.raw_sqlite"): (
        "An event is sealed, numbered and chained, stands in four trees instead of two, and is handed to a thread, so that the event loop does not "
        "wait for the disk: 136 µs of processor time, where a bare row takes 42 (docs/adr/0002-append.md)."
    ),
    **{("embedded", f"ratios.{name}_sqlite"): _EMBEDDED_ALONE for name in ("openai", "eventsourcing")},
    ("transfer", "figures.gb_per_min"): (
        "An agent of 2 MB costs the coordinator 14 to 20 ms of processor time, by the clock that it has, and the servers 14 to 18: "
        "rows, chain and state at both ends, nine records of the recovery log an event. Two processors give 40 at 20 ms an agent "
        "(docs/adr/0014-between-engines.md)."
    ),
    **{("migration", f"figures.downtime_{part}_ms"): _MIGRATION for part in ("p50", "p99")},
    ("migration", "ratios.bystander_p99"): (
        "Copying an agent and comparing the copy, before it is held, take source and target some 40 ms of processor time a move, in pieces of a few "
        "milliseconds, for which others in the same processes wait (docs/adr/0013-migration.md)."
    ),
    **{("replay", key): _REPLAY for key in ("figures.replay_per_s", "ratios.replay_vs_copy")},
}
"""Only causes that were looked for and found, in a profile or a plan; a page says of all others that none is known."""
