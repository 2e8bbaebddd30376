"""What a process remembers of very many agents: bounded, the oldest forgotten first, and nothing counted as written that is not."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from perdure import limits
from perdure.engine import remembering
from perdure.engine.log.heads import KnownHeads
from perdure.engine.log.postgres_hints import SegmentHints
from perdure.engine.log.postgres_segments import Segments
from perdure.engine.log.records import AgentName, AgentRecord, Head, SealedEvent
from perdure.engine.remembering import forget_oldest
from perdure.engine.vault import Vault
from perdure.security.dictionaries import DictionaryBook
from perdure.security.ring import KeyRing
from tests.unit.fix_security import MemoryDocuments
from tests.unit.test_key_rotation import PROVIDER
from tests.unit.test_log_segments import ANY_ROW, PARTITION, SIZE


class CountedWalks(dict[int, int]):
    """Tells how often somebody has asked for its first entries."""

    walks = 0

    def __iter__(self) -> Iterator[int]:
        self.walks += 1
        return super().__iter__()


def test_the_oldest_are_forgotten_and_never_more_are_kept_than_may_be() -> None:
    kept: dict[int, int] = {}
    for number in range(5_000):
        kept[number] = number
        forgotten = forget_oldest(kept, 1_000)
        assert len(kept) <= 1_000
        assert not forgotten or forgotten[-1] < min(kept)
    assert list(kept) == list(range(min(kept), 5_000))
    assert len(kept) >= 1_000 - 1_000 // remembering.AT_ONCE - 1


def test_forgetting_walks_over_what_is_kept_once_for_many() -> None:
    kept = CountedWalks((number, number) for number in range(25_600))
    for number in range(25_600):
        kept[-number - 1] = number
        forget_oldest(kept, 25_600)
    assert kept.walks <= 25_600 / (25_600 // remembering.AT_ONCE)


def test_a_writer_keeps_the_heads_that_were_used_last() -> None:
    known, chance = KnownHeads(limit=300), random.Random(4)
    used: dict[int, Head] = {}
    for version in range(1, 1_500):
        agent = chance.randrange(600)
        head = Head(version, 0, bytes(32))
        known.commit({agent: head}, {agent: agent % 16}, {})
        used.pop(agent, None)
        used[agent] = head
        # The newest ones are there, as they are; a forgotten one is asked for again, never guessed.
        if version % 7 == 0:
            assert all(known.head(agent) == used[agent] for agent in list(used)[-290:])
            assert all(known.head(agent) in (None, head) for agent, head in used.items())
    assert len(known.missing(range(600))) >= 300
    known.forget(range(16))
    assert known.missing(range(600)) == set(range(600))


async def test_a_vault_keeps_the_agents_that_came_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.engine.vault.AGENTS_MAX", 4)
    documents = MemoryDocuments()
    ring = KeyRing(PROVIDER, documents)
    vault = Vault(None, ring, DictionaryBook(ring, documents))  # type: ignore[arg-type]
    key = await ring.tenant_key("acme")
    for number in range(20):
        name = f"agent-{number}"
        wrapped, _ = key.new_data_key(name)
        await vault.remember(AgentRecord("acme", name, 1, number, 0, "", 0, "", {}, wrapped, 1))
        known = vault.known(AgentName("acme", name))
        assert known is not None
    assert len(vault._known) == 4


def _row(agent: int, offset: int, version: int = 1) -> SealedEvent:
    return msgspec.structs.replace(ANY_ROW, agent_key=agent, offset=offset, version=version)


def test_every_first_event_in_a_segment_has_its_hint_until_one_is_committed() -> None:
    """Against a plain account of what is committed, with inserts that come to nothing."""
    for seed in range(30):
        chance = random.Random(seed)
        hints, offset = SegmentHints(Segments(SIZE)), 0
        written: set[tuple[int, int]] = set()
        for _ in range(60):
            count = chance.choice((1, 1, 3, 12))
            rows = [_row(chance.randrange(4), offset + 1 + n, offset + n) for n in range(count)]
            told = hints.of(rows)
            wanted: dict[tuple[int, int], int] = {}
            for row in rows:
                if row.offset > SIZE:
                    wanted.setdefault((row.agent_key, (row.offset - 1) // SIZE), row.version)
            # None is missing that was not committed before, and each names the first version.
            assert {(agent, segment) for agent, segment, _ in told} >= wanted.keys() - written
            assert all(wanted[agent, segment] == version for agent, segment, version in told)
            if chance.random() < 0.7:
                hints.stand()
                written |= wanted.keys()
                offset += count
                last = rows[-1]
                assert last.offset <= SIZE or hints.of([_row(last.agent_key, last.offset)]) == []


def test_hints_are_forgotten_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITER_HEADS_MAX", 10)
    hints = SegmentHints(Segments(100))
    for agent in range(100):
        assert hints.of([_row(agent, 101 + agent // 2)]), "what was forgotten is written once more"
        hints.stand()
        assert sum(len(agents) for _, agents in hints._known.values()) <= 10
    assert PARTITION not in hints._known or hints._known[PARTITION][0] == 1
