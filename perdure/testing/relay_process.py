"""A relay as a process of its own, for tests that kill or stop it: `python -m perdure.testing.relay_process LOG_FOLDER BUS_URL HOLDER`.

It relays a SQLite log until SIGTERM, and kills itself where PERDURE_KILL_POINT says.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from perdure.engine.bus import open_bus
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.relay import Relay
from perdure.testing import kill_points

__all__ = ["main"]


async def main(folder: Path, bus_url: str, holder: str) -> None:
    """Relay until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    store = await SqliteStore.open(folder, create=False)
    bus = await open_bus(bus_url)
    try:
        await Relay(store, bus, holder=holder).run(stop)
    finally:
        await bus.close()
        await store.close()


if __name__ == "__main__":
    kill_points.install_from_environment()
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
