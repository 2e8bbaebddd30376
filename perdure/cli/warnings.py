"""What libraries warn of, in words that a log can hold: a client whose server is away says the same hundreds of times a second."""

from __future__ import annotations

import logging
import time
from typing import Final

__all__ = ["EVERY_S", "START_S", "Repeats", "thin_out"]

EVERY_S: Final = 60.0
"""A library's warning is told again after so long."""
KNOWN_MAX: Final = 1_000
"""Different warnings that are remembered."""
START_S: Final = 10.0
"""For so long after the start nothing is told of what is usual then, and is no trouble unless it lasts. Less than a consumer waits for its group."""
_OURS: Final = "perdure"
_USUAL_AT_START: Final = {
    # Kafka makes its topic of positions when the first group of all asks for its coordinator, which takes it a second or two.
    ("aiokafka.consumer.group_coordinator", "Group Coordinator Request failed: %s"): "GroupCoordinatorNotAvailableError",
    ("aiokafka.consumer.group_coordinator", "Marking the coordinator dead (node %s)for group %s."): "",
}
"""By logger and template: the class of error that it must name, where it names any."""


class Repeats(logging.Filter):
    """Lets a warning of a library through once in `EVERY_S`, then with how often it came in between. Warnings are the same when they come from one
    logger and have one template; our own all pass. What is usual at the start is told only when it comes later, too."""

    def __init__(self) -> None:
        super().__init__()
        self._started_s = time.monotonic()
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is told."""
        if record.name.partition(".")[0] == _OURS:
            return True
        key = record.name, str(record.msg)
        now_s = time.monotonic()
        last_s, left_out = self._told.get(key, (-EVERY_S, 0))
        if now_s < last_s + EVERY_S or (now_s < self._started_s + START_S and _is_usual_at_start(record)):
            self._told[key] = last_s, left_out + 1
            return False
        if len(self._told) >= KNOWN_MAX:
            self._told.clear()
        self._told[key] = now_s, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more of these meanwhile)", ()
        return True


def _is_usual_at_start(record: logging.LogRecord) -> bool:
    error = _USUAL_AT_START.get((record.name, str(record.msg)))
    named = [type(each).__name__ for each in record.args] if isinstance(record.args, tuple) else []
    return error is not None and (not error or error in named)


def thin_out() -> None:
    """Do so for what goes to standard error because nobody has installed handlers. Again is no error."""
    last = logging.lastResort
    if last is not None and not any(isinstance(each, Repeats) for each in last.filters):
        last.addFilter(Repeats())
        last.setFormatter(logging.Formatter("%(name)s: %(message)s"))  # so that one sees whose words they are
