"""The conformance kit of logs: what every `LogStore` must do. A backend's test file is this kit plus its own failures::

    @pytest.mark.parametrize("case", [*STORE_CASES, *LOG_CASES], ids=name_of)
    async def test_log(case, tmp_path):
        async with log_under_test(partial(SqliteStore.open, tmp_path)) as log:
            await case(log)

`log_under_test` takes what opens the log (a new one for each case) once more, as another process would; it must survive pickling, because some
cases do start processes. `TAIL_CASES` also need `log_under_test(opener, surroundings)`: what your test can do to the log from outside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from perdure.testing import (
    log_append_cases,
    log_archive_cases,
    log_arrival_cases,
    log_control_cases,
    log_event_cases,
    log_event_process_cases,
    log_floor_cases,
    log_fork_cases,
    log_many_cases,
    log_process_cases,
    log_read_cases,
    log_snapshot_cases,
    log_tail_cases,
)
from perdure.testing.log_rows import LogUnderTest, log_under_test
from perdure.testing.log_surroundings import Surroundings

__all__ = ["LOG_CASES", "STORE_CASES", "TAIL_CASES", "Case", "LogUnderTest", "Surroundings", "log_under_test", "name_of"]

Case = Callable[[LogUnderTest], Awaitable[None]]

STORE_CASES: tuple[Case, ...] = (
    *log_append_cases.CASES,
    *log_read_cases.CASES,
    *log_control_cases.CASES,
    *log_snapshot_cases.CASES,
    *log_floor_cases.CASES,
    *log_fork_cases.CASES,
    *log_archive_cases.CASES,
    *log_arrival_cases.CASES,
    *log_process_cases.CASES,
)
"""Of the bare store."""

LOG_CASES: tuple[Case, ...] = (*log_event_cases.CASES, *log_many_cases.CASES, *log_event_process_cases.CASES)
"""Of the log over it: expectations, retries, epochs, chains, live streams."""

TAIL_CASES: tuple[Case, ...] = log_tail_cases.CASES
"""The adversarial ones, about what readers of the log's tail are shown while things happen around it: they ask for `Surroundings`."""


def name_of(case: Case) -> str:
    """What a case claims, as the id of a test."""
    return getattr(case, "__name__", repr(case))
