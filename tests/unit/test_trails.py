"""What a process keeps of its newest appends for whoever takes an agent over: no hole, no more than asked for, nothing for others."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.log.records import SealedEvent
from perdure.engine.log.trails import AGENTS_MAX, EVENT_BYTES_MAX, EVENTS_MAX, Trails
from perdure.identifiers import uuid7

AGENT = 7


def _row(version: int, *, agent_key: int = AGENT, size: int = 8) -> SealedEvent:
    chain = version.to_bytes(32, "big")
    return SealedEvent(
        "t", "a", 1, agent_key, 3, 100 + version, version, 1, uuid7(), "x", 0, None, None, None, None, None, chain, b"." * size
    )


def _versions(rows: Sequence[SealedEvent]) -> list[int]:
    return [row.version for row in rows]


def test_nothing_is_kept_of_agents_that_nobody_asked_for() -> None:
    trails = Trails()
    assert not trails
    trails.note([_row(1)])
    assert _versions(trails.after(AGENT, 0)) == []
    trails.keep(AGENT)
    trails.note([_row(2), _row(1, agent_key=AGENT + 1)])
    assert _versions(trails.after(AGENT, 1)) == [2]
    assert _versions(trails.after(AGENT + 1, 0)) == []


def test_what_is_asked_for_again_goes_on_and_what_is_dropped_is_gone() -> None:
    trails = Trails()
    trails.keep(AGENT)
    trails.note([_row(1)])
    trails.keep(AGENT)
    assert _versions(trails.after(AGENT, 0)) == [1]
    trails.drop(AGENT)
    trails.drop(AGENT)
    assert not trails
    assert _versions(trails.after(AGENT, 0)) == []


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([8, EVENT_BYTES_MAX, EVENT_BYTES_MAX + 1])), max_size=200), st.integers(0, 400)
)
def test_a_trail_follows_the_version_it_is_asked_about_without_a_hole(steps: list[tuple[int, int]], after: int) -> None:
    """Others may append to the agent in between (steps of more than one), and events may be too long to be kept."""
    trails = Trails()
    trails.keep(AGENT)
    version, sizes = 0, {}
    for step, size in steps:
        version += step
        sizes[version] = size
        trails.note([_row(version, size=size)])
    found = _versions(trails.after(AGENT, after))
    assert found == list(range(after + 1, version + 1))[: len(found)]
    assert not found or found[-1] == version
    assert len(found) <= EVENTS_MAX
    assert all(sizes[each] <= EVENT_BYTES_MAX for each in found)
    own = range(after + 1, version + 1)
    if 0 < len(own) <= EVENTS_MAX and all(sizes.get(each, EVENT_BYTES_MAX + 1) <= EVENT_BYTES_MAX for each in own):
        assert found


def test_of_many_agents_the_newest_are_kept() -> None:
    trails = Trails()
    for agent in range(AGENTS_MAX + 1):
        trails.keep(agent)
    trails.note([_row(1, agent_key=0), _row(1, agent_key=AGENTS_MAX)])
    assert _versions(trails.after(0, 0)) == []
    assert _versions(trails.after(AGENTS_MAX, 0)) == [1]
