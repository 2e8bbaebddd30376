"""A crash on the fast path loses what waits, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import perdure
from perdure import config

CRITICAL = 12
READ_TIMEOUT_S = 60

WRITER = """
import asyncio, sys, perdure
from perdure import config

def step(number):
    return perdure.Event("step", changes=(perdure.append("/trail", number),))

async def main():
    settings = config.load({"log": sys.argv[1]}, {})
    async with perdure.open(settings=settings, partitions=1) as engine:
        engine.fidelity.fast("worker", critical=["done"], events_max=1_000, age_max_s=600)
        agent = engine.agent("a", type="worker")
        number = 0
        for round in range(10**6):
            for _ in range(1 + round % 5):
                await agent.append(step(number))
                number += 1
            done = await agent.append(perdure.Event("done", changes=(perdure.set_value("/done", number),)))
            print(done.version, number, flush=True)

asyncio.run(main())
"""


def killed_writer(url: str) -> tuple[int, int]:
    """Version and number of steps of the last critical event that a writer saw acknowledged before it was killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        try:
            acknowledged = [writer.stdout.readline().split() for _ in range(CRITICAL)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += [line.split() for line in writer.stdout.read().splitlines()]
            writer.wait(READ_TIMEOUT_S)
        finally:
            writer.kill()
    version, number = (int(word) for word in next(words for words in reversed(acknowledged) if len(words) == 2))
    return version, number


async def test_what_was_appended_before_an_acknowledged_critical_event_survives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log"
    version, number = await asyncio.to_thread(killed_writer, url)
    async with perdure.open(settings=config.load({"log": url}, {})) as engine:
        agent = engine.agent("a")
        then, now = await agent.state(at_version=version), await agent.state()
        assert then.document == {"trail": list(range(number)), "done": number}
        assert now.document["trail"] == list(range(len(now.document["trail"])))
        assert now.version - version <= 2  # one more batch with its critical event may have been committed before its answer was read
        assert (await engine.verify()).ok
