"""The contract between the log and what it is stored in.

The log's rules (versions, epochs, idempotency, hash chain) are pure and stand once, in `perdure.engine.log.decide`. A store does the few
things that need a database, and promises:

- **Partitions are serial.** `append` holds the locks of its partitions, taken in ascending order, from before it reads where they stand
  until its commit. Whatever `propose` saw is therefore still true when its rows are committed.
- **All or nothing, durable.** When `append` returns, every row of the last proposal is on disk; when it raises, none is, or the outcome is
  unknown (`Unavailable`): the caller repeats with the same event ids.
- **Offsets are dense.** `read` returns offsets after+1, after+2, … without a hole, and never a row that could still be rolled back.
- **Only inserts.** Nothing about an event is ever updated. Whole events are removed from an agent's beginning only (`FloorRows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

import msgspec

from perdure.engine.log.archive_rows import ArchiveRows
from perdure.engine.log.arrival_rows import ArrivalRows
from perdure.engine.log.floor_rows import FloorRows
from perdure.engine.log.fork_rows import ForkRows
from perdure.engine.log.records import AgentName, AgentRecord, Document, EventFilter, Head, Lease, Position, SealedEvent, TailEvent
from perdure.engine.log.snapshot_rows import SnapshotRows

__all__ = [
    "LogStore",
    "Proposal",
    "Propose",
    "StaleWriter",
]


class StaleWriter(Exception):
    """The caller's knowledge of a partition is too old to be brought up to date event by event; it must ask for positions and heads anew."""


class Proposal(msgspec.Struct):
    """What one commit shall write.

    rows: in the order of their offsets within each partition. lookups: (partition, agent key, event id) whose absence from the log the
    rows rely on; the store looks before it inserts. Those of a fork's past lie in other partitions, where nothing that counts can change.
    ownership: (agent key, owner, epoch) changes that go with the rows. refused: whether some lookups are those of a request that was refused: it
    may be a retry, and only under the lock is it sure that where its agent stands was not old.

    behind: of the one that was committed, events of others that propose was not told of, in order of partition and offset. None is of an agent of
    these rows; the store has put the rows behind them, and `rows` tells where they are.
    """

    rows: list[SealedEvent]
    lookups: list[tuple[int, int, UUID]]
    ownership: list[tuple[int, str, int]]
    refused: bool = False
    behind: Sequence[TailEvent] = ()


Propose = Callable[[int, Sequence[TailEvent], Mapping[tuple[int, UUID], int]], Proposal]
"""propose(now_us, tail, found): called at least once per append. now_us: the store's clock. tail: events newer than the positions that the
caller knew, in offset order. found: (agent key, event id) → version of looked-up ids that the log holds. The last proposal is committed."""


class LogStore(SnapshotRows, FloorRows, ForkRows, ArchiveRows, ArrivalRows, Protocol):
    """A place that a log is kept in: Postgres, SQLite. All methods may raise `Unavailable`."""

    partitions: int
    generation: int
    """Bumped when the log is restored or promoted."""

    async def close(self) -> None: ...

    # --- agents ---
    async def agents(self, names: Sequence[AgentName]) -> list[AgentRecord | None]:
        """The rows of these agents, in order; None where there is none."""
        ...

    async def create_agents(self, records: Sequence[AgentRecord]) -> list[AgentRecord]:
        """Insert rows (keys 0: the store gives them) and return the rows that then stand; one that was there already stays as it is."""
        ...

    async def heads(self, agents: Sequence[AgentRecord]) -> list[Head]:
        """Where these agents stand; a fork without events of its own at what it goes on from."""
        ...

    async def list_agents(
        self, tenant: str, *, type: str | None = None, labels: Mapping[str, str] | None = None, after: str = "", limit: int = 100
    ) -> list[AgentRecord]:
        """A page of the tenant's agents in order of their ids, after the id `after`."""
        ...

    async def tenants(self) -> list[str]:
        """Every tenant that has agents, sorted."""
        ...

    async def list_owned(self, owner: str, *, after: int = 0, limit: int = 1_000) -> list[AgentRecord]:
        """Agents of every tenant that belong to this owner, in order of their keys, after the key `after`."""
        ...

    async def count_owned(self, owner: str) -> int:
        """How many agents belong to this owner."""
        ...

    async def describe_agent(self, agent: AgentRecord, *, type: str, labels: Mapping[str, str]) -> None:
        """Set the directory facts of an agent."""
        ...

    async def swap_data_keys(self, agents: Sequence[AgentRecord], data_keys: Sequence[bytes]) -> int:
        """Give each agent's row another wrapped data key where it still has the record's; in how many rows. All in one transaction."""
        ...

    # --- events ---
    async def positions(self) -> dict[int, Position]:
        """Where every partition stands."""
        ...

    async def append(self, known: Mapping[int, Position], propose: Propose) -> dict[int, Position]:
        """Lock the partitions in `known`, propose until nothing is stale, commit; the positions after it (see the module's promises).

        Raises StaleWriter, with nothing written, when more than `limits.TAIL_EVENTS_MAX` events are newer than a known position."""
        ...

    async def read(self, partition: int, after: int, limit: int, *, sparse: bool = False) -> list[SealedEvent]:
        """At most `limit` events of a partition, offsets after+1 and on. For the engine's own processes: it crosses tenants.

        Raises Compacted where some of them were removed; sparse: takes what is left, which then has holes."""
        ...

    async def read_tails(self, after: Mapping[int, int], limit: int) -> list[SealedEvent]:
        """The newest events of several partitions, for whoever is near their ends: of each at most `limit` events, offsets after[partition]+1
        and on, in order of partition and offset. It may end early, e.g. at the end of a segment, and where the next offset is not there,
        because it was removed, it gives nothing or what comes after the hole: `read` then tells. One round trip; crosses tenants."""
        ...

    async def read_agent(self, agent: AgentRecord, where: EventFilter, limit: int, *, descending: bool = False) -> list[SealedEvent]:
        """At most `limit` events of one agent in order of version. Raises Compacted when the filter begins with versions that were removed;
        descending, the page ends at the first that is there."""
        ...

    async def read_many(self, wanted: Sequence[tuple[AgentRecord, int, int]]) -> list[list[SealedEvent]]:
        """Of each agent its events from one version to another, in order of version; few round trips for all. For whoever knows how many there
        are: what was removed, is a fork's past, or lies far back may be missing, and `read_agent` then has it or tells. Each agent once."""
        ...

    async def read_tenant(self, tenant: str, partition: int, after: int, where: EventFilter, limit: int) -> list[SealedEvent]:
        """As `read`, of one tenant and filtered; offsets then have holes. Raises Compacted where some of the tenant's were removed."""
        ...

    async def find(self, agent: AgentRecord, ids: Sequence[UUID]) -> list[SealedEvent]:
        """The agent's events with these ids, those of its past too, in order of version."""
        ...

    async def version_at(self, agent: AgentRecord, time_us: int) -> int:
        """The newest version whose time is at or before `time_us`, one of its past where its own are later; 0 where there is none. Raises
        Compacted where it was removed, with all before the one that the floor follows."""
        ...

    def look_before_ms(self, partition: int, offset: int, count: int) -> int:
        """For `count` events that shall follow `offset`: an id that is a UUIDv7 of this time (unix milliseconds) or later cannot be in the
        partition twice without the store's own unique index refusing it; any other id must be among a proposal's lookups (0: none must). When
        the index refuses, the store looks up all ids of the proposal and proposes again."""
        ...

    def signal(self) -> Any:
        """An object with `async wait(timeout_s) -> None` that returns soon after an append of this process, or at the timeout."""
        ...

    # --- control documents, blobs, leases ---
    async def get_document(self, scope: str, name: str) -> Document | None: ...

    async def list_documents(self, scope: str) -> list[Document]: ...

    async def put_document(self, scope: str, name: str, value: bytes, *, expected: int | None) -> Document | None:
        """Write; expected: the revision that must stand (0: none; None: whichever). None is returned when another one stands."""
        ...

    async def delete_document(self, scope: str, name: str) -> None: ...

    async def put_blob(self, tenant: str, name: bytes, payload: bytes) -> None:
        """Keep sealed bytes under a content-derived name; the same name again is no error and changes nothing."""
        ...

    async def get_blob(self, tenant: str, name: bytes) -> bytes | None: ...

    async def acquire_lease(self, name: str, holder: str, duration_s: float) -> Lease | None:
        """Take or renew a lease; None while somebody else holds it unexpired."""
        ...

    async def release_lease(self, lease: Lease) -> None:
        """Give it back, if it is still this holder's and epoch's."""
        ...

    async def list_leases(self, prefix: str) -> list[Lease]:
        """Unexpired leases whose name starts with the prefix."""
        ...
