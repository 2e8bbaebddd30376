"""The bus kit on a real Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from perdure.engine.bus import open_bus
from perdure.engine.bus.contract import Bus
from perdure.testing import bus_kit


@pytest.mark.parametrize("case", bus_kit.CASES, ids=lambda case: case.__name__)
async def test_the_kafka_bus_keeps_the_contract(case: bus_kit.Case, kafka_url: str) -> None:
    @asynccontextmanager
    async def make() -> AsyncIterator[Bus]:
        bus = await open_bus(f"kafka://{kafka_url.removeprefix('kafka://')}?topic=kit-{uuid4().hex}")
        try:
            yield bus
        finally:
            await bus.close()

    await case(make)
