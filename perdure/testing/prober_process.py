"""Probers in a process of their own, so that what they measure does not share an event loop with what moves agents.

`python -m perdure.testing.prober_process` reads one JSON object a line and answers each with a line:
`{"addresses": [...], "rates": [[TENANT, AGENT, RATE], …]}` begins to probe, and answers when every agent has accepted a command;
`{"into": FILE}` ends it, waits for the answers, writes the records and answers. Times are those of the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from perdure.engine.log.records import AgentName
from perdure.errors import Unavailable
from perdure.processes import calm_collector, run_lasting
from perdure.recovery.caller import Caller
from perdure.recovery.commands import Command, CommandResult
from perdure.testing.prober import Prober, Probing

__all__ = ["ProberProcess"]

TIMEOUT_S: Final = 60.0
"""How long a command is repeated before its outcome is unknown."""
END_S: Final = 10.0


class ProberProcess:
    """The other process, from `start` to `end`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> ProberProcess:
        """Start it."""
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, stdin=pipe, stdout=pipe))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def probe(self, addresses: Sequence[str], rates: Mapping[AgentName, float]) -> None:
        """Begin; returns when every agent has accepted a command."""
        await self._ask({"addresses": list(addresses), "rates": [[*name, rate] for name, rate in rates.items()]})

    async def records(self, file: Path) -> dict[AgentName, Probing]:
        """End what `probe` began, and what came of it. file: where it is written in between."""
        await self._ask({"into": str(file)})
        content = await asyncio.to_thread(file.read_bytes)
        await asyncio.to_thread(file.unlink)
        found = [Probing.load(each) for each in msgspec.msgpack.decode(content, type=list[bytes])]
        return {record.name: record for record in found}

    async def end(self) -> None:
        """End the process, by force where it does not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        answer = (await self._process.stdout.readline()).decode().strip()
        if answer != "done":
            raise Unavailable(f"the prober's process said {answer!r}")


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        rates = {AgentName(tenant, agent): rate for tenant, agent, rate in asked["rates"]}
        async with Caller(asked["addresses"], timeout_s=TIMEOUT_S) as caller:
            prober = _prober(caller, rates)
            async with prober:
                await asyncio.gather(*(prober.accepted(name) for name in rates))
                print("done", flush=True)
                line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        records = msgspec.msgpack.encode([record.dump() for record in prober.records.values()])
        await asyncio.to_thread(Path(json.loads(line)["into"]).write_bytes, records)
        print("done", flush=True)


def _prober(caller: Caller, rates: Mapping[AgentName, float]) -> Prober:
    async def send(name: AgentName, command: Command) -> CommandResult:
        return await caller.command(name, None, command)

    return Prober(send, rates)


def _main() -> None:
    calm_collector()  # its pauses would look like an agent that is away
    with contextlib.suppress(KeyboardInterrupt):
        run_lasting(_serve())


if __name__ == "__main__":
    _main()
