"""A clock that is known without asking each time is never ahead of the one that was asked."""

from __future__ import annotations

from perdure.migration.transfer.clocks import ASKED_TIMES, BELIEVED_S, Clock


class Both:
    """A store's clock and this process's, which run together; answers take their time."""

    def __init__(self) -> None:
        self.true_s = 1_000.0
        self.ahead_s = 5_000.0
        self.asked = 0
        self.takes_s = [0.3, 0.001, 0.2]

    def monotonic(self) -> float:
        return self.true_s

    async def ask(self) -> int:
        """The answer is given in the middle of the time that it takes."""
        takes_s = self.takes_s[self.asked % len(self.takes_s)]
        self.asked += 1
        self.true_s += takes_s / 2
        answer_us = self.us()
        self.true_s += takes_s / 2
        return answer_us

    def us(self) -> int:
        return round((self.true_s + self.ahead_s) * 1e6)


async def test_it_is_behind_by_less_than_the_fastest_answer_took_and_never_ahead() -> None:
    both = Both()
    clock = Clock(both.ask, monotonic=both.monotonic)
    for pause_s in (0.0, 1.0, BELIEVED_S / 2):
        both.true_s += pause_s
        now_us = await clock.now_us()
        assert 0 <= both.us() - now_us <= 1_001
    assert both.asked == ASKED_TIMES


async def test_a_store_whose_clock_was_set_back_is_asked_again_in_time() -> None:
    both = Both()
    clock = Clock(both.ask, monotonic=both.monotonic)
    await clock.now_us()
    both.ahead_s -= 60.0
    both.true_s += BELIEVED_S + 1.0
    now_us = await clock.now_us()
    assert 0 <= both.us() - now_us <= 1_001
    assert both.asked == 2 * ASKED_TIMES
