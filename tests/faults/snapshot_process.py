"""A process that makes one snapshot: `python -m tests.faults.snapshot_process LOG KEYS STORE AGENT`.

It kills itself where PERDURE_KILL_POINT says.
"""

from __future__ import annotations

import asyncio
import sys

import perdure
from perdure.engine.log.records import AgentName
from perdure.testing import kill_points


async def main(log: str, keys: str, store: str, agent: str) -> None:
    async with perdure.open(log, keys=keys, store=store, create=False) as engine:
        await engine.snapshots.create_snapshot(AgentName("default", agent))


if __name__ == "__main__":
    kill_points.install_from_environment()
    asyncio.run(main(*sys.argv[1:5]))
