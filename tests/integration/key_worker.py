"""A process that appends and reads without a pause while keys are rotated beside it; prints what it did as one line of JSON when it is told to stop.

python -m tests.integration.key_worker LOG KEYS NAME        reads stdin until it ends
"""

from __future__ import annotations

import asyncio
import json
import sys

import perdure
from perdure import config

PAUSE_S = 0.01
"""Between two appends: what is checked at the end shall not grow with the slowness of the machine."""
LIFETIME_S = 0.1
"""Of a cached key here: it shall follow many rotations in a short test."""


async def work(log: str, keys: str, name: str) -> dict[str, object]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    reader = loop.run_in_executor(None, sys.stdin.read)
    reader.add_done_callback(lambda _: stop.set())
    acknowledged: dict[str, int] = {}
    async with perdure.open(settings=config.load({"log": log, "keys": keys}, {})) as engine:
        engine.log.vault.ring._lifetime_s = LIFETIME_S
        turn = 0
        while not stop.is_set():
            if turn == 1:
                print("ready", flush=True)
            turn += 1
            # An old agent and a new one in turn: a data key that was there, and one that is made under whatever version is known.
            agent = f"{name}-{turn // 4 if turn % 2 == 0 else 0}"
            handle = engine.agent(agent, tenant="acme")
            await handle.append([perdure.Event("turn", changes=[perdure.append("/turns", turn)])])
            acknowledged[agent] = acknowledged.get(agent, 0) + 1
            await asyncio.sleep(PAUSE_S)
            # Written by the process that rotates, under versions that are not known here yet.
            assert (await engine.agent("before", tenant="acme").state(consistency="strong")).version >= 1
            if turn % 5 == 0:
                state = await handle.state(consistency="strong")
                assert len(state.document["turns"]) == acknowledged[agent], (state, acknowledged[agent])
    await reader
    return {"acknowledged": acknowledged}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(work(*sys.argv[1:]))), flush=True)
