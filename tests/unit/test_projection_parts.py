"""The pure parts of projections: lag, states at hand, and which events follow a state."""

from __future__ import annotations

from uuid import UUID

from perdure.engine.log.chain import EMPTY_CHAIN, chain_hash
from perdure.engine.log.records import Position, SealedEvent
from perdure.projections.cells_codec import Layout
from perdure.projections.contract import Token
from perdure.projections.hot import HotState, HotStates
from perdure.projections.lag import PartitionLag, lag_behind
from perdure.projections.stepping import Follow, following


def test_lag_counts_events_and_the_seconds_between_the_newest_ones() -> None:
    log = {0: Position(10, 9_000_000), 1: Position(3, 4_000_000), 2: Position(5, 8_000_000)}
    handled = {0: Position(4, 7_000_000), 1: Position(3, 4_000_000)}
    assert lag_behind(log, handled, 10_000_000) == [PartitionLag(0, 6, 2.0), PartitionLag(1, 0, 0.0), PartitionLag(2, 5, 2.0)]


def test_states_at_hand_are_bounded_by_bytes_and_number_and_measured_anew_when_they_grow() -> None:
    hot: HotStates[HotState] = HotStates(bytes_max=100, agents_max=3)
    states = {name: _state(30) for name in "abcd"}
    for name in "abc":
        hot.put(("t", name), states[name])
    assert hot.get(("t", "a")) is states["a"]
    hot.put(("t", "d"), states["d"])
    assert hot.get(("t", "b")) is None
    assert (len(hot), hot.size_bytes) == (3, 90)
    states["d"].size_bytes = 80
    hot.put(("t", "d"), states["d"])
    assert (len(hot), hot.size_bytes) == (1, 80)
    hot.drop(("t", "d"))
    assert (len(hot), hot.size_bytes) == (0, 0)


def test_events_follow_without_a_gap_and_repeats_are_dropped() -> None:
    events = _chained(5)
    state = _state(0, version=2, chain=events[1].chain)
    assert following(state, events) == (Follow.FOLLOWS, events[2:])
    assert following(state, [*events[2:], *events[1:4]]) == (Follow.FOLLOWS, events[2:])
    assert following(state, events[:2]) == (Follow.FOLLOWS, [])
    assert following(state, events[3:])[0] is Follow.GAP


def test_events_of_another_history_are_recognised() -> None:
    events, others = _chained(5), _chained(5, payload=b"other")
    state = _state(0, version=2, chain=events[1].chain)
    assert following(state, others)[0] is Follow.FORK
    assert following(state, others[2:])[0] is Follow.FORK


def test_a_layout_is_worn_when_packs_hold_twice_what_lives_and_some() -> None:
    layout = Layout()
    layout.packed_cells = 264
    assert not layout.worn(100)
    layout.packed_cells = 265
    assert layout.worn(100)


def _state(size_bytes: int, *, version: int = 0, chain: bytes = EMPTY_CHAIN) -> HotState:
    return HotState({}, Token(1, 0, version), 0, chain, Layout(), size_bytes)


def _chained(count: int, *, payload: bytes = b"payload") -> list[SealedEvent]:
    events: list[SealedEvent] = []
    chain = EMPTY_CHAIN
    for version in range(1, count + 1):
        names = (None, None, None, None, None)
        bare = SealedEvent("t", "a", 1, 1, 0, version, version, 0, UUID(int=version), "noted", version, *names, b"", payload)
        chain = chain_hash(chain, "t", "a", version, 0, version, bare)
        events.append(SealedEvent("t", "a", 1, 1, 0, version, version, 0, UUID(int=version), "noted", version, *names, chain, payload))
    return events
