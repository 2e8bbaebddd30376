"""Migrations as they are written down: phases, what may follow what, and the record. Pure.

Invariants (attacked by tests):

1. A migration ends once: no step leads out of `aborted` or `rolled_back`, and only a rollback out of `committed`.
2. `committed` is reached from no phase before `flipping`, and never without the log having given the agent to the target.
3. One migration of an agent is open at a time (the record's document is named by the agent).
"""

from __future__ import annotations

from typing import Final, Literal
from uuid import UUID

import msgspec

from perdure.engine.log.records import AgentName
from perdure.errors import Conflict

__all__ = [
    "CLOSED",
    "Kind",
    "Mark",
    "Migration",
    "Phase",
    "Strategy",
    "Transfer",
    "advanced",
    "can_abort_quietly",
    "event_id",
]

Phase = Literal["planned", "preparing", "pre_copy", "flipping", "fenced", "verifying", "committed", "aborted", "rolled_back"]
Strategy = Literal["live", "cold", "blue_green", "emergency"]
Transfer = Literal["snapshot", "streaming", "incremental"]
Kind = Literal["planned", "emergency", "rollback"]

_NEXT: Final[dict[Phase, tuple[Phase, ...]]] = {
    "planned": ("preparing", "aborted"),
    "preparing": ("pre_copy", "flipping", "aborted"),
    "pre_copy": ("flipping", "aborted"),
    "flipping": ("fenced", "committed", "aborted"),
    "fenced": ("verifying", "committed", "aborted"),
    "verifying": ("committed", "aborted"),
    "committed": ("rolled_back",),
    "aborted": (),
    "rolled_back": (),
}
CLOSED: Final[frozenset[Phase]] = frozenset(("committed", "aborted", "rolled_back"))
_QUIET: Final[frozenset[Phase]] = frozenset(("planned", "preparing", "pre_copy"))


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """A phase, and when it began (unix microseconds, of the process that wrote it)."""

    phase: Phase
    at_us: int


class Migration(msgspec.Struct, frozen=True, omit_defaults=True):
    """One migration of one agent.

    id: a UUIDv7 as hexadecimal. epoch: under which the source owned the agent when it was planned. session: the target's lease epoch once it has
    taken the migration on. witness_*: where the coordinator's own fold of the log stood, and its digest. wait: the flip waits until `go`.
    beats: signs of life of a long copy. distrusted: what the source has in memory is known to be wrong, only the log is believed.

    What came of it: bytes of the state, events and rounds copied, attempts at the flip and the path taken (`flip`, `held`, `fence`), version,
    chain hash and digest at the hand-over, final_epoch, and the downtime in milliseconds: source, from when it held (or was fenced) until it knew;
    target, from when the source held or the log was asked until the target served.
    """

    id: str
    tenant: str
    agent: str
    source: str
    target: str
    epoch: int
    phase: Phase = "planned"
    strategy: Strategy = "live"
    transfer: Transfer = "streaming"
    kind: Kind = "planned"
    reason: str = ""
    actor: str = ""
    group: str = ""
    source_address: str = ""
    target_address: str = ""
    session: int = 0
    wait: bool = False
    go: bool = True
    distrusted: bool = False
    created_us: int = 0
    marks: tuple[Mark, ...] = ()
    witness_version: int = 0
    witness_digest: str = ""
    beats: int = 0
    copied_version: int = 0
    copy_s: float = 0.0
    bytes: int = 0
    events: int = 0
    rounds: int = 0
    attempts: int = 0
    path: str = ""
    version: int = 0
    checksum: str = ""
    digest_source: str = ""
    digest_target: str = ""
    verified_version: int = 0
    final_epoch: int = 0
    downtime_source_ms: float = 0.0
    downtime_target_ms: float = 0.0
    duration_ms: float = 0.0
    integrity: str = ""
    error: str = ""
    rollback_of: str = ""
    rolled_back_by: str = ""

    @property
    def name(self) -> AgentName:
        """Whose."""
        return AgentName(self.tenant, self.agent)

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return self.phase not in CLOSED


def advanced(migration: Migration, phase: Phase, at_us: int, **facts: object) -> Migration:
    """The migration in its next phase. Raises Conflict where that phase cannot follow."""
    if phase not in _NEXT[migration.phase]:
        raise Conflict(
            f"migration {migration.id} is {migration.phase}; {phase} does not follow", tenant=migration.tenant, agent=migration.agent
        )
    return msgspec.structs.replace(migration, phase=phase, marks=(*migration.marks, Mark(phase, at_us)), **facts)


def can_abort_quietly(migration: Migration) -> bool:
    """Whether the record alone decides: before `flipping` the target may not touch the agent."""
    return migration.phase in _QUIET


def event_id(migration: str, number: int) -> UUID:
    """The id of one of the migration's events: the same whoever writes it, however often. Its time is the migration's own."""
    base = UUID(hex=migration).int
    return UUID(int=(base & ~0xFFFFFFFF) | ((base + number) & 0xFFFFFFFF))
