"""Problems that a verification has found: all are counted, the first ones are kept."""

from __future__ import annotations

import msgspec

__all__ = ["Problems"]

PROBLEMS_KEPT_MAX = 1_000


class Problems(msgspec.Struct, kw_only=True):
    """problems: what does not hold, the first ones, each one line. problem_count: all of them."""

    problem_count: int = 0
    problems: list[str] = msgspec.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at holds."""
        return self.problem_count == 0

    def note(self, problem: str) -> None:
        """Keep a problem."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_KEPT_MAX:
            self.problems.append(problem)
