"""The SQLite log: the kit, and its own failures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from perdure.engine.log.sqlite import SqliteStore
from perdure.testing.log_kit import LOG_CASES, STORE_CASES, Case, log_under_test, name_of


@pytest.mark.parametrize("case", [*STORE_CASES, *LOG_CASES], ids=name_of)
async def test_log(case: Case, tmp_path: Path) -> None:
    async with log_under_test(partial(SqliteStore.open, tmp_path)) as log:
        await case(log)
