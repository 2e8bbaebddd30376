"""The process of the demo that is killed: it appends for ever, and says each version only after the log has acknowledged it.

`python -m perdure.cli.demo_child LOG-URL KEYS-URL TENANT`
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from typing import Final

import perdure
from perdure import config
from perdure.client.agent import Agent

__all__ = ["CHILD_AGENTS", "child_agent", "main"]

CHILD_AGENTS: Final = 16
_STDOUT: Final = 1


def child_agent(number: int) -> str:
    """The id of one of its agents."""
    return f"crash-{number:02d}"


async def work(log_url: str, keys_url: str, tenant: str) -> None:
    """Append from many agents at once until the process ends."""
    settings = config.load({"log": log_url, "keys": keys_url, "bus": "memory://", "cache": "memory://"})
    async with perdure.open(settings=settings) as engine, asyncio.TaskGroup() as group:
        for number in range(CHILD_AGENTS):
            group.create_task(_append(engine.agent(child_agent(number), tenant=tenant)))


async def _append(agent: Agent) -> None:
    for step in itertools.count(1):
        note = {"step": step, "text": f"what must not be forgotten, number {step}"}
        event = perdure.Event("note_taken", changes=(perdure.append("/notes", note),))
        done = await agent.append(event)
        # One write per line, unbuffered: whatever the parent reads was acknowledged before.
        os.write(_STDOUT, f"{agent.name.agent} {done.version} {event.id}\n".encode())


def main() -> None:
    """Run until killed."""
    asyncio.run(work(*sys.argv[1:4]))


if __name__ == "__main__":
    main()
