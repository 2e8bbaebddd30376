"""A relay as a process of its own, for tests that kill or stop it: `python -m perdure.testing.relay_process LOG BUS_URL HOLDER`.

LOG: the folder of a SQLite log, or a postgresql:// URL. It relays until SIGTERM, and kills itself where PERDURE_KILL_POINT says.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from perdure.engine.bus import open_bus
from perdure.engine.log.contract import LogStore
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.relay import Relay
from perdure.testing import kill_points

__all__ = ["main"]


async def main(log: str, bus_url: str, holder: str) -> None:
    """Relay until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    store = await _open(log)
    bus = await open_bus(bus_url)
    try:
        await Relay(store, bus, holder=holder).run(stop)
    finally:
        await bus.close()
        await store.close()


async def _open(log: str) -> LogStore:
    if log.startswith("postgresql:"):
        from perdure.engine.log.postgres import PostgresStore

        return await PostgresStore.open(log, create=False)
    return await SqliteStore.open(Path(log), create=False)


if __name__ == "__main__":
    kill_points.install_from_environment()
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3]))
