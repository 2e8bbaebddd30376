"""Engines as users open them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import perdure
from perdure import config
from perdure.client.engine import Engine, Opening

OpenEngine = Callable[[], Opening]


@pytest.fixture(params=["sqlite", "postgres"])
def open_engine(request: pytest.FixtureRequest, tmp_path: Path) -> OpenEngine:
    """Opens one and the same log, as often as wanted: each opening is like another process."""
    url = f"sqlite:///{tmp_path}/log" if request.param == "sqlite" else request.getfixturevalue("fresh_database")
    settings = config.load({"log": url, "keys": f"file://{tmp_path}/root.key"}, {})
    return lambda: perdure.open(settings=settings, partitions=4)


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine on an embedded log."""
    settings = config.load({"log": f"sqlite:///{tmp_path}/log"}, {})
    async with perdure.open(settings=settings, partitions=4) as engine:
        yield engine
