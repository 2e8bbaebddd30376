"""A relay, a projector or both as a process of its own, for tests that kill or stop it: `python -m perdure.testing.engine_process PART…`.

PART: relay, projector. It works on the engine that PERDURE_* name until SIGTERM, and kills itself where PERDURE_KILL_POINT says.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Collection

import perdure
from perdure.testing import kill_points

__all__ = ["main"]


async def main(parts: Collection[str]) -> None:
    """Relay and project until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with perdure.open(create=False) as engine:
        await engine.run(relay="relay" in parts, projector="projector" in parts, stop=stop)


if __name__ == "__main__":
    kill_points.install_from_environment()
    asyncio.run(main(sys.argv[1:]))
