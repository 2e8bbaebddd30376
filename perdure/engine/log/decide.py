"""The rules of an append, pure: who may write what, where, and what it becomes.

Invariants (each is attacked by tests):

1. Within an agent, versions are 1, 2, 3 …, and each event's chain hash covers the one before.
2. Within a partition, offsets follow the newest one without a hole; time never goes back.
3. An agent holds an event id once: an append whose ids are all there already is answered with where they stand, whatever it expected. The
   versions that a fork shares with its past count.
4. An append under an older epoch than the agent's, or to a fenced agent, writes nothing.
5. A request is written whole or not at all, also across agents; one request's refusal changes nothing for its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec

from perdure import limits
from perdure.engine.log.chain import chain_hash
from perdure.engine.log.codec import Draft
from perdure.engine.log.contract import Proposal
from perdure.engine.log.expected import ExpectedVersion, holds
from perdure.engine.log.records import AgentRecord, Head, Position, SealedEvent

__all__ = [
    "FENCED",
    "LEAVING",
    "OWNED",
    "Ahead",
    "AlreadyThere",
    "Item",
    "Mixed",
    "Outcome",
    "Plan",
    "Refused",
    "Request",
    "Shut",
    "Written",
    "head_after",
    "ids_ahead",
    "moved",
    "plain_row",
    "plan",
]

ID_AHEAD_MAX_MS = int(limits.ID_CLOCK_MARGIN_S * 1000)

OWNED = "perdure.owned"
"""Type of the event with which an agent gets a new owner and epoch."""
FENCED = "perdure.fenced"
"""Type of the event after which nobody may append until the next `perdure.owned`."""
LEAVING = "perdure.leaving"
"""As `perdure.fenced`, of an agent that moves to another log: nobody can take it here any more but who takes the move back."""

_SHUT = frozenset((FENCED, LEAVING))


class Item(msgspec.Struct, frozen=True, gc=False):
    """Events for one agent. owner: None, or who owns it from these events on (the epoch then grows by one). chain: None, or the hash that must
    stand at the expected version. over_fence: whether a new owner may take a fenced agent. takes_back: and one that was leaving. fresh: whether
    the ids were made for this one call, so that none of them can be in the log yet."""

    record: AgentRecord
    expected: ExpectedVersion
    epoch: int | None
    drafts: Sequence[Draft]
    owner: str | None = None
    chain: bytes | None = None
    over_fence: bool = True
    takes_back: bool = False
    fresh: bool = False


Request = Sequence[Item]
"""What one caller wants written at once; each agent stands in it once."""


class Written(msgspec.Struct, frozen=True, gc=False):
    """The events are in the log; one entry an item: (first version, first offset, time in unix microseconds, epoch, chain hash at the end)."""

    places: list[tuple[int, int, int, int, bytes]]


class AlreadyThere(msgspec.Struct, frozen=True, gc=False):
    """Every event is in the log from before; one list of versions an item."""

    versions: list[list[int]]


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The item's agent is not where it was expected."""

    item: int
    version: int


class Shut(msgspec.Struct, frozen=True, gc=False):
    """The item's agent belongs to a newer epoch, or is fenced."""

    item: int
    epoch: int
    fenced: bool


class Mixed(msgspec.Struct, frozen=True, gc=False):
    """Some of the item's ids are in the log and some are not: this is not a retry."""

    item: int
    known: UUID


class Ahead(msgspec.Struct, frozen=True, gc=False):
    """The item's event id is a UUIDv7 from the future; its time could not tell later where it was written."""

    item: int
    id: UUID
    ahead_s: float


Outcome = Written | AlreadyThere | Refused | Shut | Mixed | Ahead


class Plan(NamedTuple):
    """What a batch comes to: one outcome a request, the proposal, and the heads that hold once it is committed."""

    outcomes: list[Outcome]
    proposal: Proposal
    heads: dict[int, Head]


def head_after(version: int, epoch: int, type: str, chain: bytes) -> Head:
    """Where an agent stands after an event; nothing but `perdure.owned` can follow one that shuts it, so its last event tells."""
    return Head(version, epoch, chain, type in _SHUT, type == LEAVING)


class _Planner:
    """One batch being decided; lives for one call of `plan`.

    It runs for every event there is, so what most events do not need (ids known from before, looking up, owners) is behind one test each.
    """

    def __init__(
        self,
        now_us: int,
        heads: Mapping[int, Head],
        positions: Mapping[int, Position],
        found: Mapping[tuple[int, UUID], int],
        look: Mapping[int, int],
    ) -> None:
        self.now_us = now_us
        self.ahead = ids_ahead(now_us)
        self.heads = heads
        self.moved: dict[int, Head] = {}
        self.offsets = {partition: position.offset for partition, position in positions.items()}
        self.times = {partition: max(now_us, position.time_us) for partition, position in positions.items()}
        self.found = found
        self.look = look
        self.looks = any(look.values())
        self.proposal = Proposal([], [], [])
        self.rows = self.proposal.rows
        self.held: dict[int, dict[UUID, int]] = {}
        self.held_of_rows = 0

    def head(self, agent_key: int) -> Head:
        return self.moved.get(agent_key) or self.heads[agent_key]

    def judge(self, request: Request) -> Outcome:
        """The refusal, the earlier result, or what the request becomes."""
        if len(request) == 1 and (written := self._plain(request[0])) is not None:
            return written
        if self.found or any(item.record.agent_key in self.moved for item in request):
            earlier = self._earlier(request)
            if earlier is not None:
                return earlier
        for number, item in enumerate(request):
            refusal = self._refusal(number, item)
            if refusal is not None:
                self._look_up(request, everything=True)
                self.proposal.refused = True
                return refusal
        if self.looks:
            self._look_up(request, everything=False)
        return Written([self._write(item) for item in request])

    def _plain(self, item: Item) -> Written | None:
        """As `plain_row`, in this batch."""
        agent, partition = item.record.agent_key, item.record.partition
        if self.found or agent in self.moved:
            return None
        offset, time_us = self.offsets[partition] + 1, self.times[partition]
        row = plain_row(item, self.heads[agent], offset, time_us, self.look[partition], self.ahead)
        if row is None:
            return None
        self.offsets[partition] = offset
        self.rows.append(row)
        self.moved[agent] = Head(row.version, row.epoch, row.chain)
        return Written([(row.version, offset, time_us, row.epoch, row.chain)])

    def _earlier(self, request: Request) -> Outcome | None:
        """What comes of ids that the agent holds already, by the log or by this batch."""
        there = [self._versions(item) for item in request]
        flat = [version for versions in there for version in versions]
        if flat and all(version is not None for version in flat):
            return AlreadyThere([[version for version in versions if version is not None] for versions in there])
        for number, versions in enumerate(there):
            for draft, version in zip(request[number].drafts, versions, strict=True):
                if version is not None:
                    return Mixed(number, draft.id)
        return None

    def _versions(self, item: Item) -> list[int | None]:
        for row in self.rows[self.held_of_rows :]:
            self.held.setdefault(row.agent_key, {})[row.id] = row.version
        self.held_of_rows = len(self.rows)
        here = self.held.get(item.record.agent_key, {})
        return [self._known(item.record, draft.id) or here.get(draft.id) for draft in item.drafts]

    def _known(self, record: AgentRecord, id: UUID) -> int | None:
        """The version that holds an id in the log: the agent's own, or of its past as far as it is shared."""
        version = self.found.get((record.agent_key, id))
        for past in record.past:
            there = self.found.get((past.agent_key, id), 0)
            if 0 < there <= past.version:
                return there
        return version

    def _refusal(self, number: int, item: Item) -> Outcome | None:
        head = self.head(item.record.agent_key)
        shut = head.fenced and (item.owner is None or not item.over_fence or (head.leaving and not item.takes_back))
        if shut or (item.epoch is not None and item.epoch != head.epoch):
            return Shut(number, head.epoch, head.fenced)
        if (item.expected != head.version and not holds(item.expected, head.version)) or (
            item.chain is not None and item.chain != head.chain
        ):
            return Refused(number, head.version)
        for draft in item.drafts:
            id = draft.id.int
            if id >= self.ahead and id >> 76 & 0xF == 7:
                return Ahead(number, draft.id, (id >> 80) / 1000 - self.now_us / 1e6)
        return None

    def _look_up(self, request: Request, *, everything: bool) -> None:
        # An id that is too old to be held by the index alone must be looked for; a refused request may be a retry of one that was written.
        for item in request:
            partition = item.record.partition
            since_ms = self.look[partition]
            for draft in () if item.fresh else item.drafts:
                number = draft.id.int
                if everything or (since_ms and (number >> 76 & 0xF != 7 or number >> 80 < since_ms)):
                    self.proposal.lookups.append((partition, item.record.agent_key, draft.id))
                    self.proposal.lookups += [(past.partition, past.agent_key, draft.id) for past in item.record.past]

    def _write(self, item: Item) -> tuple[int, int, int, int, bytes]:
        record = item.record
        agent, partition = record.agent_key, record.partition
        head = self.head(agent)
        time_us = self.times[partition]
        epoch = head.epoch if item.owner is None else head.epoch + 1
        version, chain = head.version, head.chain
        offset = first = self.offsets[partition]
        type = ""
        for draft in item.drafts:
            version += 1
            offset += 1
            type = draft.type
            chain = chain_hash(chain, record.tenant, record.agent, version, epoch, time_us, draft)
            self.rows.append(_row(record, draft, offset, version, epoch, time_us, chain))
        if item.drafts:
            self.moved[agent] = head_after(version, epoch, type, chain)
            self.offsets[partition] = offset
        if item.owner is not None:
            self.proposal.ownership.append((agent, item.owner, epoch))
        return head.version + 1, first + 1, time_us, epoch, chain


def moved(request: Request, outcome: Outcome, by: Mapping[int, int]) -> Outcome:
    """An outcome whose rows stand at later offsets. by: how much later, by partition."""
    if not isinstance(outcome, Written):
        return outcome
    places = [
        (version, offset + by.get(item.record.partition, 0), *rest)
        for item, (version, offset, *rest) in zip(request, outcome.places, strict=True)
    ]
    return Written(places)  # type: ignore[arg-type]


def ids_ahead(now_us: int) -> int:
    """The least 128-bit number whose first 48 bits, a UUIDv7's milliseconds, are too far ahead."""
    return (now_us // 1000 + ID_AHEAD_MAX_MS + 1) << 80


def plain_row(item: Item, head: Head, offset: int, time_us: int, look_before_ms: int, ahead: int) -> SealedEvent | None:
    """What `plan` makes of one event that nothing stands against, and whose id nobody has to look for: most requests are that, and it takes half
    the time. None: not that plain. ahead: see `ids_ahead`."""
    record, drafts = item.record, item.drafts
    if len(drafts) != 1 or item.owner is not None or item.chain is not None:
        return None
    draft = drafts[0]
    version, epoch, number, type = head.version + 1, head.epoch, draft.id.int, draft.type
    if head.fenced or type in _SHUT or (item.epoch is not None and item.epoch != epoch):
        return None
    if (item.expected != head.version and not holds(item.expected, head.version)) or number >= ahead:
        return None
    if look_before_ms and (number >> 76 & 0xF != 7 or number >> 80 < look_before_ms):
        return None
    chain = chain_hash(head.chain, record.tenant, record.agent, version, epoch, time_us, draft)
    return _row(record, draft, offset, version, epoch, time_us, chain)


def _row(record: AgentRecord, draft: Draft, offset: int, version: int, epoch: int, time_us: int, chain: bytes) -> SealedEvent:
    return SealedEvent(
        record.tenant,
        record.agent,
        record.tenant_key,
        record.agent_key,
        record.partition,
        offset,
        version,
        epoch,
        draft.id,
        draft.type,
        time_us,
        draft.causation_id,
        draft.correlation_id,
        draft.trace_id,
        draft.project,
        draft.module,
        chain,
        draft.payload,
    )


def plan(
    now_us: int,
    requests: Sequence[Request],
    heads: Mapping[int, Head],
    positions: Mapping[int, Position],
    found: Mapping[tuple[int, UUID], int],
    look_before_ms: Mapping[int, int],
) -> Plan:
    """Decide a batch, in order.

    heads: by agent key, every agent of the batch. positions: by partition. found: (agent key, id) → version of ids that are in the log.
    look_before_ms: by partition, the unix milliseconds before which a UUIDv7 must be looked up.
    """
    planner = _Planner(now_us, heads, positions, found, look_before_ms)
    outcomes = [planner.judge(request) for request in requests]
    return Plan(outcomes, planner.proposal, planner.moved)
