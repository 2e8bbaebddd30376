"""The rules of an append have a short way for what most requests are; it must make the same of them as the long one."""

from __future__ import annotations

import random
from uuid import UUID, uuid4

import msgspec
import pytest

from perdure.engine.log import decide
from perdure.engine.log.chain import EMPTY_CHAIN
from perdure.engine.log.codec import Draft
from perdure.engine.log.decide import (
    FENCED,
    ID_AHEAD_MAX_MS,
    LEAVING,
    OWNED,
    AlreadyThere,
    Item,
    Plan,
    Refused,
    Request,
    Written,
    moved,
    plan,
)
from perdure.engine.log.expected import ANY, NO_STREAM, STREAM_EXISTS
from perdure.engine.log.records import AgentRecord, Head, Past, Position

NOW_US = 1_800_000_000_000_000
NOW_MS = NOW_US // 1000
PARTITIONS = 3
AGENTS = 12
TYPES = ("noted",) * 12 + (OWNED, FENCED, LEAVING)


class _Batches:
    """Batches by chance, in which everything that the rules look at occurs."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._ids = [self._id() for _ in range(3)]
        self.heads = {agent: self._head() for agent in range(AGENTS)}
        self.positions = {
            partition: Position(self._chance.randrange(9), NOW_US + self._chance.randrange(-9, 9)) for partition in range(PARTITIONS)
        }
        self.found = {
            (self._chance.randrange(AGENTS), self._chance.choice(self._ids)): 1 for _ in range(self._chance.choice((0,) * 3 + (9,)))
        }
        self.look = {partition: self._chance.choice((0, 0, 0, 0, NOW_MS, NOW_MS + 5, 1 << 60)) for partition in range(PARTITIONS)}

    def _id(self) -> UUID:
        if self._chance.random() < 0.1:
            return UUID(int=self._chance.choice((NOW_MS, NOW_MS + 5, 1 << 47)) << 80 | 4 << 76 | self._chance.getrandbits(76))
        ahead_ms = self._chance.choice((-20_000, 0, 0, 0, 4, 5, ID_AHEAD_MAX_MS, ID_AHEAD_MAX_MS + 1))
        return UUID(int=NOW_MS + ahead_ms << 80 | 7 << 76 | self._chance.getrandbits(76))

    def _head(self) -> Head:
        version = self._chance.choice((0, 1, 2))
        fenced, leaving = self._chance.choice(((False, False),) * 9 + ((True, False), (True, True)))
        return Head(version, self._chance.randrange(2), self._chance.randbytes(32) if version else EMPTY_CHAIN, fenced, leaving)

    def _item(self, agent: int) -> Item:
        chance = self._chance
        drafts = []
        for _ in range(chance.choice((1,) * 9 + (0, 2))):
            id = chance.choice(self._ids) if chance.random() < 0.3 else self._id()
            drafts.append(Draft(id, chance.choice(TYPES), None, None, None, None, None, chance.randbytes(8)))
        past = (Past("past", agent + 100, agent % PARTITIONS, 1),) if chance.random() < 0.1 else ()
        record = AgentRecord("acme", f"a{agent}", 1, agent, agent % PARTITIONS, "", 0, "", {}, b"key", 0, past=past)
        head = self.heads[agent]
        expected = chance.choice((ANY, ANY, ANY, NO_STREAM, STREAM_EXISTS, head.version, head.version, head.version, head.version + 1))
        owner = chance.choice((None,) * 9 + ("node",))
        chain = chance.choice((None,) * 9 + (head.chain, bytes(32)))
        flags = [chance.random() < share for share in (0.8, 0.2, 0.2)]
        return Item(record, expected, chance.choice((None, None, head.epoch, 1)), drafts, owner, chain, *flags)

    def requests(self) -> list[Request]:
        chance = self._chance
        return [
            [self._item(agent) for agent in chance.sample(range(AGENTS), chance.choice((1, 1, 1, 2)))] for _ in range(chance.randrange(12))
        ]


def _planned(batches: _Batches, requests: list[Request]) -> Plan:
    return plan(NOW_US, requests, batches.heads, batches.positions, batches.found, batches.look)


def test_the_short_way_makes_of_a_request_what_the_long_one_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    short = decide._Planner._plain
    taken = []

    def watched(self: decide._Planner, item: Item) -> Written | None:
        taken.append(short(self, item))
        return taken[-1]

    for seed in range(3_000):
        batches = _Batches(seed)
        requests = batches.requests()
        monkeypatch.setattr(decide._Planner, "_plain", watched)
        quick = _planned(batches, requests)
        monkeypatch.setattr(decide._Planner, "_plain", lambda _self, _item: None)
        assert quick == _planned(batches, requests), f"seed {seed}"
    assert sum(each is not None for each in taken) > len(taken) // 10, "the short way is taken at all"


def test_the_same_ids_later_in_a_batch_are_known_wherever_they_were_written() -> None:
    record = AgentRecord("acme", "a", 1, 5, 0, "", 0, "", {}, b"key", 0)
    drafts = [Draft(uuid4(), "noted", None, None, None, None, None, b"") for _ in range(3)]
    requests = [[Item(record, ANY, None, [draft])] for draft in drafts] + [
        [Item(record, 0, None, drafts)],
        [Item(record, 0, None, [drafts[1]])],
    ]
    planned = plan(NOW_US, [*requests, [Item(record, 2, None, [])]], {5: Head(0, 0, EMPTY_CHAIN)}, {0: Position(0, 0)}, {}, {0: 0})
    assert planned.outcomes[3:] == [AlreadyThere([[1, 2, 3]]), AlreadyThere([[2]]), Refused(0, 3)]
    assert [row.version for row in planned.proposal.rows] == [1, 2, 3]


def test_rows_that_were_put_behind_others_are_what_would_have_been_decided_there() -> None:
    """Offsets are all that changes, for no hash covers them: so a store may give them."""
    for seed in range(1_000):
        batches = _Batches(seed)
        requests = batches.requests()
        before = _planned(batches, requests)
        by = {0: 3, 2: 1}
        batches.positions = {
            partition: Position(position.offset + by.get(partition, 0), position.time_us)
            for partition, position in batches.positions.items()
        }
        after = _planned(batches, requests)
        assert [moved(request, outcome, by) for request, outcome in zip(requests, before.outcomes, strict=True)] == after.outcomes
        rows = [msgspec.structs.replace(row, offset=row.offset + by.get(row.partition, 0)) for row in before.proposal.rows]
        assert rows == after.proposal.rows
        assert (before.heads, before.proposal.ownership) == (after.heads, after.proposal.ownership)
