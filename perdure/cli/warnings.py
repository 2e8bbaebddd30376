"""What libraries warn of, in words that a log can hold: a client whose server is away says the same hundreds of times a second."""

from __future__ import annotations

import logging
import time
from typing import Final

__all__ = ["EVERY_S", "Repeats", "thin_out"]

EVERY_S: Final = 60.0
"""A library's warning is told again after so long."""
KNOWN_MAX: Final = 1_000
"""Different warnings that are remembered."""
_OURS: Final = "perdure"


class Repeats(logging.Filter):
    """Lets a warning of a library through once in `EVERY_S`, then with how often it came in between. Warnings are the same when they come from one
    logger and have one template; our own all pass."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is told."""
        if record.name.partition(".")[0] == _OURS:
            return True
        key = record.name, str(record.msg)
        now_s = time.monotonic()
        last_s, left_out = self._told.get(key, (-EVERY_S, 0))
        if now_s < last_s + EVERY_S:
            self._told[key] = last_s, left_out + 1
            return False
        if len(self._told) >= KNOWN_MAX:
            self._told.clear()
        self._told[key] = now_s, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more of these meanwhile)", ()
        return True


def thin_out() -> None:
    """Do so for what goes to standard error because nobody has installed handlers. Again is no error."""
    last = logging.lastResort
    if last is not None and not any(isinstance(each, Repeats) for each in last.filters):
        last.addFilter(Repeats())
        last.setFormatter(logging.Formatter("%(name)s: %(message)s"))  # so that one sees whose words they are
