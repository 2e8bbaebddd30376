"""A process beside the measuring one: `python -m benchmarks.worker ROLE JSON`. It says `ready`, and works when it is sent a line.

Roles: `append` (each line lets it append for a while, then it prints how many a second), `relay` and `project` (until stdin ends; with a `share` of
partitions they join first, and begin when they are sent a line).
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import perdure
from benchmarks.appending import Agents
from benchmarks.measuring import closed_load, run
from perdure.engine.relay import Relay
from perdure.projections.projector import Projector

__all__ = ["Worker"]

POLL_S = 0.05


class Worker:
    """The measuring process's end of a worker."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, role: str, **given: Any) -> Worker:
        """Start one and wait until it is ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.worker", role, json.dumps(given)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        worker = cls(process)
        if await worker.line() != "ready":
            raise RuntimeError(f"the worker {role} did not start")
        return worker

    async def line(self) -> str:
        """What it says next; '' when it has ended."""
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def end(self) -> None:
        """Let it finish and wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if await self._process.wait():
            raise RuntimeError(f"a worker ended with {self._process.returncode}")


async def _stdin_line() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def _append(given: dict[str, Any]) -> None:
    async with perdure.open(given["log"], bus="memory://", cache="memory://", keys=given["keys"]) as engine:
        agents = Agents(engine, prefix=given["prefix"])
        await agents.make(given["agents"])
        print("ready", flush=True)
        while await _stdin_line():
            rate, _ = await closed_load(given["callers"], given["duration_s"], agents.step)
            print(rate, flush=True)


async def _pipeline(role: str, given: dict[str, Any]) -> None:
    async with perdure.open(given["log"], bus=given["bus"], cache=given["cache"], keys=given["keys"], create=False) as engine:
        stop = asyncio.Event()
        store, bus = engine.log.store, engine.bus
        part = Relay(store, bus) if role == "relay" else Projector(store, bus, engine.cache, engine.log.vault, group=given["group"])
        if share := given.get("share"):
            # Joining the group is no work on events: it is done before this says that it is ready.
            while isinstance(part, Projector) and len(await part.lag()) != share:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            print("ready", flush=True)
            await _stdin_line()
        running = asyncio.create_task(part.run(stop))
        if not share:
            print("ready", flush=True)
        ended = asyncio.ensure_future(_stdin_line())
        await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await running


if __name__ == "__main__":
    _role, _given = sys.argv[1], json.loads(sys.argv[2])
    run(_append(_given) if _role == "append" else _pipeline(_role, _given))
