"""The rules of migrations: what may follow what, who wins, where agents are put. No server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.engine.log.chain import EMPTY_CHAIN
from perdure.engine.log.codec import Draft
from perdure.engine.log.decide import FENCED, OWNED, Item, Written, plan
from perdure.engine.log.expected import ANY, ExpectedVersion
from perdure.engine.log.records import AgentName, AgentRecord, Head, Position
from perdure.errors import AlreadyExists, Conflict, InvalidInput, NotServed, Overloaded
from perdure.identifiers import uuid7
from perdure.migration.leveling import Carried, level
from perdure.migration.planning import Facts, check_rollback, estimate, obstacles
from perdure.migration.rates import Rates
from perdure.migration.records import CLOSED, Mark, Migration, Phase, advanced, can_abort_quietly, event_id
from perdure.recovery.nodes import Node, NodeState

NAME = AgentName("acme", "one")
PHASES: Sequence[Phase] = get_args(Phase)


def migration(phase: Phase = "planned") -> Migration:
    return Migration(uuid7().hex, *NAME, "a", "b", 3, phase)


@settings(deadline=None)
@given(st.lists(st.sampled_from(PHASES), max_size=20))
def test_a_migration_ends_once_and_commits_only_after_it_may_flip(wanted: list[Phase]) -> None:
    now = migration()
    ends = 0
    for phase in wanted:
        try:
            now = advanced(now, phase, 1)
        except Conflict:
            continue
        ends += phase in ("committed", "aborted")
    passed = [mark.phase for mark in now.marks]
    assert ends <= 1
    assert not {"committed", "aborted"} <= set(passed)
    if "committed" in passed:
        assert "flipping" in passed[: passed.index("committed")]
    if now.phase in CLOSED:
        assert not now.open
        assert not can_abort_quietly(now)


# The log's own rules decide between commit and abort; here two processes ask for either in any order, and with any delay.
Step = Literal["fence", "commit", "commit_fenced", "abort", "abort_fenced", "append", "append_stale"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(get_args(Step)), min_size=1, max_size=12))
def test_commit_and_abort_are_never_both_written(asked: list[Step]) -> None:
    now = migration()
    now_us = time.time_ns() // 1000 + 60_000_000  # ids that are made from here on are not from the future
    record = AgentRecord(*NAME, 1, 1, 0, "a", 3, "", {}, b"", 0)
    head = Head(5, 3, EMPTY_CHAIN)
    position = Position(10, 0)
    found: dict[tuple[int, object], int] = {}
    written: list[str] = []
    for number, step in enumerate(asked):
        before = head
        if step.endswith("_fenced") and "fence" not in written:
            continue  # asked for by nobody who has not seen the fence
        item = _item(step, record, now, head)
        done = plan(now_us, [[item]], {1: head}, {0: position}, found, {0: 0})  # type: ignore[arg-type]
        if isinstance(done.outcomes[0], Written):
            written.append(step)
            head, position = done.heads[1], Position(done.proposal.rows[-1].offset, done.proposal.rows[-1].time_us)
            found[1, item.drafts[0].id] = head.version
            if step.startswith("append"):
                assert not before.fenced
                assert item.epoch == before.epoch
        elif number == 0:
            assert step.endswith(("_fenced", "_stale")), "what is right at first is not refused"
    commits = [step for step in written if step.startswith("commit")]
    aborts = [step for step in written if step.startswith("abort")]
    assert len(commits) + len(aborts) <= 1


def _item(step: Step, record: AgentRecord, now: Migration, head: Head) -> Item:
    epoch = now.epoch + step.endswith("_fenced")
    kind, number = {"fence": (FENCED, 1), "commit": (OWNED, 2), "abort": (OWNED, 3)}.get(step.removesuffix("_fenced"), ("noted", 0))
    id = event_id(now.id, number) if number else uuid7()
    expected: ExpectedVersion = head.version if step.startswith("commit") else ANY
    chain = head.chain if step.startswith("commit") else None
    owner = {"fence": "a", "commit": "b", "abort": "a"}.get(step.removesuffix("_fenced"))
    if step == "append":
        epoch = head.epoch
    draft = Draft(id, kind, None, None, None, None, None, b"sealed")
    return Item(record, expected, epoch, [draft], owner, chain)


def node(name: str, alive: bool = True, version: str = "1.2.0", agents_max: int = 10) -> NodeState:
    return NodeState(Node(name, "http://" + name, agents_max, 1, 0, version), alive)


def facts(*nodes: NodeState, owner: str = "a", owned: int = 0, open: Migration | None = None) -> Facts:
    return Facts(NAME, owner, 3, nodes, owned, "1.2.5", open)


@pytest.mark.parametrize(
    ("target", "given_facts", "kind"),
    [
        ("a", facts(node("a")), InvalidInput),
        ("b", facts(node("a")), InvalidInput),
        ("b", facts(node("a"), node("b", alive=False)), NotServed),
        ("b", facts(node("a"), node("b", version="1.3.0")), Conflict),
        ("b", facts(node("a"), node("b"), owned=10), Overloaded),
        ("b", facts(node("a"), node("b"), open=migration("pre_copy")), AlreadyExists),
    ],
)
def test_each_obstacle_has_its_error_and_a_hint(target: str, given_facts: Facts, kind: type[Exception]) -> None:
    found = obstacles(target, given_facts, epoch=3)
    assert [type(each.problem) for each in found] == [kind]
    assert found[0].problem.hint


def test_a_plan_for_another_epoch_and_an_emergency_with_a_living_source_are_refused() -> None:
    nodes = (node("a"), node("b"))
    assert [each.check for each in obstacles("b", facts(*nodes), epoch=2)] == ["fresh"]
    assert [each.check for each in obstacles("b", facts(*nodes), strategy="emergency", epoch=3)] == ["source_lost"]
    assert obstacles("b", facts(*nodes), epoch=3) == []
    assert obstacles("b", facts(node("a", alive=False), node("b")), strategy="emergency", epoch=3) == []


def test_a_rollback_is_refused_late_twice_and_where_another_owns_the_agent() -> None:
    done = advanced(advanced(advanced(migration(), "preparing", 1), "flipping", 1), "committed", 5_000_000, final_epoch=4)
    assert check_rollback(done, "b", 4, 6_000_000) == []
    assert check_rollback(done, "c", 5, 6_000_000)
    assert check_rollback(done, "b", 4, 5_000_000 + 25 * 3_600 * 1_000_000)
    assert check_rollback(advanced(done, "rolled_back", 9), "b", 4, 6_000_000)
    assert check_rollback(migration(), "a", 3, 6_000_000)


def test_estimates_follow_what_was_measured() -> None:
    rates = Rates()
    for _ in range(200):
        rates = rates.after(
            Migration(
                uuid7().hex,
                *NAME,
                "a",
                "b",
                3,
                bytes=1_000_000,
                events=500,
                downtime_target_ms=2.0,
                copy_s=0.1,
                marks=(Mark("planned", 0),),
            )
        )
    assert rates.bytes_per_s == pytest.approx(1e7, rel=0.01)
    live = estimate(10_000_000, 0, rates, "live")
    assert live.downtime_ms == pytest.approx(2.0, rel=0.05)
    assert live.measured == 200
    assert estimate(10_000_000, 0, rates, "cold").downtime_ms > 900


weights = st.lists(st.floats(0, 100, allow_nan=False), max_size=12)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), weights, min_size=2), st.integers(0, 20), st.integers(0, 3))
def test_leveling_moves_nothing_twice_respects_room_and_never_makes_it_worse(
    nodes: dict[str, list[float]], moves_max: int, room: int
) -> None:
    agents = {
        name: [Carried(AgentName(name, str(n)), weight) for n, weight in enumerate(given_weights)] for name, given_weights in nodes.items()
    }
    done = level(agents, dict.fromkeys(nodes, room), {"a": 5.0} if "a" in nodes else {}, moves_max=moves_max)
    assert len(done.moves) <= moves_max
    assert len({move.name for move in done.moves}) == len(done.moves)
    assert max(done.after.values()) - min(done.after.values()) <= max(done.before.values()) - min(done.before.values()) + 1e-9
    assert sum(done.after.values()) == pytest.approx(sum(done.before.values()))
    for name in nodes:
        came = sum(move.target == name for move in done.moves)
        went = sum(move.source == name for move in done.moves)
        assert came - went <= room


def test_one_event_id_a_step_whoever_writes_it() -> None:
    id = uuid7().hex
    assert event_id(id, 2) == event_id(id, 2)
    assert len({event_id(id, number) for number in range(200)}) == 200
    assert event_id(id, 2).version == 7
