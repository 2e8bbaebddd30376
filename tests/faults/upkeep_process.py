"""A process that keeps snapshots and logs in shape: `python -m tests.faults.upkeep_process LOG KEYS STORE snapshotter|compact|sweep`.

It kills itself where PERDURE_KILL_POINT says.
"""

from __future__ import annotations

import asyncio
import sys

import perdure
from perdure.engine.log.records import AgentName
from perdure.snapshots.cadence import Cadence
from perdure.testing import kill_points


async def main(log: str, keys: str, store: str, what: str) -> None:
    async with perdure.open(log, keys=keys, store=store, create=False) as engine:
        if what == "snapshotter":
            await engine.upkeep.snapshotter(Cadence(budget_events=10), parallel=2).run(asyncio.Event(), until_drained=True)
        elif what == "compact":
            await engine.upkeep.compact_events(AgentName("default", "a"), keep_last=30)
        else:
            await engine.upkeep.sweep()


if __name__ == "__main__":
    kill_points.install_from_environment()
    asyncio.run(main(*sys.argv[1:5]))
