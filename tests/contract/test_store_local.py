"""The store kit on local files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from perdure.snapshots.store import open_store
from perdure.snapshots.store.local import LocalStore
from perdure.testing.store_kit import PROCESS_CASES, STORE_CASES, Case, StoreUnderTest, name_of


@pytest.mark.parametrize("case", [*STORE_CASES, *PROCESS_CASES], ids=name_of)
async def test_local_files(case: Case, tmp_path: Path) -> None:
    await case(StoreUnderTest(partial(LocalStore, tmp_path / "made at first use" / "store")))


@pytest.mark.parametrize("case", STORE_CASES, ids=name_of)
async def test_local_files_with_limits_and_meter(case: Case, tmp_path: Path) -> None:
    await case(StoreUnderTest(partial(open_store, f"file://{tmp_path}/a%20store")))
