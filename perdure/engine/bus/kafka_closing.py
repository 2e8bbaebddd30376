"""Ending Kafka clients."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["stop_client"]


async def stop_client(client: Any) -> None:
    """Stop a client of aiokafka. One whose brokers are away lets the cancellation of its own fetch out as if it were the caller's; it is not."""
    try:
        await client.stop()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
