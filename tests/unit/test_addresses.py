"""Addresses that do not answer: tried by one at a time, after pauses that grow."""

from __future__ import annotations

from perdure.recovery.searching import SILENT_MAX_S, SILENT_S, Addresses


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_silent_address_is_passed_over_and_then_tried_by_one() -> None:
    clock = Clock()
    addresses = Addresses(["a", "b"], clock=clock)
    assert [addresses.choice(turn) for turn in range(4)] == ["a", "b", "a", "b"]
    for _ in range(100):  # a hundred callers failed at once
        addresses.fell_silent("a")
    assert [addresses.choice(turn) for turn in range(4)] == ["b"] * 4
    assert addresses.silent() == ["a"]
    clock.now_s += SILENT_S
    assert [addresses.answers("a") for _ in range(5)] == [True, *[False] * 4]
    addresses.answered("a")
    assert [addresses.answers("a") for _ in range(2)] == [True] * 2
    assert addresses.silent() == []


def test_pauses_between_tries_grow_to_a_bound_and_begin_anew_after_an_answer() -> None:
    clock = Clock()
    addresses = Addresses(["a"], clock=clock)

    def pause_s() -> float:
        began_s = clock.now_s
        while not addresses.answers("a"):
            clock.now_s += SILENT_S / 2
        return clock.now_s - began_s

    addresses.fell_silent("a")
    pauses = [pause_s() for _ in range(8)]
    assert pauses[0] == SILENT_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == SILENT_MAX_S
    assert addresses.choice(3) == "a", "there is no other"
    addresses.answered("a")
    addresses.fell_silent("a")
    assert pause_s() == SILENT_S
