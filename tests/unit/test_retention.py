"""Retention, cadence and compaction: the rules, attacked with everything that hypothesis can think of."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.log.snapshot_rows import CHECKPOINT
from perdure.errors import InvalidInput
from perdure.snapshots.cadence import EVENT, SCHEDULED, Cadence, Replay, trigger_of
from perdure.snapshots.compaction import CompactionPlan, Strategy, plan_compaction
from perdure.snapshots.retention import DAY_US, RetentionPolicy, base_of, decide, newest_sound, sound
from perdure.snapshots.tally import Tally

HEAD = 60
NOW_US = 100 * DAY_US


class Kept(NamedTuple):
    """A snapshot as the rules see it."""

    version: int
    created_us: int = 0
    kind: str = "incremental"
    expires_us: int = 0
    permanent: bool = False
    critical: bool = False
    damage: str = ""


@st.composite
def histories(draw: st.DrawFn) -> list[Kept]:
    """Snapshots as the registry can hold them: at most one sound one of a version, damaged ones anywhere."""
    versions = draw(st.lists(st.integers(1, HEAD), unique=True, max_size=12))
    flags = st.booleans()
    rare = st.sampled_from([False] * 5 + [True])

    def one(version: int, damage: str) -> Kept:
        created = draw(st.integers(0, NOW_US))
        kind = draw(st.sampled_from(["full", "incremental", "incremental", CHECKPOINT]))
        expires = draw(st.sampled_from([0, 0, 0, NOW_US - 1, NOW_US + 1]))
        return Kept(version, created, kind, expires, draw(rare), draw(rare), damage)

    kept = [one(version, "") for version in versions]
    broken = [one(version, "bit flip") for version in draw(st.lists(st.integers(1, HEAD), max_size=4))]
    return draw(st.permutations(kept + broken)) if draw(flags) else kept + broken


POLICIES = st.builds(RetentionPolicy, newest=st.integers(3, 5), keep_s=st.sampled_from([0.0, 86400.0]), days=st.integers(0, 4))
HELD = st.lists(st.integers(0, HEAD), max_size=4)


def reachable(snapshots: list[Kept], floor: int) -> set[int]:
    """The versions whose state can be had from these snapshots and the events from the floor on."""
    good = [snapshot.version for snapshot in snapshots if not snapshot.damage]
    found = {0, *good}
    for version in range(HEAD + 1):
        starts = [base for base in good if base <= version and base + 1 >= floor]
        if floor == 1 or starts:
            found.add(version)
    return found


def checkpoints(plan: CompactionPlan) -> list[Kept]:
    return [Kept(version, kind=CHECKPOINT, created_us=NOW_US) for version in plan.checkpoints]


@given(histories(), POLICIES, HELD)
def test_the_newest_three_sound_ones_and_every_promise_stay(snapshots: list[Kept], policy: RetentionPolicy, held: list[int]) -> None:
    decision = decide(snapshots, policy, now_us=NOW_US, held_versions=held)
    assert sorted(map(repr, [kept for kept, _ in decision.stay] + decision.go)) == sorted(map(repr, snapshots))
    assert set(newest_sound(snapshots)).isdisjoint(decision.go)
    for gone in decision.go:
        assert not any((gone.permanent, gone.critical, gone.kind == CHECKPOINT, gone.expires_us > NOW_US))
    assert all(reason for _, reason in decision.stay)


@given(histories(), POLICIES, HELD, st.integers(0, HEAD), st.sampled_from(["snapshot", "delete", "merge"]), st.integers(1, 20))
def test_nothing_that_can_be_had_or_is_needed_is_lost(
    snapshots: list[Kept], policy: RetentionPolicy, held: list[int], wanted: int, strategy: Strategy, step: int
) -> None:
    """Compaction, then retention, then both again: the floor's promises hold after each."""
    floor = 1
    for goal in (wanted, min(HEAD, wanted + 7)):
        before = reachable(snapshots, floor)
        steps = step if strategy == "merge" else None
        plan = plan_compaction(snapshots, floor=floor, head=HEAD, wanted=goal, strategy=strategy, held_versions=held, step_versions=steps)
        assert floor <= plan.floor <= max(floor, goal)
        assert set(plan.checkpoints) <= before, "a checkpoint is only made of a state that can be had"
        snapshots = [*snapshots, *checkpoints(plan)]
        after = reachable(snapshots, plan.floor)
        assert {version for version in before if version >= plan.floor - 1} <= after
        assert {version for version in held if version in before} <= after
        assert {snapshot.version for snapshot in sound(snapshots)} <= after
        if plan.floor > floor:
            newest = newest_sound(snapshots)
            assert len(newest) == 3
            assert min(each.version for each in newest) >= plan.floor - 1
            assert any(each.version == plan.floor - 1 for each in sound(snapshots))
            assert {each.version for each in newest} | {plan.floor - 1} <= set(plan.verify)
            for lost in newest[:2]:  # damage of the two newest costs time, never data
                assert HEAD in reachable([each for each in snapshots if each is not lost], plan.floor)
        floor = plan.floor
        decision = decide(snapshots, policy, now_us=NOW_US, floor=floor, held_versions=held)
        snapshots = [kept for kept, _ in decision.stay]
        left = reachable(snapshots, floor)
        assert {version for version in after if version >= floor - 1} <= left
        assert {version for version in held if version in after} <= left


@given(histories(), st.integers(1, HEAD))
def test_a_merge_keeps_a_state_of_every_step(snapshots: list[Kept], step: int) -> None:
    plan = plan_compaction(snapshots, floor=1, head=HEAD, wanted=HEAD, strategy="merge", step_versions=step)
    left = reachable([*snapshots, *checkpoints(plan)], plan.floor)
    if plan.floor > 1:
        assert set(range(step, plan.floor, step)) <= left


@given(histories(), st.integers(0, HEAD), st.integers(1, HEAD))
def test_the_base_of_a_version_leads_there(snapshots: list[Kept], version: int, floor: int) -> None:
    base = base_of(snapshots, version, floor)
    if base is None:
        assert floor == 1 or version == 0 or version not in reachable(snapshots, floor)
        return
    assert not base.damage
    assert base.version == version or (base.version < version and base.version + 1 >= floor)


def test_a_plan_says_why_it_stops_short() -> None:
    three = [Kept(10), Kept(20), Kept(30)]
    cut = plan_compaction(three, head=HEAD, floor=1, wanted=40, strategy="snapshot")
    assert (cut.floor, cut.checkpoints, cut.limited_by) == (11, (), "the newest three snapshots")
    few = plan_compaction(three[:2], head=HEAD, floor=1, wanted=5, strategy="delete")
    assert (few.events, few.limited_by) == (0, "fewer than three sound snapshots")
    made = plan_compaction(three[:1], head=HEAD, floor=1, wanted=21, strategy="snapshot")
    assert (made.floor, made.checkpoints, made.verify) == (21, (20, 40, 60), (10, 20, 40, 60))
    all_of_it = plan_compaction([], head=HEAD, floor=1, wanted=HEAD, strategy="snapshot")
    assert (all_of_it.floor, all_of_it.checkpoints, all_of_it.limited_by) == (59, (58, 59, 60), "the newest three snapshots")
    assert plan_compaction([], head=2, floor=1, wanted=2, strategy="snapshot").events == 0
    stands = plan_compaction(three, head=HEAD, floor=1, wanted=8, strategy="delete")
    assert (stands.events, stands.limited_by) == (0, "no snapshot stands where the kept events would begin")
    held = plan_compaction(three, head=HEAD, floor=1, wanted=11, strategy="delete", held_versions=[7])
    assert (held.events, held.limited_by) == (0, "a fork or a restore")
    made = plan_compaction(three, head=HEAD, floor=1, wanted=11, strategy="snapshot", held_versions=[7])
    assert (made.floor, made.checkpoints, made.limited_by) == (11, (7,), "")
    assert plan_compaction(three, head=HEAD, floor=11, wanted=5, strategy="snapshot").events == 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RetentionPolicy(newest=2),
        lambda: RetentionPolicy(days=-1),
        lambda: Cadence(budget_events=0),
        lambda: Cadence(every_versions=0),
        lambda: plan_compaction([], head=HEAD, floor=1, wanted=2, strategy="merge"),
        lambda: plan_compaction([], head=HEAD, floor=1, wanted=2, strategy="delete", step_versions=3),
        lambda: plan_compaction([], head=HEAD, floor=1, wanted=2, strategy="merge", step_versions=0),
        lambda: plan_compaction([Kept(5000), Kept(6000), Kept(7000)], head=HEAD, floor=1, wanted=5001, strategy="merge", step_versions=1),
    ],
)
def test_wrong_settings_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidInput):
        wrong()  # type: ignore[operator]


@given(st.integers(0, 10_000), st.integers(0, 50_000_000), st.integers(0, 10**9))
def test_a_snapshot_is_due_by_what_a_load_would_replay(events: int, size: int, state: int) -> None:
    trigger = trigger_of(Replay(events, size, state), Cadence())
    if trigger is not None:
        assert trigger_of(Replay(events + 1, size + 1, state), Cadence()) == trigger
    else:
        assert events < 1000 * max(1, state / (8 * 4 * 2**20))
    if events == 0:
        assert trigger is None


def test_budgets_and_exact_steps() -> None:
    assert trigger_of(Replay(1000, 10), Cadence()) == SCHEDULED
    assert trigger_of(Replay(1, 4 * 2**20), Cadence()) == SCHEDULED
    assert trigger_of(Replay(999, 4 * 2**20 - 1), Cadence()) is None
    assert trigger_of(Replay(1000, 10, state_bytes=64 * 2**20), Cadence()) is None, "a large state has a larger budget"
    assert trigger_of(Replay(2000, 10, state_bytes=64 * 2**20), Cadence()) == SCHEDULED
    assert trigger_of(Replay(5, 10), Cadence(every_versions=5)) == EVENT
    assert trigger_of(Replay(1, 100), Cadence(every_bytes=100)) == EVENT


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 100)), max_size=200), st.integers(1, 4))
def test_forgetting_agents_forgets_no_event(stream: list[tuple[int, int]], limit: int) -> None:
    """Whatever is forgotten in between, an agent is due exactly when so many events lie after its snapshot."""
    cadence = Cadence(budget_events=5, budget_bytes=10**9)
    tally = Tally(cadence, limit)
    versions = dict.fromkeys(range(6), 0)
    snapshots = dict.fromkeys(range(6), 0)
    for agent, size in stream:
        versions[agent] += 1
        for unknown in tally.unknown([agent]):
            tally.learn(unknown, snapshots[unknown], 0)
        due = tally.saw(agent, versions[agent], size)
        assert (due is not None) == (versions[agent] - snapshots[agent] >= 5)
        if due is not None:
            snapshots[agent] = versions[agent]
            tally.learn(agent, versions[agent], 0)
        tally.trim()
        assert len(tally) <= limit


def test_events_read_again_are_not_counted_again() -> None:
    tally = Tally(Cadence(budget_events=100, budget_bytes=250))
    tally.learn(1, 0, 0)
    for _ in range(3):
        assert tally.saw(1, 1, 100) is None
        assert tally.saw(1, 2, 100) is None
    assert tally.saw(1, 3, 100) == SCHEDULED
