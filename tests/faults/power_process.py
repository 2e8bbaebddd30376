"""A process that appends and makes snapshots for ever, and says what was acknowledged: `python -m tests.faults.power_process FOLDER`.

Prints `event N` after the N-th event, `snapshot N` after the snapshot of version N.
"""

from __future__ import annotations

import asyncio
import os
import sys

import perdure
from perdure.engine.log.records import AgentName

AGENT = AgentName("default", "agent")


async def main(folder: str) -> None:
    async with perdure.open(f"sqlite:///{folder}/log", keys=f"file://{folder}/keys/root.key", store=f"file://{folder}/snapshots") as engine:
        agent = engine.agent(AGENT.agent)
        while True:
            done = await agent.append([perdure.Event("said", changes=[perdure.append("/said", os.urandom(3_000).hex())])])
            version = done.version
            os.write(1, f"event {version}\n".encode())
            if version % 3 == 0:
                await engine.snapshots.create_snapshot(AGENT)
                os.write(1, f"snapshot {version}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
